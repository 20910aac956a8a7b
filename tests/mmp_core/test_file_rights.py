"""Files are for whom their owner says: the umask where they are new, else who had the old one."""

import os
from stat import S_IMODE

import pytest
import torch
from mmada_parallel.mmp_core import files
from mmada_parallel.mmp_core.checkpoint.convert import convert
from mmada_parallel.mmp_core.checkpoint.load import DEMO
from mmada_parallel.mmp_core.files import replacing
from safetensors.torch import save_file

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has other rights")


def mode_of(path):
    return S_IMODE(path.stat().st_mode)


@pytest.fixture(params=[0o022, 0o077, 0o002])
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def write_text(path):
    path.write_text("all of it")


def write_tensors(path):
    save_file({"a": torch.zeros(2)}, path)


@pytest.mark.parametrize("write", [write_text, write_tensors])
def test_a_new_file_goes_by_the_umask_and_one_in_place_of_another_by_that_one(
    write, umask, tmp_path
):
    file = tmp_path / "file"
    for mode in (0o666 & ~umask, 0o640):
        with replacing(file) as path:
            write(path)
        assert mode_of(file) == mode
        file.chmod(0o640)


def test_a_converted_checkpoint_too(umask, tmp_path):
    out = tmp_path / "demo.safetensors"
    for mode in (0o666 & ~umask, 0o640):
        convert(DEMO, out)
        assert mode_of(out) == mode
        out.chmod(0o640)


def test_where_there_are_no_rights_the_file_is_written(tmp_path, monkeypatch):
    def refused(*args):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(files.os, "chmod", refused)
    with replacing(tmp_path / "file") as path:
        write_text(path)
    assert (tmp_path / "file").read_text() == "all of it"
