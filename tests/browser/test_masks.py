"""What Encode Instruction says and shows of a mask, in the page."""

import json

import pytest
from mmada_parallel.tests.browser.test_refusals import TOASTS
from mmada_parallel.tests.workflow_api import WORKFLOWS

ENCODE = "MMaDAParallelEncodeInstruction"
INPAINT = next(path for path in WORKFLOWS if path.stem == "Inpaint")
SHOWN = """type => {
    const node = app.graph.nodes.find(n => n.type === type)
    const text = node.widgets.find(w => w.name === 'shown_text')
    const names = node.widgets.map(w => w.name)
    return { text: text?.value ?? null, pictures: node.imgs?.length ?? 0, names }
}"""
ALONE = "id => app.queuePrompt(0, 1, [id])"


@pytest.mark.parametrize(
    "vue",
    [False, pytest.param(True, marks=(pytest.mark.slow, pytest.mark.exhaustive))],
    ids=["canvas", "vue"],
)
def test_a_mask_is_shown_before_anything_is_denoised(comfy_page, vue):
    workflow = json.loads(INPAINT.read_text())
    comfy_page.open(vue=vue)
    comfy_page.load(workflow, "mask")
    encode = next(n for n in workflow["nodes"] if n["type"] == ENCODE)
    node = str(encode["id"])
    assert comfy_page.page.evaluate(SHOWN, ENCODE)["text"] is None
    comfy_page.page.evaluate("() => { heard.length = 0 }")
    comfy_page.page.evaluate(ALONE, node)
    assert comfy_page.wait_for_end() == "execution_success"
    comfy_page.screenshot(f"mask-{'vue' if vue else 'canvas'}")
    shown = comfy_page.page.evaluate(SHOWN, ENCODE)
    assert "6 of 64 image tokens are drawn anew" in shown["text"]
    assert vue or shown["pictures"] == 1
    assert "b_preview_with_metadata" not in comfy_page.page.evaluate("() => heard")
    saved = comfy_page.page.evaluate(
        "id => app.graph.serialize().nodes.find(n => String(n.id) === id).widgets_values", node
    )
    assert len(saved) == len(encode["widgets_values"])
    assert comfy_page.complaints() == [] and comfy_page.script_errors == []


@pytest.mark.slow
@pytest.mark.exhaustive
def test_a_mistake_is_refused_when_queued_on_the_node(comfy_page):
    workflow = json.loads(INPAINT.read_text())
    for node in workflow["nodes"]:
        if node["type"] == ENCODE:
            node["widgets_values"][0] = " "
    comfy_page.open()
    comfy_page.load(workflow, "mistake")
    comfy_page.queue()
    comfy_page.page.wait_for_function("() => Object.keys(app.lastNodeErrors ?? {}).length > 0")
    comfy_page.screenshot("mistake")
    errors = comfy_page.page.evaluate("() => app.lastNodeErrors")
    ((_, problem),) = errors.items()
    assert problem["class_type"] == ENCODE
    # ComfyUI repeats what a node refuses for each input that the node checks.
    (refused,) = {error["details"].partition(" - ")[2] for error in problem["errors"]}
    assert refused.startswith("The instruction is empty")
    comfy_page.page.wait_for_timeout(1000)
    sentence = comfy_page.page.evaluate(SHOWN, ENCODE)["text"]
    assert sentence == refused
    assert sentence in comfy_page.page.evaluate(TOASTS)
