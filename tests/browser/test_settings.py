"""The page fills in what a profile stands for, and shows what comes in at a linked widget."""

import json

import pytest
from mmada_parallel.tests.hosts import PACK_ROOT
from mmada_parallel.tests.workflow_api import of_demo

OLD = PACK_ROOT / "tests" / "comfyui" / "old_workflows" / "0.1.0"
WATCH = PACK_ROOT / "workflows" / "Watch it think.json"
DENOISE, ENCODE = "MMaDAParallelDenoise", "MMaDAParallelEncodeInstruction"
PARARL = "MMaDAParallelParaRLFinetune"
VALUES = """type => Object.fromEntries(app.graph.nodes.findLast((node) => node.type === type)
    .widgets.map(({ name, value }) => [name, value]))"""
HIDDEN = """() => app.graph.nodes.findLast((node) => node.type === 'MMaDAParallelEncodeInstruction')
    .widgets.filter((widget) => widget.hidden).map(({ name }) => name)"""
SET = """([type, name, value]) => {
    const node = app.graph.nodes.findLast((node) => node.type === type)
    const widget = node.widgets.find((one) => one.name === name)
    widget.value = value
    widget.callback?.(value)
}"""
ADD = """type => {
    const node = LiteGraph.createNode(type)
    node.pos = [1200, 900]
    app.graph.add(node)
}"""
CONNECT = """() => {
    const [loader, node] = ['MMaDAParallelLoader', 'MMaDAParallelDenoise'].map(
        (type) => app.graph.nodes.findLast((node) => node.type === type))
    loader.connect(0, node, node.inputs.findIndex(({ name }) => name === 'model'))
}"""
SCENE = "MMaDAParallelDemoScene"
NEW_WORLD = """() => {
    const node = LiteGraph.createNode('MMaDAParallelDemoScene')
    return node.widgets.find(({ name }) => name === 'world').value
}"""


EXHAUSTIVE = pytest.mark.exhaustive


@pytest.mark.parametrize(
    "comfy", ["current", pytest.param("oldest", marks=EXHAUSTIVE)], indirect=True
)
@pytest.mark.parametrize(
    "vue", [pytest.param(False, marks=EXHAUSTIVE), True], ids=["canvas", "vue"]
)
def test_a_profile_fills_the_numbers_and_a_link_shows_what_comes_in(comfy_page, vue):
    page, values = comfy_page.page, lambda node: comfy_page.page.evaluate(VALUES, node)

    def choose(node, name, value, settle=700):
        page.evaluate(SET, [node, name, value])
        page.wait_for_timeout(settle)

    comfy_page.open(vue=vue)
    comfy_page.load(json.loads((OLD / "Train by rewards.json").read_text()), "old training")
    assert (values(PARARL)["joint_guidance"], values(PARARL)["reward_at"]) == (0, "trajectory")
    page.evaluate(ADD, PARARL)
    assert (values(PARARL)["joint_guidance"], values(PARARL)["reward_at"]) == (3.5, "gain")
    comfy_page.load(json.loads((OLD / "Edit an image.json").read_text()), "old")
    kept = values(DENOISE)
    assert (kept["profile"], kept["text_steps"], kept["joint_guidance"]) == ("own values", 0, -1)
    assert (values(SCENE)["world"], page.evaluate(NEW_WORLD)) == ("demo", "picture-book")
    assert values(ENCODE)["size"] == "automatic"
    assert page.evaluate(HIDDEN) == ["width", "height", "text_length"]

    comfy_page.load(of_demo(json.loads(WATCH.read_text())), "linked")
    assert values(ENCODE)["instruction"] == "[from Demo Scene]"
    page.evaluate(ADD, DENOISE)
    new = values(DENOISE)
    assert new["profile"] == "recommended"
    assert (new["text_steps"], new["image_steps"], new["joint_guidance"]) == (128, 30, 3.5)
    page.evaluate(CONNECT)
    choose(DENOISE, "profile", "reference")
    reference = values(DENOISE)
    assert (reference["image_steps"], reference["image_guidance"]) == (64, 4)
    assert (reference["joint_guidance"], reference["preset"]) == (0, "upstream")
    choose(DENOISE, "profile", "quick look")
    assert (values(DENOISE)["text_steps"], values(DENOISE)["preset"]) == (32, "corrected")
    choose(DENOISE, "text_steps", 40)
    assert (values(DENOISE)["profile"], values(DENOISE)["image_steps"]) == ("own values", 8)
    choose(ENCODE, "size", "own values")
    assert page.evaluate(HIDDEN) == []
    assert (values(ENCODE)["width"], values(ENCODE)["height"]) == (128, 128)
    comfy_page.screenshot(f"settings-{'vue' if vue else 'canvas'}")

    page.evaluate("() => app.graph.remove(app.graph.nodes.at(-1))")
    choose(ENCODE, "size", "automatic")
    comfy_page.queue()
    assert comfy_page.wait_for_end() == "execution_success"
    instruction = values(ENCODE)["instruction"]
    assert instruction == values("MMaDAParallelDemoScene")["shown_text"] != ""
    comfy_page.screenshot(f"settings-run-{'vue' if vue else 'canvas'}")
    assert comfy_page.script_errors == []
