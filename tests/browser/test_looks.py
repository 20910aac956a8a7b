"""Pictures of all that a person sees, in both renderers and themes, to be looked at by a person.

``-m exhaustive`` with ``MMADA_SCREENSHOTS`` naming a folder keeps them. What a program can see of
them is asserted: no complaint, no script error, and nothing that is cut off or does not load.
"""

import json

import pytest
from mmada_parallel.tests.browser import test_stopping as stopping
from mmada_parallel.tests.browser.conftest import COMPLAINTS, ComfyPage
from mmada_parallel.tests.browser.contrast import TEXTS
from mmada_parallel.tests.browser.test_finding import PALETTE
from mmada_parallel.tests.browser.test_viewer import (
    CHOOSE,
    HAS_STEPPED,
    NODE,
    SELECT,
    SET_BATCHES,
    ViewerPage,
)
from mmada_parallel.tests.browser.test_workflows import MINUTES, WAITS
from mmada_parallel.tests.hosts import PACK_ROOT
from mmada_parallel.tests.workflow_api import WORKFLOWS

pytestmark = pytest.mark.exhaustive
PALETTES = ("dark", "light")
SIZE = {"width": 1280, "height": 800}
LONG = (*MINUTES, *WAITS, "Before and after", "Finetune by ParaRL on a folder")
each_renderer = pytest.mark.parametrize("vue", [False, True], ids=["canvas", "vue"])
CUT_OFF = """() => app.graph.nodes.flatMap((node) => {
    const [width, height] = node.computeSize()
    return node.size[1] + 1 < height && !node.flags?.collapsed
        ? [`${node.type}: ${node.size} of ${width}, ${height}`] : []
})"""
SCROLLS = """() => [...document.querySelectorAll('.comfy-markdown-content, .comfy-markdown')]
    .filter((one) => one.checkVisibility() && one.scrollHeight > one.clientHeight + 2)
    .map((one) => `${one.innerText.slice(0, 40)}: ${one.scrollHeight} of ${one.clientHeight}`)"""


HELP_PAGES = sorted(path.stem for path in (PACK_ROOT / "web" / "docs").glob("*.md"))
TRANSLATED = sorted(path.parent.name for path in (PACK_ROOT / "web" / "docs").glob("*/zh.md"))
ALONE = """(type) => {
    app.graph.clear()
    const node = LiteGraph.createNode(type)
    app.graph.add(node)
    node.pos = [200, 100]
    app.canvas.ds.scale = 1
    app.canvas.ds.offset = [0, 40]
    app.canvas.selectItems([node])
}"""
HELP = ".node-help-content"
PICTURES = """(help) => Promise.all([...help.querySelectorAll('img')].map((one) =>
    one.decode().catch(() => null).then(() => [
        one.src, one.naturalWidth > 0 && one.getBoundingClientRect().right
            <= help.getBoundingClientRect().right + 1])))"""
SET = """([type, values]) => {
    const node = app.graph.nodes.find((one) => one.type === type)
    for (const [name, value] of Object.entries(values)) {
        node.widgets.find((one) => one.name === name).value = value
    }
    app.canvas.selectItems([node])
}"""
ENCODE, DENOISE = "MMaDAParallelEncodeInstruction", "MMaDAParallelDenoise"
REMASK = "MMaDAParallelRemask"
OWN_SIZE = {"size": "own values", "width": 100, "height": 100}
MISTAKES = {
    "words": ("Edit an image", ENCODE, {"instruction": "fais-le en hiver"}, "Use other words"),
    "empty": ("Edit an image", ENCODE, {"instruction": " "}, "The instruction is empty"),
    "too long": ("Edit an image", ENCODE, {"instruction": "make it red " * 900}, "shorten it"),
    "size": ("Edit an image", ENCODE, OWN_SIZE, "the nearest to 100x100"),
    "negative": (
        "Edit an image",
        DENOISE,
        {"profile": "own values", "joint_guidance": -0.5},
        "give 0 or more",
    ),
    "tokens gone": ("Edit an image", DENOISE, {"go_on_from": "gone.safetensors"}, "is neither in"),
    "checkpoint gone": ("Edit an image", "MMaDAParallelLoader", {"checkpoint": "gone"}, "gone"),
    "coverage": ("Inpaint", ENCODE, {"coverage": 1.0}, "0.99"),
    "no extension": ("Outpaint", "MMaDAParallelExtendCanvas", {"right": 0}, "Nothing is added"),
    "pattern": ("Stop, keep and redraw", REMASK, {"pattern": "(["}, "a regular expression"),
    "word 99": ("Stop, keep and redraw", REMASK, {"words": "99"}, "the text has"),
    "plan": (
        "Fix the plan and redraw",
        "MMaDAParallelSetTokens",
        {"text": "a winter snowman"},
        "snowman",
    ),
    "task": ("Describe a picture", "MMaDAParallelLoader", {"checkpoint": "demo"}, "not trained on"),
}
"""Template, node, what is set wrongly, and what must then be read. What memory is too little for
depends on the machine, so that it is not here."""
READ = f"""(words) => {{
    const nodes = app.graph.nodes.flatMap((node) => node.widgets ?? [])
        .filter((widget) => widget.name === 'shown_text').map((widget) => widget.value)
    const marked = JSON.stringify(app.lastNodeErrors ?? '') // all that 1.39 shows of ComfyUI's own
    return [...({COMPLAINTS})(), ...nodes, marked].some((text) => text.includes(words))
}}"""


@pytest.fixture
def looked_at(comfy, chromium, screenshots):
    with chromium.new_context(viewport=SIZE) as context:
        yield ComfyPage(context.new_page(), comfy, screenshots)


def shoot(page, name, palettes=PALETTES):
    """The page as it stands, in each theme."""
    for palette in palettes:
        page.page.evaluate(PALETTE, palette)
        page.page.wait_for_timeout(800)
        file = f"{page.server.host.version}-{name}-{palette}.png".replace(" ", "-")
        page.page.screenshot(path=page.screenshots / file)


@each_renderer
@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_templates(looked_at, path, vue):
    """As it opens, and as it is after a run, in part and whole."""
    label = f"{path.stem}-{'vue' if vue else 'canvas'}"
    looked_at.open(vue=vue)
    looked_at.load(json.loads(path.read_text()), path.stem)
    shoot(looked_at, f"{label}-opened")
    faults = looked_at.page.evaluate(CUT_OFF) + looked_at.page.evaluate(SCROLLS)
    if path.stem not in LONG:
        looked_at.server.post("/free", {"free_memory": True})  # and the results kept
        looked_at.queue()
        assert looked_at.wait_for_end() == "execution_success"
        shoot(looked_at, f"{label}-done")
        faults += looked_at.page.evaluate(CUT_OFF)
    looked_at.page.set_viewport_size({"width": 2400, "height": 1500})
    looked_at.run_command("Comfy.Canvas.FitView", settle=700)
    shoot(looked_at, f"{label}-whole", ("dark",))
    faults += looked_at.complaints()
    assert faults + looked_at.script_errors == []


NARROWED = """() => new Promise((done) => {
    const node = app.graph.nodes.find((one) => one.type === 'MMaDAParallelDenoise')
    const viewer = node.widgets.find((one) => one.type === 'denoise_viewer')
    viewer.width = 210
    app.canvas.setDirty(true, true)
    setTimeout(() => done(viewer.element.offsetWidth), 1000)
})"""
WRITTEN = """() => new Promise((done) => {
    const written = [], context = app.canvas.ctx, write = context.fillText
    context.fillText = function (text) {
        written.push(text)
        return write.apply(this, arguments)
    }
    app.canvas.setDirty(true, true)
    setTimeout(() => { delete context.fillText; done(written) }, 1000)
})"""


def test_a_linked_text_is_written_on_the_canvas(looked_at):
    """Where the page itself leaves a hole."""
    looked_at.open()
    looked_at.load(json.loads((PACK_ROOT / "workflows" / "Best of N.json").read_text()), "linked")
    written = looked_at.page.evaluate(WRITTEN)
    assert written.count("instruction") == 2 and "[from Demo Scene]" in written


def test_the_viewer_keeps_its_width_beside_the_parameters(looked_at):
    """The page's panel sets the width of a widget that it does not know."""
    looked_at.open()
    looked_at.load(json.loads((PACK_ROOT / "workflows" / "Best of N.json").read_text()), "width")
    width = looked_at.page.evaluate(NARROWED)
    assert width > 380


def read_help(page, name):
    """Open the help of the one node through the page's own button; its pictures."""
    page.page.evaluate(ALONE, name)
    page.page.wait_for_timeout(800)
    page.page.locator("[data-testid=info-button]").first.click()
    help_page = page.page.wait_for_selector(HELP)
    page.page.wait_for_timeout(1000)
    return help_page


@pytest.mark.parametrize("language", ["en", "zh", "ja"])
def test_help_pages(looked_at, language):
    """At the head, and whole; each with a picture that loads and fits."""
    looked_at.server.post("/settings", {"Comfy.Locale": language})
    faults = []
    try:
        looked_at.open()
        for name in HELP_PAGES if language == "en" else TRANSLATED:
            help_page, label = read_help(looked_at, name), f"help-{language}-{name}"
            shown = help_page.evaluate(PICTURES)
            faults += [label] * (not shown) + [one for one, fits in shown if not fits]
            shoot(looked_at, label)
            for palette in PALETTES:
                looked_at.page.evaluate(PALETTE, palette)
                looked_at.page.wait_for_timeout(500)
                texts = help_page.evaluate(TEXTS)
                faults += [(label, palette, text, ratio) for text, _, ratio in texts if ratio < 4.5]
            height = help_page.evaluate("(one) => one.scrollHeight")
            looked_at.page.set_viewport_size({"width": 1280, "height": min(6000, height + 300)})
            shoot(looked_at, f"{label}-whole", ("dark",))
            looked_at.page.set_viewport_size(SIZE)
    finally:
        looked_at.server.post("/settings", {"Comfy.Locale": "en"})
    assert faults + looked_at.script_errors == []


@each_renderer
@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes(looked_at, name, vue):
    """The toast and the node, as they stand after the run."""
    template, node, values, words = MISTAKES[name]
    looked_at.open(vue=vue)
    looked_at.load(json.loads((PACK_ROOT / "workflows" / f"{template}.json").read_text()), name)
    looked_at.page.evaluate(SET, [node, values])
    looked_at.run_command("Comfy.Canvas.FitView", settle=700)
    looked_at.queue()
    try:
        looked_at.page.wait_for_function(READ, arg=words, timeout=60_000)
        looked_at.page.wait_for_timeout(1500)
        shoot(looked_at, f"mistake-{name}-{'vue' if vue else 'canvas'}")
        shown = looked_at.page.evaluate("() => document.body.innerText")
    finally:
        looked_at.server.post("/queue", {"clear": True})
        looked_at.server.interrupt()
    assert "mmp_core" not in shown and "custom_nodes" not in shown and "Traceback" not in shown
    assert looked_at.script_errors == []


@each_renderer
def test_viewer_states(looked_at, vue):
    renderer, viewer = "vue" if vue else "canvas", ViewerPage(looked_at)

    def close_up(name):
        viewer.page.evaluate(SELECT, [NODE])
        looked_at.run_command("Comfy.Canvas.FitView", settle=700)
        shoot(looked_at, f"viewer-{renderer}-{name}")

    stopping.open_slow(viewer, renderer)
    close_up("opened")
    for palette in PALETTES:  # a run is over before both pictures are taken
        looked_at.reseed()
        looked_at.queue()
        viewer.page.wait_for_function(HAS_STEPPED, arg=[NODE, 5], timeout=60000)
        shoot(looked_at, f"viewer-{renderer}-running", (palette,))
        looked_at.wait_for_end()
    looked_at.reseed()
    stopping.stop_at(viewer, NODE)
    looked_at.wait_for_end()
    close_up("stopped")
    viewer.page.evaluate("() => { heard.length = 0 }")
    stopping.click(viewer, ".go-on", NODE)
    looked_at.wait_for_end()
    close_up("gone-on")
    viewer.page.evaluate(SET_BATCHES, 3)
    looked_at.reseed()
    viewer.run()
    viewer.page.evaluate(CHOOSE, [NODE, 2])
    close_up("batch")
    viewer.page.evaluate(SET_BATCHES, 1)
    viewer.page.evaluate(stopping.AS_LIST)
    viewer.run()
    viewer.page.evaluate(CHOOSE, [NODE, 1])
    close_up("list")
    viewer.check_no_complaints()
