"""Stopping a run in the viewer, going on with it, and choosing what is shown."""

import json

import pytest
from mmada_parallel.tests.browser.conftest import serve_page
from mmada_parallel.tests.browser.test_viewer import (
    CHOOSE,
    EXHAUSTIVE,
    HAS_STEPPED,
    NODE,
    SET_BATCHES,
    SLOW,
    WORKFLOW,
    ViewerPage,
    both_renderers,
)
from mmada_parallel.tests.front_ends import NEWEST
from mmada_parallel.tests.hosts import PACK_ROOT

KEEP = json.loads((PACK_ROOT / "workflows" / "Stop, keep and redraw.json").read_text())
FIRST, SECOND = "5", "15"
KEPT = "() => app.api.fetchApi('/object_info/MMaDAParallelLoadTokens').then((a) => a.json()) \
    .then((all) => all.MMaDAParallelLoadTokens.input.required.file) \
    .then(([kind, options]) => Array.isArray(kind) ? kind : options.options)"
POST = """(form) => app.api.fetchApi('/mmada_parallel/stop',
    {method: 'POST', body: new URLSearchParams(form)})
    .then(async (answer) => [answer.status, await answer.text()])"""
GO_ON_VALUE = """(id) => app.graph.getNodeById(id).widgets
    .find((widget) => widget.name === 'go_on_from').value"""


exhaustive = pytest.mark.exhaustive


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(("oldest", None), marks=EXHAUSTIVE),
        pytest.param(("current", "1.55.18"), marks=EXHAUSTIVE),
        ("current", NEWEST),
    ],
    ids=lambda param: "-".join(filter(None, param)),
)
def comfy(request, tmp_path_factory):
    yield from serve_page(*request.param, tmp_path_factory)


@pytest.fixture
def viewer(comfy_page):
    return ViewerPage(comfy_page)


def click(viewer, button, node):
    """A real click of the mouse on a button of the node's viewer."""
    place = viewer.page.evaluate(
        """([id, button]) => {
            const node = app.canvas.graph.nodes.find((one) => String(one.id) === id)
            const viewer = node.widgets.find((one) => one.type === 'denoise_viewer').element
            const box = viewer.querySelector(button).getBoundingClientRect()
            return [box.left + box.width / 2, box.top + box.height / 2]
        }""",
        [node, button],
    )
    viewer.page.mouse.click(*place)


def stop_at(viewer, node, steps=5):
    viewer.comfy.queue()
    viewer.page.wait_for_function(HAS_STEPPED, arg=[node, steps], timeout=60000)
    click(viewer, ".stop", node)


def open_slow(viewer, renderer, workflow=WORKFLOW):
    viewer.comfy.open(vue=renderer == "vue")
    viewer.comfy.load(workflow, "stopping")
    viewer.page.evaluate(SLOW)
    viewer.comfy.reseed()
    viewer.comfy.run_command("Comfy.Canvas.FitView", settle=700)


@exhaustive
@both_renderers
def test_stop_here_hands_on_what_is_there_and_go_on_finishes_it(viewer, renderer):
    open_slow(viewer, renderer)
    stop_at(viewer, NODE)
    assert viewer.comfy.wait_for_end() == "execution_success"
    viewer.close_up(f"{renderer}-stopped")
    half = viewer.state()
    step, _, total = half["label"].removeprefix("step ").partition(" / ")
    assert half["choosing"] and step == total and 5 <= int(total) < 90 and half["masked"]
    assert half["note"].startswith(f"Stopped after step {step} of ") and half["goesOn"]
    assert not half["stops"]
    assert "░" in viewer.comfy.widget_value("5", "shown_text") or half["masked"]
    kept = viewer.page.evaluate(KEPT)[0]
    assert kept.startswith("mmada_parallel_stopped_") and kept.endswith("[temp]")
    viewer.page.evaluate("() => { heard.length = 0 }")
    click(viewer, ".go-on", NODE)
    assert viewer.comfy.wait_for_end() == "execution_success"
    viewer.close_up(f"{renderer}-gone-on")
    end = viewer.check_result()
    assert end["note"].startswith("Recommended") and not end["goesOn"]
    assert viewer.page.evaluate(GO_ON_VALUE, int(NODE)) == ""  # for one run
    viewer.check_no_complaints()


@exhaustive
def test_a_stopped_run_is_not_taken_for_a_whole_one(viewer):
    open_slow(viewer, "canvas")
    stop_at(viewer, NODE)
    assert viewer.comfy.wait_for_end() == "execution_success"
    assert viewer.state()["masked"]
    viewer.run()  # the same graph
    whole = viewer.check_result()
    assert whole["text"] and whole["masked"] == 0


@exhaustive
@both_renderers
def test_an_interrupted_run_is_offered_again(viewer, renderer):
    open_slow(viewer, renderer)
    before = viewer.page.evaluate(KEPT)
    viewer.comfy.queue()
    viewer.page.wait_for_function(HAS_STEPPED, arg=[NODE, 5], timeout=60000)
    viewer.page.evaluate("() => app.api.interrupt()")
    assert viewer.comfy.wait_for_end() == "execution_interrupted"
    viewer.close_up(f"{renderer}-interrupted")
    state = viewer.state()
    assert state["goesOn"] and not state["stops"]
    assert state["note"].startswith("Stopped after step ")
    assert len(viewer.page.evaluate(KEPT)) == len(before) + 1
    viewer.page.evaluate("() => { heard.length = 0 }")
    click(viewer, ".go-on", NODE)
    assert viewer.comfy.wait_for_end() == "execution_success"
    viewer.check_result()


@exhaustive
def test_a_server_that_is_away_is_said_and_nothing_is_left_of_it(viewer):
    page = viewer.page
    open_slow(viewer, "canvas")
    page.route("**/mmada_parallel/stop", lambda route: route.abort())
    stop_at(viewer, NODE)
    noted = f"""() => app.graph.getNodeById({NODE}).widgets.find((one) => one.type ===
        'denoise_viewer').element.querySelector('.note').textContent.startsWith('no answer')"""
    page.wait_for_function(noted)
    page.unroute("**/mmada_parallel/stop")
    click(viewer, ".stop", NODE)  # is offered again
    assert viewer.comfy.wait_for_end() == "execution_success"
    assert viewer.state()["goesOn"]
    page.route("**/api/prompt", lambda route: route.abort())
    click(viewer, ".go-on", NODE)
    page.wait_for_timeout(2000)
    page.unroute("**/api/prompt")
    assert page.evaluate(GO_ON_VALUE, int(NODE)) == ""
    assert viewer.comfy.script_errors == []


@exhaustive
def test_what_cannot_be_stopped_is_refused_in_one_sentence(viewer):
    open_slow(viewer, "canvas")
    for form in ({}, {"client_id": "x"}, {"node": "4"}):
        status, text = viewer.page.evaluate(POST, form)
        assert status == 400 and text.endswith(".") and "\n" not in text
    status, text = viewer.page.evaluate(POST, {"client_id": "x", "node": "4"})
    assert status == 409 and "nothing to stop" in text
    stop_at(viewer, NODE)
    status, _ = viewer.page.evaluate(POST, {"client_id": "another page", "node": NODE})
    assert status == 409
    assert viewer.comfy.wait_for_end() == "execution_success"
    client = viewer.page.evaluate("() => app.api.clientId")
    assert viewer.page.evaluate(POST, {"client_id": client, "node": NODE})[0] == 409  # too late


def test_the_template_works_by_it(viewer):
    viewer.comfy.open()
    viewer.comfy.load(KEEP, "keep")
    viewer.comfy.run_command("Comfy.Canvas.FitView", settle=700)
    stop_at(viewer, FIRST)
    assert viewer.comfy.wait_for_end() == "execution_success"
    viewer.close_up("template-stopped", FIRST, SECOND)
    first, second = viewer.state(FIRST), viewer.state(SECOND)
    assert first["masked"] and first["goesOn"]
    assert second["masked"] == 0 and not second["goesOn"]
    assert second["note"].startswith("Recommended for MMaDA-Parallel-A")
    viewer.check_no_complaints()


@exhaustive
@both_renderers
def test_each_sample_of_a_batch_can_be_shown(viewer, renderer):
    open_slow(viewer, renderer)
    viewer.page.evaluate(SET_BATCHES, 3)
    viewer.comfy.queue()
    viewer.page.wait_for_function(HAS_STEPPED, arg=[NODE, 3], timeout=60000)
    assert viewer.state()["which"] == "sample 0 of 0 to 2"
    assert viewer.comfy.wait_for_end() == "execution_success"
    first = viewer.check_result()
    assert first["samples"] == ["sample 0", "sample 1", "sample 2"]
    pictures = {first["picture"]}
    for place in (1, 2):
        viewer.page.evaluate(CHOOSE, [NODE, place])
        viewer.page.wait_for_timeout(500)
        pictures.add(viewer.check_result()["picture"])
    viewer.close_up(f"{renderer}-third-sample")
    assert len(pictures) == 3
    viewer.press("Home")
    viewer.page.evaluate(CHOOSE, [NODE, 1])
    assert viewer.state()["step"] == 0  # the step stays
    viewer.check_no_complaints()


AS_LIST = """() => {
    const add = (type) => {
        const node = LiteGraph.createNode(type)
        app.graph.add(node)
        node.pos = [-900, 400]
        return node
    }
    const nodes = app.graph.nodes
    const [scene] = nodes.filter((node) => node.type === 'MMaDAParallelDemoScene')
    const [encode] = nodes.filter((node) => node.type === 'MMaDAParallelEncodeInstruction')
    const other = add('MMaDAParallelDemoScene')
    other.widgets.find((widget) => widget.name === 'seed').value = 900
    const batch = add('ImageBatch')
    const list = add('RebatchImages')
    scene.connect(0, batch, 0)
    other.connect(0, batch, 1)
    batch.connect(0, list, 0)
    list.connect(0, encode, encode.inputs.findIndex((input) => input.name === 'image'))
}"""


@exhaustive
@both_renderers
def test_each_item_of_a_list_can_be_shown_and_a_stop_ends_all(viewer, renderer):
    open_slow(viewer, renderer)
    viewer.page.evaluate(AS_LIST)
    viewer.run()
    first = viewer.check_result()
    assert first["samples"] == ["item 0", "item 1"]
    viewer.page.evaluate(CHOOSE, [NODE, 1])
    viewer.page.wait_for_timeout(500)
    assert viewer.check_result()["picture"] != first["picture"]
    viewer.comfy.reseed()
    stop_at(viewer, NODE)
    assert viewer.comfy.wait_for_end() == "execution_success"
    assert viewer.state()["note"].startswith("Stopped after step")
    viewer.page.evaluate(CHOOSE, [NODE, 1])
    second = viewer.state()
    assert second["label"] == "step 1 / 1" and second["goesOn"]
    viewer.close_up(f"{renderer}-list-stopped")
    viewer.page.evaluate("() => { heard.length = 0 }")
    click(viewer, ".go-on", NODE)
    assert viewer.comfy.wait_for_end() == "execution_success"
    for place in (0, 1):
        viewer.page.evaluate(CHOOSE, [NODE, place])
        assert viewer.check_result()["note"].startswith("Recommended")
    viewer.check_no_complaints()
