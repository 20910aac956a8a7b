"""Files that may not be read or written, and files that vanish or change while they are read:
what is asked for, or one sentence."""

import os
import random
import shutil
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import pytest
from mmada_parallel.mmp_core import InputError
from mmada_parallel.mmp_core.checkpoint import tensors, tokens
from mmada_parallel.tests.faults.test_disk import WRITERS, save
from mmada_parallel.tests.hostile.limits import judged, one_sentence, warm
from mmada_parallel.tests.hostile.readers import READERS, Place
from mmada_parallel.training.data import codes
from mmada_parallel.training.dpo import preferences
from mmada_parallel.training.pararl import votes
from mmada_parallel.training.weights.policies import LoRA
from safetensors import safe_open

READ = list({READERS[name].copy: name for name in reversed(READERS) if READERS[name].copy}.values())
"""One reader of each folder that is read."""
NOBODY = 65534
FEW = 4


@pytest.fixture(scope="module")
def place():
    with tempfile.TemporaryDirectory() as folder:  # pytest's folders are of their owner alone
        os.chmod(folder, 0o755)
        place = Place(Path(folder) / "place")
        for path in [place.folder, *place.folder.rglob("*")]:
            path.chmod(0o755 if path.is_dir() else 0o644)
        adapter = LoRA(place.model.transformer, rank=2)
        WRITERS["adapter"] = lambda place, folder: save(adapter, folder)
        warm()
        yield place


@pytest.fixture
def work(place):
    with tempfile.TemporaryDirectory(dir=place.folder.parent) as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


def as_nobody(case, before=lambda: None):
    """``case`` as a user who owns nothing; ``before`` as who runs the tests."""

    def run():
        before()
        if not os.getuid():
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
        case()

    return run


def read(place, name, folder):
    READERS[name].read(place, folder, random.Random(0))


@pytest.mark.parametrize("name", [*WRITERS, "adapter"])
def test_a_folder_that_may_not_be_written(place, name, work):
    folder = work / "out"
    folder.mkdir(0o555)

    def warm_up():
        WRITERS[name](place, work)

    verdict, said = judged(as_nobody(lambda: WRITERS[name](place, folder), warm_up))
    assert verdict == "input" and "ermission denied" in said, said
    assert not list(folder.iterdir())


@pytest.mark.parametrize("name", READ)
def test_a_folder_or_file_that_may_not_be_read(place, name, work):
    refused_to_read(place, name, work, 1)


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", READ)
def test_every_folder_and_file_that_may_not_be_read(place, name, work):
    refused_to_read(place, name, work)


def refused_to_read(place, name, work, number=None):
    """The folder of the reader ``name``, and ``number`` of its files, or all; their number."""
    folder = work / "in"
    shutil.copytree(place.folder / READERS[name].copy, folder)
    problems = []
    inside = sorted(folder.rglob("*"))
    paths = [folder, *random.Random(0).sample(inside, number or len(inside))]
    for path in paths:
        mode = path.stat().st_mode
        path.chmod(0)
        case = as_nobody(
            lambda: read(place, name, folder),
            lambda: read(place, name, place.folder / READERS[name].copy),
        )
        verdict, said = judged(case)
        path.chmod(mode)
        if verdict != "ok" and not (verdict == "input" and "ermission denied" in said):
            problems.append((str(path.relative_to(folder)), verdict, said))
    assert not problems, "\n".join(map(str, problems))
    return len(paths)


class Watched:
    """Calls ``change`` just before the file system is asked for the ``at``-th time, from 0, for
    something in ``folder``; ``count``: how often it was. It stays for the rest of the process."""

    def __init__(self, folder):
        self.folder, self.at, self.change, self.count = str(folder), -1, None, 0
        sys.addaudithook(self._hear)
        for module in (tensors, tokens, codes, preferences, votes):
            module.safe_open = self._safe_open

    def _safe_open(self, path, **options):
        """safetensors asks the file system itself, unheard."""
        self._hear("open", (path,))
        return safe_open(path, **options)

    def _hear(self, event, args):
        if event in ("open", "os.listdir", "os.scandir") and str(args[0]).startswith(self.folder):
            at, self.count = self.count, self.count + 1
            if at == self.at:
                self.change()

    def watch(self, at=-1, change=None):
        self.last, self.count, self.at, self.change = self.count, 0, at, change


def vanish(path):
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def cut(path):
    """As a download or a copy that is replaced. To cut a file in place that is mapped ends any
    process that reads on, PyTorch's too."""
    if path.is_file():
        content = path.read_bytes()
        path.unlink()
        path.write_bytes(content[: len(content) // 2])


def become_a_folder(path):
    vanish(path)
    path.mkdir(parents=True, exist_ok=True)


def become_another(path):
    vanish(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('{"a": 1}')


CHANGES = [vanish, cut, become_a_folder, become_another]


def changed_at(place, name, work, number=None, first=0):
    """Raises for what was wrong where a file of the reader ``name`` changed before one of its
    requests: ``number`` cases from ``first`` on of all in an order of seed 0, or all."""
    source, problems = place.folder / READERS[name].copy, []
    files = [Path("."), *(path.relative_to(source) for path in sorted(source.rglob("*")))]
    watched = Watched(work)

    def attempt(folder, at=-1, change=None, file="."):
        shutil.copytree(source, folder)
        watched.watch(at, lambda: change(folder / file))
        try:
            read(place, name, folder)
        except InputError as error:
            assert one_sentence(error), str(error)
        finally:
            watched.watch()

    with suppress(InputError):
        attempt(work / "unchanged")
    cases = [
        (at, change, file) for at in range(watched.last) for change in CHANGES for file in files
    ]
    few = random.Random(0).sample(cases, len(cases))[first:][: number or len(cases)]
    for count, (at, change, file) in enumerate(few):
        try:
            attempt(work / str(count), at, change, file)
        except Exception as error:
            said = f"{type(error).__name__}: {error} {where(error)}"
            problems.append(f"{at} {change.__name__} {file}: {said}")
    (work / "cases").write_text(str(len(cases)))
    if problems:
        raise RuntimeError("\n".join(problems[:40]) + f"\n{len(problems)} of {len(few)}")


def where(error):
    trace, lines = error.__traceback__, []
    while trace:
        code = trace.tb_frame.f_code
        lines.append(f"{Path(code.co_filename).name}:{trace.tb_lineno}")
        trace = trace.tb_next
    return " ".join(lines[-4:])


@pytest.mark.parametrize("name", READ)
def test_a_file_that_changes_while_it_is_read(place, name, work):
    verdict, said = judged(lambda: changed_at(place, name, work, FEW))
    assert verdict == "ok", said


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", READ)
def test_a_file_that_changes_before_any_request(place, name, work):
    verdict, said = judged(lambda: changed_at(place, name, work), seconds=600)
    assert verdict == "ok", said
