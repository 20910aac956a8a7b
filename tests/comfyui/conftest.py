"""One running server per ComfyUI version and session; tests that ask for `comfy` run on both."""

import pytest
from mmada_parallel.tests.hosts import serve


@pytest.fixture(scope="session", params=["current", "oldest"])
def comfy(request, tmp_path_factory):
    yield from serve(request.param, tmp_path_factory.mktemp(f"comfyui-{request.param}"))


@pytest.fixture(scope="session")
def object_info(comfy):
    return comfy.object_info()
