import gc

import pytest
from mmada_parallel.tests.mmp_core import tiny

from .limits import warm
from .readers import Place


@pytest.fixture(scope="session")
def place(tmp_path_factory):
    place = Place(tmp_path_factory.mktemp("hostile"))
    warm()
    yield place
    gc.unfreeze()


@pytest.fixture
def folder(place, tmp_path):
    """A checkpoint that may be spoilt."""
    return tiny.write_checkpoint(tmp_path / "A", "A")
