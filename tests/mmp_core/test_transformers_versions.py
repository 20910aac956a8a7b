"""A tokenizer as large as the released ones, read by every transformers that may be installed."""

import json
import os
import subprocess
import sys

import pytest
from mmada_parallel.tests.mmp_core import large_tokenizer

MINORS = {
    "4": "50.3 51.3 52.4 53.3 54.1 55.4 56.2 57.1 57.2 57.3 57.4 57.5 57.6",
    "5": "0.0 1.0 2.0 3.0 4.0 5.4 6.2 7.0 8.1 9.0 10.4 11.0 12.1 13.1 14.1 15.1 16.1 17.0 18.0 19.0"
    " 20.2 21.1 22.2 23.0 24.0",
}
"""The last of each minor, and all of 4.57: 4.57.2 cannot read such a tokenizer from its folder."""
VERSIONS = [f"{major}.{rest}" for major, minors in MINORS.items() for rest in minors.split(" ")]

IN_CI = ("4.50.3", "4.57.2")
"""Beside the installed one: the oldest, and the one that needs another way."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return large_tokenizer.write(tmp_path_factory.mktemp("large") / "A")


@pytest.fixture(scope="module")
def expected(folder):
    """What the tokenizers library itself says, which reads one file and adds nothing."""
    from tokenizers import Tokenizer

    library = Tokenizer.from_file(str(folder / "tokenizer.json"))
    ids = [library.encode(text).ids for text in large_tokenizer.TEXTS]
    return {"words": large_tokenizer.WORDS, "ids": ids, "texts": large_tokenizer.TEXTS}


def test_the_installed_one_reads_it(folder, expected):
    assert large_tokenizer.seen(folder) == expected
    assert all(
        len(ids) < len(text.encode())
        for ids, text in zip(expected["ids"], large_tokenizer.TEXTS, strict=True)
    )


@pytest.mark.parametrize(
    "version",
    [
        pytest.param(v, marks=pytest.mark.slow if v in IN_CI else pytest.mark.exhaustive)
        for v in VERSIONS
    ],
)
def test_another_version_reads_it(version, folder, expected, tmp_path):
    """Each from the package index, into a folder that comes first."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(tmp_path)]
    got = subprocess.run([*pip, f"transformers=={version}"], capture_output=True, check=False)
    if got.returncode:
        pytest.skip(f"transformers {version} cannot be installed here")
    path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, "-m", "mmada_parallel.tests.mmp_core.large_tokenizer", str(folder)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.strip().rpartition("\n")[2]) == {"version": version, **expected}
