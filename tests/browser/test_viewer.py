"""The viewer on Parallel Denoise: text and picture while it runs, its recorded steps afterwards."""

import json

import pytest
from mmada_parallel.tests.browser.conftest import serve_page
from mmada_parallel.tests.front_ends import NEWEST
from mmada_parallel.tests.hosts import PACK_ROOT
from mmada_parallel.tests.workflow_api import of_demo

WORKFLOW = of_demo(json.loads((PACK_ROOT / "workflows" / "Edit an image.json").read_text()))
NODE = "4"
RESENT_SINCE = (0, 19)
"""From this ComfyUI on a cached node's data is sent again."""
VIEWER = """const found = app.canvas.graph.nodes.find((node) => String(node.id) === id)
    const viewer = found.widgets.find((widget) => widget.type === 'denoise_viewer').element
    const range = viewer.querySelector('input'), canvas = viewer.querySelector('canvas')
    const count = (state) => viewer.querySelectorAll(`.words .${state}`).length"""
STATE = f"""(id) => {{
    {VIEWER}
    return {{
        text: viewer.querySelector('.words').innerText.trim(),
        masked: count('masked'), fresh: count('new'), unmasked: count('unmasked'),
        label: viewer.querySelector('output').textContent,
        step: range.valueAsNumber, last: Number(range.max),
        choosing: range.checkVisibility() && !range.disabled,
        picture: canvas.checkVisibility() ? canvas.toDataURL() : null,
        width: found.size[0], height: viewer.offsetHeight,
        note: viewer.querySelector('.note').innerText.trim(),
        stops: viewer.querySelector('.stop').checkVisibility(),
        goesOn: viewer.querySelector('.go-on').checkVisibility(),
        which: viewer.querySelector('.samples').checkVisibility()
            ? viewer.querySelector('.samples').innerText : null,
        samples: viewer.querySelector('select').checkVisibility()
            ? [...viewer.querySelectorAll('option')].map((option) => option.textContent) : [],
    }}
}}"""
RUNNING = f"""(id) => {{
    {VIEWER}
    return range.disabled && canvas.checkVisibility() && count('masked') && count('new')
}}"""
HAS_STEPPED = f"""([id, steps]) => {{
    {VIEWER}
    return range.disabled && viewer.querySelector('.stop').checkVisibility()
        && range.valueAsNumber >= steps
}}"""
CHOOSE = f"""([id, place]) => {{
    {VIEWER}
    const select = viewer.querySelector('select')
    select.selectedIndex = place
    select.dispatchEvent(new Event('change'))
}}"""
SLOW = """() => app.graph.nodes.flatMap((node) => node.widgets ?? [])
    .filter((widget) => ['text_steps', 'image_steps'].includes(widget.name))
    .forEach((widget) => widget.value = 60)"""
FOCUS = f"(id) => {{ {VIEWER}; range.focus() }}"
SELECT = """(ids) => app.canvas.selectItems(
    app.canvas.graph.nodes.filter((node) => ids.includes(String(node.id))))"""
SET_BATCHES = """(size) => app.graph.nodes.flatMap((node) => node.widgets ?? [])
    .filter((widget) => widget.name === 'batch_size').forEach((widget) => widget.value = size)"""
ADD_TWIN = """() => {
    const add = (type, x, y) => {
        const node = LiteGraph.createNode(type)
        app.graph.add(node)
        node.pos = [x, y]
        return node
    }
    const [loader, encode] = [1, 3].map((id) => app.graph.getNodeById(id))
    const twin = add('MMaDAParallelDenoise', 860, 760)
    const text = add('MMaDAParallelDecodeText', 1320, 760)
    loader.connect(0, twin, 0)
    encode.connect(0, twin, 1)
    loader.connect(0, text, 0)
    twin.connect(0, text, 1)
    twin.widgets.find((widget) => widget.name === 'seed').value = 77
    return String(twin.id)
}"""
INTO_SUBGRAPH = """(id) => {
    const node = app.graph.getNodeById(id)
    const { subgraph } = app.graph.convertToSubgraph(new Set([node]))
    app.canvas.setGraph(subgraph)
}"""
OWN_PICTURES = """() => [...document.querySelectorAll("[data-testid^='node-body-'] > img")]
    .filter((image) => image.checkVisibility()).length"""
WIDGET_NAMES = """(id) => app.graph.getNodeById(id).widgets.map((widget) => widget.name)"""
SHOWS_LIVE_TEXT = """(id) => app.graph.getNodeById(id).widgets.some((widget) =>
    widget.name === '$$node-text-preview' && widget.value)"""
MOVE = """(id) => {
    app.canvas.emitBeforeChange?.()
    app.graph.getNodeById(id).pos[0] += 60
    app.canvas.emitAfterChange?.()
    app.extensionManager.workflow.activeWorkflow.changeTracker.checkState()
}"""
COPY = """(id) => {
    const old = new Set(app.graph.nodes.map((node) => node.id))
    app.canvas.copyToClipboard(new Set([app.graph.getNodeById(id)]))
    app.canvas.pasteFromClipboard()
    return String(app.graph.nodes.find((node) => !old.has(node.id)).id)
}"""
SCALE = "() => app.canvas.ds.scale"
OFFSET = "() => [...app.canvas.ds.offset]"
both_renderers = pytest.mark.parametrize("renderer", ["canvas", "vue"])


EXHAUSTIVE = (pytest.mark.slow, pytest.mark.exhaustive)


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(("oldest", None), marks=EXHAUSTIVE),
        pytest.param(("current", None), marks=EXHAUSTIVE),
        pytest.param(("current", "1.55.18"), marks=EXHAUSTIVE),
        pytest.param(("current", "1.58.1"), marks=EXHAUSTIVE),
        ("current", NEWEST),
    ],
    ids=lambda param: "-".join(filter(None, param)),
)
def comfy(request, tmp_path_factory):
    """ComfyUI with front ends from the oldest supported one to the newest that there is."""
    yield from serve_page(*request.param, tmp_path_factory)


class ViewerPage:
    """ComfyUI's page with the viewers of its Parallel Denoise nodes."""

    def __init__(self, comfy_page):
        self.comfy, self.page = comfy_page, comfy_page.page

    def open(self, renderer):
        self.comfy.open(vue=renderer == "vue")
        self.comfy.load(WORKFLOW, "viewer")

    def state(self, node=NODE):
        return self.page.evaluate(STATE, node)

    def texts(self):
        """What Demo Scene and Decode Text show."""
        return [self.comfy.widget_value(node, "shown_text") for node in ("2", "5")]

    def kept_texts(self):
        """What the page itself holds of these nodes' results."""
        self.page.wait_for_function("['2', '5'].every((id) => app.nodeOutputs[id]?.text)")
        return self.page.evaluate("() => ['2', '5'].map((id) => app.nodeOutputs[id].text[0])")

    def run(self):
        self.comfy.queue()
        assert self.comfy.wait_for_end() == "execution_success"

    def press(self, key, node=NODE):
        """A key on the scrubber."""
        self.page.evaluate(FOCUS, node)
        self.page.keyboard.press(key)

    def close_up(self, name, *nodes):
        self.page.evaluate(SELECT, list(nodes or [NODE]))
        self.comfy.screenshot(f"viewer-{name}")

    def check_result(self, node=NODE):
        """The finished run is shown, its last step chosen."""
        state = self.state(node)
        assert state["choosing"] and state["step"] == state["last"] >= 7
        first, _, total = state["label"].removeprefix("step ").partition(" / ")
        assert first == total and state["masked"] == 0 and state["picture"]
        return state

    def check_no_complaints(self):
        assert self.comfy.complaints() == []
        assert self.comfy.script_errors == []


@pytest.fixture
def viewer(comfy_page):
    return ViewerPage(comfy_page)


@both_renderers
def test_it_shows_the_run_and_then_its_steps(viewer, renderer):
    viewer.open(renderer)
    viewer.close_up(f"{renderer}-opened")
    viewer.comfy.reseed()
    viewer.page.evaluate(SET_BATCHES, 8)  # slow enough for a picture of the running node
    widgets = viewer.page.evaluate(WIDGET_NAMES, NODE)
    viewer.comfy.queue()
    viewer.page.wait_for_function(RUNNING, arg=NODE)
    viewer.close_up(f"{renderer}-running")
    assert viewer.comfy.wait_for_end() == "execution_success"
    assert viewer.page.evaluate(WIDGET_NAMES, NODE) == widgets  # no second text from the page
    viewer.close_up(f"{renderer}-done")
    end = viewer.check_result()
    viewer.press("Home")
    start = viewer.state()
    assert start["step"] == 0 and start["masked"] > end["masked"]
    assert start["picture"] != end["picture"]
    steps = [start]
    while steps[-1]["step"] < end["last"]:
        if steps[-1]["step"] == end["last"] // 2:
            viewer.close_up(f"{renderer}-halfway")
        viewer.press("ArrowRight")
        steps.append(viewer.state())
    masked = [step["masked"] for step in steps]
    assert masked == sorted(masked, reverse=True) and len(set(masked)) > 2
    assert any(step["fresh"] for step in steps[1:-1])  # a step may decide blanks alone
    assert viewer.page.evaluate(OWN_PICTURES) == 0
    viewer.check_no_complaints()


@both_renderers
def test_a_graph_from_file_shows_its_run_and_a_cached_one(viewer, renderer):
    viewer.open(renderer)
    viewer.comfy.reseed()
    viewer.run()
    before = viewer.check_result()
    saved = viewer.page.evaluate("() => app.graph.serialize()")
    (node,) = [node for node in saved["nodes"] if str(node["id"]) == NODE]
    assert len(node["widgets_values"]) == len(viewer.page.evaluate(WIDGET_NAMES, NODE)) - 1
    viewer.comfy.load(saved, "from file")
    assert not viewer.state()["choosing"]
    viewer.run()
    if tuple(map(int, viewer.comfy.server.host.version.split("."))) >= RESENT_SINCE:
        again = viewer.check_result()
        assert (again["text"], again["picture"]) == (before["text"], before["picture"])
    viewer.comfy.reseed()
    viewer.run()
    viewer.check_result()
    viewer.check_no_complaints()


@both_renderers
def test_two_nodes_show_each_its_own(viewer, renderer):
    viewer.open(renderer)
    twin = viewer.page.evaluate(ADD_TWIN)
    viewer.comfy.reseed()
    viewer.run()
    viewer.close_up(f"{renderer}-two", NODE, twin)
    shown, other = viewer.check_result(), viewer.check_result(twin)
    assert shown["picture"] != other["picture"]
    viewer.press("Home", twin)
    assert viewer.state() == shown and viewer.state(twin)["masked"] > other["masked"]
    viewer.check_no_complaints()


@both_renderers
def test_inside_a_subgraph_too(viewer, renderer):
    viewer.open(renderer)
    viewer.comfy.reseed()
    viewer.page.evaluate(INTO_SUBGRAPH, NODE)
    viewer.run()
    viewer.close_up(f"{renderer}-subgraph")
    viewer.check_result()


@both_renderers
def test_what_is_shown_stays(viewer, renderer):
    """After the run, a second one, another tab, a change undone, a copy, the other renderer, and
    with the page loaded anew: in the viewer and on the nodes that show a text."""
    viewer.open(renderer)
    for _ in range(2):
        viewer.comfy.reseed()
        viewer.run()
        viewer.page.wait_for_timeout(3000)  # newer pages clear a node's live text after a run
        viewer.close_up(f"{renderer}-three-seconds-later")
        viewer.check_result()
    before, texts = viewer.check_result(), viewer.texts()
    assert all(texts) and before["text"] in texts[-1]
    viewer.comfy.load(WORKFLOW, "another")
    assert not viewer.state()["choosing"] and not any(viewer.texts())
    viewer.comfy.run_command("Workspace.PreviousOpenedWorkflow")
    assert viewer.check_result() == before and viewer.texts() == viewer.kept_texts()
    if viewer.comfy.server.host.name != "oldest":  # whose page keeps Demo Scene's run before
        assert viewer.texts() == texts
    texts = viewer.texts()
    viewer.page.evaluate(MOVE, NODE)
    viewer.page.wait_for_timeout(500)
    viewer.comfy.run_command("Comfy.Undo")
    assert viewer.check_result()["text"] == before["text"] and viewer.texts() == texts
    copy = viewer.page.evaluate(COPY, NODE)
    viewer.page.wait_for_timeout(500)
    assert not viewer.state(copy)["choosing"] and "appear here" in viewer.state(copy)["text"]
    assert viewer.check_result()["text"] == before["text"]
    for vue in (renderer != "vue", renderer == "vue"):
        viewer.comfy.show_in(vue=vue)
        assert viewer.check_result()["text"] == before["text"] and viewer.texts() == texts
    viewer.page.reload()
    viewer.comfy.wait_until_ready()
    viewer.comfy.load(WORKFLOW, "reloaded")
    assert not viewer.state()["choosing"]
    viewer.run()
    viewer.page.wait_for_timeout(3000)
    viewer.check_result()
    viewer.check_no_complaints()


@both_renderers
def test_the_canvas_moves_under_it(viewer, renderer):
    viewer.open(renderer)
    viewer.close_up(f"{renderer}-before-moving")
    box = viewer.page.locator(".mmada-viewer").bounding_box()
    middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 3
    viewer.page.mouse.move(*middle)
    before = viewer.page.evaluate(SCALE)
    viewer.page.mouse.wheel(0, -120)
    viewer.page.wait_for_timeout(300)
    assert viewer.page.evaluate(SCALE) > before
    start = viewer.page.evaluate(OFFSET)
    viewer.page.mouse.down(button="middle")
    viewer.page.mouse.move(middle[0] + 40, middle[1] + 10, steps=4)
    viewer.page.mouse.up(button="middle")
    viewer.page.wait_for_timeout(300)
    moved = viewer.page.evaluate(OFFSET)
    assert moved[0] > start[0] and moved[1] > start[1]


def test_the_slider_keeps_its_own_keys_alone(viewer):
    viewer.open("canvas")
    viewer.comfy.reseed()
    viewer.run()
    viewer.page.evaluate("() => { heard.length = 0 }")
    viewer.press("ArrowLeft")
    assert viewer.state()["step"] == viewer.state()["last"] - 1
    viewer.press("Control+Enter")  # the page's own: run
    viewer.comfy.wait_for_message("execution_success")


def test_words_without_pictures_when_the_server_has_lost_the_file(viewer):
    viewer.open("canvas")
    viewer.page.route("**/view?filename=mmada_parallel_*", lambda route: route.fulfill(status=404))
    viewer.comfy.reseed()
    viewer.run()
    state = viewer.state()
    assert state["choosing"] and state["unmasked"] and state["picture"] is None
    viewer.check_no_complaints()


@both_renderers
def test_without_the_extension_the_page_shows_text_and_picture_itself(viewer, renderer):
    viewer.page.route("**/denoise_viewer.js*", lambda route: route.abort())
    viewer.open(renderer)
    viewer.comfy.reseed()
    viewer.comfy.queue()
    viewer.comfy.wait_for_message("b_preview_with_metadata")
    viewer.page.wait_for_function(SHOWS_LIVE_TEXT, arg=NODE)
    assert viewer.comfy.wait_for_end() == "execution_success"
    viewer.close_up(f"{renderer}-without")
    assert viewer.page.evaluate("() => document.querySelector('.mmada-viewer')") is None


@pytest.mark.exhaustive
def test_the_side_panel_leaves_the_viewer_as_wide_as_its_node(comfy_page):
    """The panel draws widgets in its own width, and sets that on them."""
    comfy_page.open()
    comfy_page.load(WORKFLOW, "panel")
    widths = comfy_page.page.evaluate(
        """async (id) => {
            const node = app.graph.nodes.find((one) => String(one.id) === id)
            const widget = node.widgets.find(({ type }) => type === 'denoise_viewer')
            const before = widget.element.offsetWidth
            widget.width = 120
            app.canvas.setDirty(true, true)
            await new Promise((done) => setTimeout(done, 500))
            return [before, widget.element.offsetWidth]
        }""",
        NODE,
    )
    assert widths[0] == widths[1] > 300
