import pytest
import torch

from .readers import Place


@pytest.fixture(scope="session")
def place(tmp_path_factory):
    torch.set_num_threads(1)  # forks of a process with threads of its own hang
    return Place(tmp_path_factory.mktemp("hostile"))
