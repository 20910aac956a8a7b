"""Two ComfyUI processes on the same folders: each file and each run gets a name of its own."""

import os
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from mmada_parallel.mmp_core import InputError, TokenState
from mmada_parallel.mmp_core.checkpoint.tokens import load_tokens, save_tokens
from mmada_parallel.mmp_core.files import replacing

PROCESSES, EACH = 4, 8


@pytest.fixture
def output(folders, tmp_path, monkeypatch):
    import folder_paths

    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    return tmp_path


def forked(count, work):
    """``work(number)`` in ``count`` processes at the same time; those that failed."""
    children = []
    for number in range(count):
        child = os.fork()
        if not child:
            try:
                work(number)
            except BaseException:
                os._exit(1)
            os._exit(0)
        children.append(child)
    return [child for child in children if os.waitpid(child, 0)[1]]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows has no fork")
@pytest.mark.parametrize("links", [True, False], ids=["hard links", "no hard links"])
def test_tokens_saved_at_the_same_time_are_all_there(folders, output, monkeypatch, links):
    if not links:

        def refused(*args):
            raise PermissionError(1, "Operation not permitted")

        monkeypatch.setattr(os, "link", refused)

    def save_some(number):
        def write(path, content):
            with replacing(path, new=True) as temporary:
                temporary.write_text(content)

        for turn in range(EACH):
            content = f"{number} {turn}"
            folders.write_numbered(lambda path: write(path, content), "a/tokens", ".txt")  # noqa: B023

    assert forked(PROCESSES, save_some) == []
    contents = sorted(file.read_text() for file in (output / "a").iterdir())
    assert contents == sorted(f"{n} {turn}" for n in range(PROCESSES) for turn in range(EACH))


def test_the_name_that_another_process_took_meanwhile_is_left_to_it(
    folders, output, model, run_node, monkeypatch
):
    model.prepare_decoding((1, 1))
    ours, theirs = (TokenState(torch.full((1, 2), n), torch.full((1, 1, 1), n)) for n in (1, 2))
    free, asked = folders.free_output_path, []

    def slow(*args):
        path = free(*args)
        if not asked:
            save_tokens(path, theirs, model.model)
        asked.append(path)
        return path

    monkeypatch.setattr(folders, "free_output_path", slow)
    shown = run_node("SaveTokens", model=model, tokens=ours, filename_prefix="tokens")
    assert shown.ui["text"] == (asked[1].name,) and asked[0] != asked[1]
    for path, tokens in zip(asked, (theirs, ours), strict=True):
        assert torch.equal(load_tokens(path, model.model).text, tokens.text)
    assert sorted(output.iterdir()) == sorted(asked)


def test_runs_begun_at_the_same_time_have_folders_of_their_own(training_folders, output):
    def begin(number):
        with training_folders.run_folder("run", False) as folder:
            (folder / "log.jsonl").write_text(str(number))
            return folder

    with ThreadPoolExecutor(8) as pool:
        places = list(pool.map(begin, range(16)))
    assert len(set(places)) == 16
    assert sorted(int(path.joinpath("log.jsonl").read_text()) for path in places) == [*range(16)]
    with training_folders.run_folder("run", True) as folder:
        assert folder == max(places)


def test_runs_where_no_folder_can_be_are_refused(training_folders, output):
    place = training_folders.runs_folder()
    place.parent.mkdir(parents=True)
    place.symlink_to(output / "a disk that is not there")
    with pytest.raises(InputError, match="cannot be written"):
        training_folders.run_folder("run", False).__enter__()


def test_a_run_that_never_began_leaves_no_folder(training_folders, output):
    with pytest.raises(InputError), training_folders.run_folder("run", False) as folder:
        raise InputError("the dataset is empty")
    assert not folder.exists()
