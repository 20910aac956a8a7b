"""The archive that the Comfy registry makes of a version: tracked files minus .comfyignore."""

import io
import re
import subprocess
import sys
import zipfile
from pathlib import Path, PurePosixPath

import pytest
from mmada_parallel.tests.packaging.test_rooms import BELOW, imports
from PIL import Image

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
OURS = "https://github.com/mmada-parallel/mmada-parallel"
FLAGGED = re.compile(
    r"os\.environ\[|os\.environ\.get\(|os\.getenv\(|os\.system\(|\.eval\(|"
    r"(?<![\w.])(?:eval|exec|compile|__import__)\(|subprocess|raw\.githubusercontent\.com|"
    r"pickle\.loads?\(|requests\.\w+\(|urlopen\(|socket\.|\.connect\(|\.bind\(|\.send\("
)
"""What the registry's scan of the text flags, by the accounts of authors; comments count, too. A
flagged version cannot be installed by default."""
CODE = {".py", ".js", ".toml", ".json"}
LARGEST = 50 * 2**20
"""Bytes, not packed: 46 MB of them are the small checkpoints."""
ENTRIES = {"__init__", "__main__", "cli.__init__", "cli.__main__", "nodes.__init__"}
"""Modules that Python or ComfyUI starts with."""


def git(*arguments):
    done = subprocess.run(
        ["git", "ls-files", "-z", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip("not a git checkout")
    return {name for name in done.stdout.split("\0") if name}


@pytest.fixture(scope="module")
def archive():
    """{name: content} of the archive, read back from the zip."""
    ignored = git("--cached", "--ignored", "--exclude-from=.comfyignore")
    names = sorted(n for n in git("--cached") - ignored if (ROOT / n).is_file())
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as packed:
        for name in names:
            packed.write(ROOT / name, name)
    with zipfile.ZipFile(buffer) as packed:
        return {name: packed.read(name) for name in packed.namelist()}


@pytest.fixture(scope="module")
def pyproject(archive):
    return tomllib.loads(archive["pyproject.toml"].decode())


def findings(archive):
    for name, content in archive.items():
        if PurePosixPath(name).suffix in CODE:
            for number, line in enumerate(content.decode("utf-8").splitlines(), 1):
                if match := FLAGGED.search(line):
                    yield f"{name}:{number}: {match[0]}"


def test_the_scan_finds_nothing(archive):
    assert list(findings(archive)) == []


@pytest.mark.parametrize(
    "line",
    ["x = os.environ['HOME']", "net.eval()", "# subprocess.run", "eval(text)", "os.getenv('A')"],
)
def test_the_scan_finds_what_is_planted(line):
    assert len(list(findings({"nodes/a.py": line.encode()}))) == 1


def test_what_is_no_call_of_a_builtin_is_left_in_peace():
    assert list(findings({"a.py": b"re.compile(x)\nrecall(x)\nfrom os import environ"})) == []


def test_the_license_is_a_table(pyproject, archive):
    """docs.comfy.org/registry/specifications: a plain string is not read."""
    license = pyproject["project"]["license"]
    assert license == {"text": "Apache-2.0"}
    assert b"Apache License" in archive["LICENSE"]


def test_icon_and_banner(pyproject):
    for key, fits in (
        ("Icon", lambda width, height: width == height <= 400),
        ("Banner", lambda width, height: 9 * width == 21 * height),
    ):
        link = pyproject["tool"]["comfy"][key]
        assert link.startswith(f"{OURS}/raw/main/")
        file = ROOT / link.removeprefix(f"{OURS}/raw/main/")
        assert file.stat().st_size < 100_000
        with Image.open(file) as picture:
            assert fits(*picture.size)


def test_links_are_absolute_or_inside(archive):
    pages = [name for name in archive if name.endswith(".md")]
    assert "README.md" in pages and len(pages) > 10
    for page in pages:
        for link in re.findall(r"\]\(([^)\s]+)\)", archive[page].decode("utf-8")):
            if not re.match(r"https?://|#", link):
                help_page = page.startswith("web/docs/")  # ComfyUI's own rule
                place = PurePosixPath("web/docs" if help_page else page.rpartition("/")[0])
                target = place / link.partition("#")[0]
                assert target.as_posix() in archive, (page, link)


def test_size(archive):
    assert sum(map(len, archive.values())) < LARGEST


def test_nothing_that_only_tests_need(archive):
    """Every module is started with or imported by another one that is shipped; no other folders."""
    folders = {name.partition("/")[0] for name in archive if "/" in name}
    assert folders == {*BELOW, "locales", "web", "workflows", "subgraphs"}
    assert not [name for name in archive if re.search(r"(^|/)(conftest|test_)[^/]*\.py$", name)]
    shipped = {name[:-3].replace("/", ".") for name in archive if name.endswith(".py")}
    used = set(ENTRIES)
    for room in BELOW:
        for file, name in imports(room):
            module = file.as_posix()[:-3].replace("/", ".")
            used |= {part for part in (name, name.rpartition(".")[0]) if part != module}
    commands = re.findall(r'run="(\w+):\w+"', archive["cli/main.py"].decode())
    used |= {f"cli.{command}" for command in commands}
    assert sorted(m for m in shipped - used if not m.endswith("__init__")) == []


def test_what_the_pack_needs_is_inside(archive, pyproject):
    for package in pyproject["tool"]["setuptools"]["packages"]:
        folder = "/".join(package.split(".")[1:])
        assert f"{folder}/__init__.py".lstrip("/") in archive
    tracked = git("--cached")
    for folder in (
        "locales/zh/",
        "locales/ja/",
        "web/",
        "workflows/",
        "subgraphs/",
        "demo/checkpoint/",
    ):
        assert {n for n in tracked if n.startswith(folder)} <= set(archive)
