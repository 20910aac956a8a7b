"""Every string that a person reads, against the sentences that were nobody's English, and their
like. CONTRIBUTING.md says how such strings are written."""

import ast
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("mmp_core", "training", "views", "nodes", "cli", "demo")
FLAGGED = {
    r"(?<!there )(?<!There )\b(?:is|are) no (?:\.?[a-zA-Z]+ )?(?:file|picture|option|JSON|text|task"
    r"|string|adapter|state|list|matrix|checkpoint|choice|batch)\b": "is not a …",
    r"\bis there already\b": "already exists",
    r"\bnot there any more\b": "no longer exists",
    r"\b[Ll]eave (?:it )?open\b|\bleave the \w+ open\b": "leave unconnected, leave out",
    r"\b(?:goes|go) by the other\b": "follows the other",
    r"\bgiv(?:es?|en) back\b": "returns",
    r"\b[Ww]hat becomes of\b": "what to do with",
    r"\b[Oo]f all that is\b": "of everything",
    r"\bHigher: it can\b|\bMore: steadier\b": "a whole sentence",
    r"\b[Ww]hat is paid for\b": "what an answer is rewarded for",
    r"\bwhich alone\b": "and … nothing else",
    r"\bnothing learnt\b": "taught nothing",
    r"\ba GPU that can\b": "a GPU that supports it",
    r"\blaid over the whole\b": "stretched over",
    r"\bwhich has no end\b": "which is endless",
    r"\bThe text of tokens\b": "the tokens' text",
    r"\bin a format that is read\b": "a format that can be read",
    r"\bno regular expression\b": "not a regular expression",
    r"\bis not made of \d": "not a multiple of",
    r"\bWhich \w+ a \w+ is, is\b": "one verb",
    r"\buntil ComfyUI ends\b": "is closed",
    r"\bas far as there are\b": "where there are any",
    r"\bhow their \w+ are called\b": "what they are called",
    r"\bset back what\b": "reset",
    r"\bfor ever\b": "forever",
    r"\bso many (?:items|steps|tokens|parts|measurements|random)\b": "this many",
    r"\bcould not be had\b|\bcannot be had\b": "were not available",
    r"\b(?:the user|user) (?:says|once said)\b": "as you chose",
    r"\b(?:node|sampler|file|checkpoint|pack) (?:wants|likes|thinks|hopes)\b": "what it does",
    r"\.;": "one full stop",
}
"""What is found, and what to write instead."""
WALK = [
    "Higher: it can learn more",
    "Of all that is random.",
    "What is paid for.",
    "is no task of the toy world, which alone the checker can judge",
    "comparisons were ties: nothing learnt",
    "bf16 on a GPU that can",
    "Leave open to start anew",
    "any size, laid over the whole picture",
    "What becomes of items that cannot be used",
    "of the toy world, which has no end, 256",
    "is no picture in a format that is read: replace it.",
    "pattern is '([', no regular expression",
    "Which variant a checkpoint is, is read from its files",
    "says how their layers are called",
    "as far as there are",
    "lines that are no JSON",
    "set back what was set for the demo",
]
"""Sentences of a creator's first walk through the pack."""


def read_strings(source):
    """(line, text) of each string of a Python source that is not a docstring; a formatted one with
    … for its values."""
    tree = ast.parse(source)
    skipped = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            skipped |= {id(part) for value in node.values for part in ast.walk(value)}
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.JoinedStr):
            parts = (v.value if isinstance(v, ast.Constant) else "…" for v in node.values)
            yield node.lineno, "".join(map(str, parts))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value


def notes(workflow):
    for node in json.loads(workflow)["nodes"]:
        if node["type"] == "MarkdownNote":
            yield node["id"], node["widgets_values"][0]


def sources():
    """(place, text) of all that a person reads."""
    for room in ROOMS:
        for file in sorted((ROOT / room).rglob("*.py")):
            for line, text in read_strings(file.read_text(encoding="utf-8")):
                if len(text.split()) > 2:
                    yield f"{file.relative_to(ROOT)}:{line}", text
    for file in sorted((ROOT / "workflows").glob("*.json")):
        for node, text in notes(file.read_text(encoding="utf-8")):
            yield f"{file.name}, note {node}", text
    pages = [*sorted((ROOT / "web" / "docs").glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
    for file in (*pages, ROOT / "README.md", ROOT / "SECURITY.md"):
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            yield f"{file.name}:{number}", line
    for file in sorted((ROOT / "web").glob("*.js")):
        for text in re.findall(r"localised\(\s*'((?:[^'\\]|\\.)*)'", file.read_text("utf-8")):
            yield file.name, text


def found_in(text):
    return [
        f"{match[0]!r} ({advice})" for p, advice in FLAGGED.items() if (match := re.search(p, text))
    ]


def test_no_sentence_is_like_those_that_were_nobodys_english():
    places = [(place, found) for place, text in sources() if (found := found_in(text))]
    assert places == []


@pytest.mark.parametrize("sentence", WALK)
def test_the_sentences_of_the_first_walk_are_found(sentence):
    assert found_in(sentence)


def test_strings_are_read_whole():
    source = 'def f():\n    """is no file"""\n    raise E(f"{a} is "\n        f"no {b} file.")\n'
    assert [text for _, text in read_strings(source)] == ["… is no … file."]
