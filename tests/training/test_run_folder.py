import threading

import pytest
from mmada_parallel.mmp_core import InputError
from mmada_parallel.tests.hostile.limits import judged
from mmada_parallel.training.loop.folder import RunFolder


def test_a_line_that_was_cut_off_is_forgotten(tmp_path):
    folder = RunFolder(tmp_path)
    for step in (1, 2, 3):
        folder.log({"step": step, "loss": 1 / step})
    with open(folder.log_file, "a") as file:
        file.write('{"step": 4, "lo')
    folder.forget_after(2)
    assert [line["step"] for line in folder.lines()] == [1, 2]
    folder.log({"step": 3, "loss": 0.5})
    assert folder.lines()[-1] == {"step": 3, "loss": 0.5}


def test_last_good_says_what_is_safe(tmp_path):
    folder = RunFolder(tmp_path)
    assert "Nothing" in folder.last_good
    folder.write({"step": 7})
    assert folder.last_good == f"The state after step 7 is kept in {tmp_path / 'run.pt'}."
    assert RunFolder(tmp_path).read("cpu") == {"step": 7}


def test_what_was_half_written_is_removed(tmp_path):
    folder = RunFolder(tmp_path)
    folder.write({"step": 7})
    (tmp_path / ".run.pt.ab12_xyz.mmada-part").write_bytes(b"half")
    (tmp_path / ".log.jsonl.cd34efgh.mmada-part").write_bytes(b"half")
    (tmp_path / ".settings.template").write_text("somebody's own")
    with folder.held():
        assert folder.read("cpu")["step"] == 7
    assert {file.name for file in tmp_path.iterdir()} <= {"run.pt", ".lock", ".settings.template"}
    assert (tmp_path / ".settings.template").read_text() == "somebody's own"


def test_a_log_that_cannot_be_written_is_told(tmp_path):
    folder = RunFolder(tmp_path)
    folder.log_file.mkdir()
    with pytest.raises(InputError, match="could not be written"):
        folder.log({"step": 1})


def test_a_closed_folder_leaves_no_thread(tmp_path):
    pytest.importorskip("tensorboard")
    folder, before = RunFolder(tmp_path), threading.active_count()
    folder.log({"step": 1, "loss": 0.5})
    assert threading.active_count() > before
    folder.close()
    assert threading.active_count() == before


def test_tensorboard_shows_each_step_once(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    first = RunFolder(tmp_path)
    for step in (1, 2, 3):
        first.log({"step": step, "loss": 1.0})
    first.write({"step": 2})
    resumed = RunFolder(tmp_path)
    resumed.forget_after(2)
    for step in (3, 4):
        resumed.log({"step": step, "loss": 2.0})
    shown = EventAccumulator(str(tmp_path / "tensorboard"))
    shown.Reload()
    assert [(e.step, e.value) for e in shown.Scalars("loss")] == [(1, 1), (2, 1), (3, 2), (4, 2)]


def test_a_run_that_another_process_holds_is_left_to_it(tmp_path):
    def begin():
        with RunFolder(tmp_path).held():
            pass

    with RunFolder(tmp_path).held():
        verdict, said = judged(begin)
    assert verdict == "input" and "is in use by another process" in said
    assert judged(begin)[0] == "ok"
