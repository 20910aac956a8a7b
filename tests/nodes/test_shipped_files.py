"""What ships beside the code, read without ComfyUI: help pages, workflows, the version check."""

import importlib
import itertools
import json
import math
import re
import sys
import types

import pytest
from mmada_parallel.tests.hosts import PACK_ROOT
from mmada_parallel.tests.workflow_api import WORKFLOWS
from PIL import Image

NODE_IDS = re.findall(
    r'node_id="(\w+)"', "".join(p.read_text() for p in (PACK_ROOT / "nodes").glob("*.py"))
)
HELP_PAGES = sorted((PACK_ROOT / "web" / "docs").rglob("*.md"))
each_workflow = pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)


def test_every_node_has_a_help_page_and_every_page_a_node():
    pages = {page.stem for page in (PACK_ROOT / "web" / "docs").glob("*.md")}
    assert pages == set(NODE_IDS) and len(NODE_IDS) >= 6


@pytest.mark.parametrize("node_id", NODE_IDS)
def test_help_pages_explain_every_socket_and_load_nothing(node_id):
    page = (PACK_ROOT / "web" / "docs" / f"{node_id}.md").read_text()
    assert page.startswith("# ") and "## Outputs" in page
    assert "http" not in page and "](" not in page.replace("](pictures/", "")


@pytest.mark.parametrize("page", HELP_PAGES, ids=lambda path: "-".join(path.parts[-2:]))
def test_help_pages_have_a_picture_and_name_a_workflow(page):
    """The page looks for pictures in web/docs, whatever the language of the help."""
    text = page.read_text(encoding="utf-8")
    pictures = re.findall(r"!\[([^]]+)\]\((pictures/[\w-]+\.webp)\)", text)
    assert pictures
    for says, place in pictures:
        assert says.endswith((".", "。"))
        with Image.open(PACK_ROOT / "web" / "docs" / place) as picture:
            assert picture.width <= 440  # of a panel that is 220 wide at first
    named = set(re.findall(r"\*([^*\n]+)\*", text)) & {path.stem for path in WORKFLOWS}
    node_id = page.parent.name if page.stem in ("zh", "ja") else page.stem
    using = {path.stem for path in WORKFLOWS if f'"{node_id}"' in path.read_text()}
    assert named & using if using else named


def test_pictures_of_help_pages_are_small_and_all_are_shown():
    text = "".join(page.read_text(encoding="utf-8") for page in HELP_PAGES)
    pictures = list((PACK_ROOT / "web" / "docs" / "pictures").iterdir())
    assert all(f"(pictures/{picture.name})" in text for picture in pictures)
    assert sum(picture.stat().st_size for picture in pictures) < 300_000


@each_workflow
def test_workflows_have_a_thumbnail_to_be_read_small(path):
    with Image.open(path.with_suffix(".jpg")) as thumbnail:
        assert thumbnail.size == (480, 480)
    assert path.with_suffix(".jpg").stat().st_size < 40_000


@each_workflow
def test_workflows_open_where_they_can_be_read(path):
    """At 1280x800 the first note is all in view, right of the page's bar and below its buttons."""
    workflow = json.loads(path.read_text())
    scale, offset = (workflow["extra"]["ds"][key] for key in ("scale", "offset"))
    assert scale >= 0.8
    first = next(node for node in workflow["nodes"] if node["type"] == "MarkdownNote")
    left, top = ((first["pos"][i] + offset[i]) * scale for i in range(2))
    assert 66 <= left <= 90 and 96 + 30 * scale <= top
    assert top + first["size"][1] * scale <= 800
    assert all(node["pos"][0] >= first["pos"][0] for node in workflow["nodes"])


@pytest.mark.parametrize("file", sorted((PACK_ROOT / "web").glob("*.js")), ids=lambda p: p.name)
def test_scripts_load_nothing_from_elsewhere(file):
    assert not re.search(r"https?:|innerHTML|eval\(", file.read_text())


@each_workflow
def test_workflows_name_the_pack_that_their_nodes_come_from(path):
    pyproject = (PACK_ROOT / "pyproject.toml").read_text()
    version = re.search(r'^version = "(.+)"', pyproject, re.MULTILINE)
    for node in json.loads(path.read_text())["nodes"]:
        if node["type"].startswith("MMaDAParallel"):
            assert node["type"] in NODE_IDS
            assert node["properties"]["cnr_id"] == "mmada-parallel"
            assert node["properties"]["ver"] == version.group(1)


@each_workflow
def test_nothing_overlaps_and_every_node_of_a_stage_is_in_a_group(path):
    workflow = json.loads(path.read_text())
    boxes = {n["id"]: (*n["pos"], *n["size"]) for n in workflow["nodes"]}
    for (a, box), (b, other) in itertools.combinations(boxes.items(), 2):
        assert not _overlap(box, other), f"nodes {a} and {b} of {path.name} overlap"
    groups = [group["bounding"] for group in workflow["groups"]]
    for node in workflow["nodes"]:
        if node["type"] != "MarkdownNote":
            assert any(_inside(boxes[node["id"]], group) for group in groups), node["type"]
    for group, other in itertools.combinations(groups, 2):
        assert not _overlap(group, other, title=0), f"groups of {path.name} overlap"


def _overlap(a, b, title=30):
    """Boxes are x, y, width, height below a title bar."""
    (ax, ay, aw, ah), (bx, by, bw, bh) = a, b
    return ax < bx + bw and bx < ax + aw and ay - title < by + bh and by - title < ay + ah


def _inside(box, group):
    (x, y, w, h), (gx, gy, gw, gh) = box, group
    return gx <= x and gy <= y and x + w <= gx + gw and y + h <= gy + gh


@each_workflow
def test_links_of_a_workflow_agree_with_its_sockets(path):
    workflow = json.loads(path.read_text())
    nodes = {node["id"]: node for node in workflow["nodes"]}
    for link, source, output, target, slot, kind in workflow["links"]:
        assert link in nodes[source]["outputs"][output]["links"]
        assert nodes[target]["inputs"][slot]["link"] == link
        assert kind == nodes[source]["outputs"][output]["type"]


def _socket(node, kind, index):
    """Where the canvas draws a socket; the first of a widget that is a text below the others."""
    slot = node[kind][index]
    plain = [one for one in node[kind] if not one.get("widget")]
    x = node["pos"][0] + node["size"][0] * (kind == "outputs")
    if slot.get("widget"):
        return x, node["pos"][1] + max(len(plain), len(node["outputs"])) * 20 + 16
    return x, node["pos"][1] + (plain.index(slot) + 0.7) * 20


def _curve(start, end):
    """Points of a wire as the canvas draws it: a spline whose ends are level."""
    reach = 0.25 * math.dist(start, end)
    bend = (start[0] + reach, start[1]), (end[0] - reach, end[1])
    for t in (step / 60 for step in range(1, 60)):
        weights = (1 - t) ** 3, 3 * (1 - t) ** 2 * t, 3 * (1 - t) * t**2, t**3
        points = zip(*(start, *bend, end), strict=True)
        yield tuple(sum(w * p for w, p in zip(weights, axis, strict=True)) for axis in points)


def _way(start, points, end):
    """Points of a wire that is led over ``points``, which are level or upright with each other."""
    way = [start, *points, end]
    for one, other in itertools.pairwise(way):
        for t in (step / 60 for step in range(1, 60)):
            yield tuple(t * a + (1 - t) * b for a, b in zip(one, other, strict=True))


@each_workflow
def test_no_wire_passes_behind_a_node(path):
    """Those that would are led around, over the groups or between two nodes."""
    workflow = json.loads(path.read_text())
    nodes = {node["id"]: node for node in workflow["nodes"]}
    points = {one["id"]: one for one in workflow["extra"].get("reroutes", [])}
    led = {one["id"]: one["parentId"] for one in workflow["extra"].get("linkExtensions", [])}
    for link, source, output, target, slot, _ in workflow["links"]:
        start = _socket(nodes[source], "outputs", output)
        end = _socket(nodes[target], "inputs", slot)
        way, at = [], led.get(link)
        while at:
            assert link in points[at]["linkIds"]
            way.insert(0, points[at]["pos"])
            at = points[at].get("parentId")
        for node in nodes.values():
            (x, y), (width, height) = node["pos"], node["size"]
            for px, py in _way(start, way, end) if way else _curve(start, end):
                behind = x + 6 < px < x + width - 6 and y - 26 < py < y + height - 4
                assert not behind, f"the wire {link} passes behind {node['type']}"


def test_an_older_comfyui_is_told_so_in_one_sentence(monkeypatch):
    old = types.ModuleType("comfyui_version")
    old.__version__ = "0.15.1"
    monkeypatch.setitem(sys.modules, "comfyui_version", old)
    monkeypatch.delitem(sys.modules, "mmada_parallel.nodes", raising=False)
    with pytest.raises(ImportError, match="needs ComfyUI 0.16.0 or newer; this is 0.15.1"):
        importlib.import_module("mmada_parallel.nodes")


def luminance(colour):
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in colour]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one, other):
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@each_workflow
def test_group_titles_are_as_legible_as_the_page_can_draw_them(path):
    """Both renderers write a title in the group's colour on two layers of it, of an opacity of a
    quarter each, over the canvas: 2.15:1 is the most that one colour has in both themes."""
    for group in json.loads(path.read_text())["groups"]:
        colour = [int(group["color"][i : i + 2], 16) / 255 for i in (1, 3, 5)]
        for canvas in (0x14 / 255, 0xD3 / 255):  # the page's dark and light theme
            behind = [0.4375 * c + 0.5625 * canvas for c in colour]
            assert contrast(colour, behind) >= 2.1, group["title"]


@each_workflow
def test_notes_are_drawn_as_the_page_draws_text(path):
    """In the page's newer renderer code in a line has a contrast of 1.5:1, a link, or text on a
    coloured note, less than 4.5:1 in one of the themes."""
    for node in json.loads(path.read_text())["nodes"]:
        if node["type"] == "MarkdownNote":
            outside = re.sub(r"```.*?```", "", node["widgets_values"][0], flags=re.DOTALL)
            assert "`" not in outside and "](" not in outside
            assert "color" not in node and "bgcolor" not in node
