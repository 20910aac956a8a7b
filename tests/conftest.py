"""Without a GPU, kernels run in Triton's interpreter, to be chosen before triton is imported.

Hypothesis does not time its examples: a busy machine is no error. Several pytest workers share the
processor, and share out the tests by file; those that need servers stay with one worker each.
"""

import os

import pytest
import torch
from hypothesis import settings

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)


def pytest_collection_modifyitems(items):
    for item in items:
        room = item.path.parent.name
        group = room if room in ("browser", "comfyui") else str(item.path)
        item.add_marker(pytest.mark.xdist_group(group))
