"""Which room may import which, as the layout of the repository promises."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMFY = {"comfy", "comfy_extras", "server", "execution"}


def imports(room):
    """(file, module) for every import in ``room``; our own modules from the root, such as
    ``mmp_core.state``."""
    for file in sorted((ROOT / room).rglob("*.py")):
        place = file.relative_to(ROOT).parent.parts
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                yield from ((file, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                base = place[: len(place) - node.level + 1] if node.level else ()
                yield file, ".".join((*base, node.module or ""))


@pytest.mark.parametrize(
    "room, forbidden",
    [
        ("mmp_core", {"training", "nodes", "demo", "cli", "comfy_api", "folder_paths"} | COMFY),
        ("training", {"nodes", "demo", "cli", "comfy_api", "folder_paths"} | COMFY),
        ("demo", {"nodes", "cli", "comfy_api", "folder_paths"} | COMFY),
        ("cli", {"nodes", "comfy_api", "folder_paths"} | COMFY),
    ],
)
def test_no_arrow_goes_back(room, forbidden):
    found = [(f.name, m) for f, m in imports(room) if m.partition(".")[0] in forbidden]
    assert not found


def test_one_place_touches_comfyui():
    host = ROOT / "nodes" / "host"
    assert any(module.startswith("comfy.") for _, module in imports("nodes/host"))
    assert not [
        (file.name, module)
        for file, module in imports("nodes")
        if module.partition(".")[0] in COMFY and host not in file.parents
    ]
