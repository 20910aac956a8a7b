"""Which room may import which, as docs/architecture.md says."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BELOW = {
    "mmp_core": set(),
    "training": {"mmp_core"},
    "views": {"mmp_core"},
    "demo": {"mmp_core", "training", "views"},
    "cli": {"mmp_core", "training", "views", "demo"},
    "nodes": {"mmp_core", "training", "views", "demo"},
}
"""The rooms that each room may import besides itself."""
COMFYUI = {"comfy", "comfy_extras", "comfy_execution", "folder_paths", "server", "execution"}


def imports(room):
    """(file, name) of every import in ``room``, its own modules' names from the root on, such as
    ``nodes/load.py`` and ``mmp_core.state.TokenState``."""
    for file in sorted((ROOT / room).rglob("*.py")):
        path = file.relative_to(ROOT)
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                yield from ((path, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                parts = path.parent.parts
                base = parts[: len(parts) - node.level + 1] if node.level else ()
                module = (*base, *([node.module] if node.module else ()))
                yield from ((path, ".".join((*module, alias.name))) for alias in node.names)


def test_every_room_is_listed():
    rooms = {file.parent.name for file in ROOT.glob("*/__init__.py")}
    assert rooms - {"tests", "benchmarks"} == set(BELOW)


@pytest.mark.parametrize("room", BELOW)
def test_a_room_imports_only_rooms_below_it(room):
    others = {*BELOW, "tests", "benchmarks", "scripts", "mmada_parallel"} - {room}
    if room != "nodes":
        others |= COMFYUI | {"comfy_api"}
    names = [(str(file), name) for file, name in imports(room)]
    assert names
    assert [x for x in names if x[1].partition(".")[0] in others - BELOW[room]] == []


def test_one_place_touches_comfyui():
    touching = {file for file, name in imports("nodes") if name.partition(".")[0] in COMFYUI}
    assert touching
    assert {file.parent.as_posix() for file in touching} == {"nodes/host"}


def test_the_host_room_is_a_leaf_of_the_nodes():
    names = [(str(file), name) for file, name in imports("nodes/host")]
    assert [x for x in names if x[1].startswith("nodes.") and "nodes.host." not in x[1]] == []


def test_the_toy_world_is_known_by_its_registration_and_its_own_node():
    knowing = {
        (file.as_posix(), name)
        for room in ("nodes", "cli")
        for file, name in imports(room)
        if name.startswith("demo.") and file.as_posix() != "nodes/demo_scene.py"
    }
    registration = "demo.register.register"
    assert knowing == {("cli/main.py", registration), ("nodes/__init__.py", registration)}


def test_the_numbered_api_of_comfyui_is_used():
    """Its maintainers keep that compatible, and advise packs against ``comfy_api.latest``
    (Comfy-Org/ComfyUI#10951)."""
    used = {name for _, name in imports("nodes") if name.startswith("comfy_api")}
    assert used and all(name.startswith("comfy_api.v0_0_2") for name in used)
