import gc

import pytest

from .limits import warm
from .readers import Place


@pytest.fixture(scope="session")
def place(tmp_path_factory):
    place = Place(tmp_path_factory.mktemp("hostile"))
    warm()
    yield place
    gc.unfreeze()
