"""How the page shows what a node refuses while the graph runs."""

import json

import pytest
from mmada_parallel.tests.hosts import PACK_ROOT

WORKFLOW = json.loads((PACK_ROOT / "workflows" / "Edit an image.json").read_text())
ENCODE = "MMaDAParallelEncodeInstruction"
SET = """([type, text]) => {
    const node = app.graph.nodes.find((one) => one.type === type)
    node.widgets.find((one) => one.type === 'customtext').value = text
}"""
SHOWN = """type => app.graph.nodes.find((one) => one.type === type).widgets
    .find((one) => one.name === 'shown_text')?.value"""
TOASTS = "() => [...document.querySelectorAll('.p-toast-detail')].map((one) => one.innerText)"
NEGATIVE = """() => app.graph.nodes.flatMap((node) => node.widgets ?? [])
    .forEach((widget) => {
        if (widget.name === 'joint_guidance') widget.value = -0.5
        if (widget.name === 'profile') widget.value = 'own values'
    })"""
VIEWER = "() => document.querySelector('.mmada-viewer .words').innerText"
SENTENCE = (
    "The checkpoint does not know any of these words: fais-le, en, hiver. Use other words, such as "
    "those of the instructions that Demo Scene suggests."
)


def refused(comfy_page):
    comfy_page.page.evaluate("() => { heard.length = 0; app.queuePrompt(0, 1) }")
    comfy_page.wait_for_message("execution_error")
    comfy_page.page.wait_for_timeout(1500)
    shown = comfy_page.page.evaluate("() => document.body.innerText")
    assert "mmp_core" not in shown and "custom_nodes" not in shown
    return comfy_page.page.evaluate(TOASTS)


@pytest.mark.parametrize("vue", [False, True], ids=["canvas", "vue"])
@pytest.mark.exhaustive
def test_toast_and_node_show_the_sentence_until_the_next_run(comfy_page, vue):
    comfy_page.open(vue=vue)
    comfy_page.load(WORKFLOW, "refused")
    comfy_page.page.evaluate(SET, [ENCODE, "fais-le en hiver"])
    assert SENTENCE in refused(comfy_page)
    assert comfy_page.page.evaluate(SHOWN, ENCODE) == SENTENCE
    comfy_page.screenshot(f"refused-{'vue' if vue else 'canvas'}")
    comfy_page.page.reload()
    comfy_page.wait_until_ready()
    comfy_page.load(WORKFLOW, "refused again")
    comfy_page.page.evaluate(NEGATIVE)
    sentence = "guidance is -0.5: give 0 or more, or set profile to recommended."
    assert sentence in refused(comfy_page)
    assert comfy_page.page.evaluate(VIEWER).strip() == sentence
    comfy_page.screenshot(f"refused-denoise-{'vue' if vue else 'canvas'}")
