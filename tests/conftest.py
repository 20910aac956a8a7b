"""Without a GPU, kernels run in Triton's interpreter, to be chosen before triton is imported.

Hypothesis does not time its examples: a busy machine is no error.
"""

import os

import torch
from hypothesis import settings

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
