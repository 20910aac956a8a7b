"""Large weights are read before they are touched."""

import math
from pathlib import Path

import pytest
from mmada_parallel.mmp_core.checkpoint import read_ahead as module
from mmada_parallel.mmp_core.checkpoint.load import DEMO, open_checkpoint
from mmada_parallel.mmp_core.checkpoint.read_ahead import read_ahead

OWN_IO = Path("/proc/self/io")


@pytest.fixture
def weights():
    return open_checkpoint(DEMO).weights


def bytes_asked_for() -> int:
    return int(OWN_IO.read_text(encoding="ascii").split()[1])


@pytest.mark.skipif(not OWN_IO.is_file(), reason="needs Linux' count of the bytes a process reads")
def test_all_bytes_of_large_weights_are_read(weights, monkeypatch):
    monkeypatch.setattr(module, "SMALLEST", 0)
    before = bytes_asked_for()
    thread = read_ahead(weights, {})
    assert thread is not None
    thread.join()
    assert bytes_asked_for() - before >= sum(file.stat().st_size for file in weights.files)


def test_small_weights_are_left_alone(weights):
    assert read_ahead(weights) is None


@pytest.mark.parametrize("free, reads", [(2**20, False), (math.inf, True)])
def test_only_what_memory_has_room_for_is_read(weights, free, reads, monkeypatch):
    monkeypatch.setattr(module, "SMALLEST", 0)
    monkeypatch.setattr(module, "free_bytes", lambda device: free)
    assert (read_ahead(weights) is not None) == reads


def test_a_file_that_is_gone_ends_the_reading_without_a_word(tmp_path, capfd):
    module._read([tmp_path / "gone.safetensors"])
    assert capfd.readouterr() == ("", "")


def test_loading_begins_it(monkeypatch):
    from mmada_parallel.mmp_core.checkpoint import load

    begun = []
    monkeypatch.setattr(load, "read_ahead", lambda *weights: begun.append(weights))
    load.load_checkpoint(DEMO)
    assert [len(weights) for weights in begun] == [2]
