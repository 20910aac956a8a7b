"""Without a GPU, kernels run in Triton's interpreter, to be chosen before triton is imported.

Hypothesis does not time its examples: a busy machine is no error. Several pytest workers share the
processor, and share out the tests by file.
"""

import os

import torch
from hypothesis import settings

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


def pytest_collection_modifyitems(items):
    """The longest tests of the page last, so that two workers are not in the page at once."""
    items.sort(key=lambda item: item.path.match("browser/test_workflows.py"))
