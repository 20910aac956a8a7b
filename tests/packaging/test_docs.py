"""What the documents name is there: files, headings, identifiers, imports."""

import ast
import importlib
import re
import shlex
from pathlib import Path

import pytest
from mmada_parallel.cli.main import build_parser

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [
    ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")
]
DOCUMENTS += sorted((ROOT / "docs").glob("*.md"))
OURS = "https://github.com/mmada-parallel/mmada-parallel"
COMMAND = r"(?:mmada-parallel|.* -m mmada_parallel\.cli)"
CODE = ("mmp_core", "training", "views", "nodes", "cli", "demo")


def headings(text):
    """Anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", DOCUMENTS, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    absolute = re.findall(rf"\]\({OURS}/(?:blob|raw)/main/([^)]*)\)", text)
    links = [(ROOT, link) for link in absolute]
    links += [(page.parent, link) for link in re.findall(r"\]\((?!https?:)([^)]*)\)", text)]
    for folder, link in links:
        name, _, anchor = link.partition("#")
        target = folder / name if name else page
        assert target.exists(), link
        assert not anchor or anchor in headings(target.read_text(encoding="utf-8")), link


@pytest.mark.parametrize("page", DOCUMENTS, ids=lambda page: page.name)
def test_examples_import_what_is_there(page):
    for code in re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom):
                module = importlib.import_module(node.module)
                assert all(hasattr(module, alias.name) for alias in node.names), node.module


@pytest.mark.parametrize("page", DOCUMENTS, ids=lambda page: page.name)
def test_commands_are_understood(page):
    text = page.read_text(encoding="utf-8").replace("\\\n", "")
    commands = re.findall(rf"(?:^|`){COMMAND} ([^`\n]+)", text, re.MULTILINE)
    assert commands or page.name not in {"README.md", "training.md"}
    for command in commands:
        if not command.endswith("…"):
            assert build_parser().parse_args(shlex.split(command)).run, command


@pytest.mark.parametrize("page", DOCUMENTS, ids=lambda page: page.name)
def test_paths_are_there(page):
    quoted = re.findall(r"`([^`\n]+)`", page.read_text(encoding="utf-8"))
    paths = [
        text
        for text in quoted
        if re.fullmatch(r"[\w./-]+", text)
        and (ROOT / text.partition("/")[0]).is_dir()
        and not text.startswith("output/")  # ComfyUI's, which scripts/start.py puts here, too
    ]
    assert [path for path in paths if "/" in path and not (ROOT / path).exists()] == []


def test_the_map_names_what_is_in_the_code():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    quoted = re.findall(r"`([A-Za-z_][\w.]*)(?:\(\))?`", text)
    names = {part for name in quoted if re.search("[A-Z_]", name) for part in name.split(".")}
    assert {"TokenState", "targets", "encode_instruction"} <= names
    sources = [p.read_text(encoding="utf-8") for room in CODE for p in (ROOT / room).rglob("*.py")]
    words = set(re.findall(r"\w+", "\n".join(sources))) | {"mmada_parallel"}
    assert names - words == set()
    for name, file in re.findall(r"`(\w+)`(?:, | in )`([\w/]+\.py)`", text):
        assert re.search(rf"\b{name}\b", (ROOT / file).read_text(encoding="utf-8")), (name, file)
