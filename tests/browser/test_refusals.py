"""How the page shows what a node refuses while the graph runs."""

import json

import pytest
from mmada_parallel.tests.hosts import PACK_ROOT

WORKFLOW = json.loads((PACK_ROOT / "workflows" / "Edit an image.json").read_text())
ENCODE = "MMaDAParallelEncodeInstruction"
UNKNOWN = """type => {
    const node = app.graph.nodes.find((one) => one.type === type)
    node.widgets.find((one) => one.type === 'customtext').value = 'fais-le en hiver'
}"""
SHOWN = """() => document.body.innerText"""


@pytest.mark.parametrize("vue", [False, True], ids=["canvas", "vue"])
@pytest.mark.exhaustive
def test_the_sentence_alone_is_shown(comfy_page, vue):
    comfy_page.open(vue=vue)
    comfy_page.load(WORKFLOW, "refused")
    comfy_page.page.evaluate(UNKNOWN, ENCODE)
    comfy_page.page.evaluate("() => { heard.length = 0; app.queuePrompt(0, 1) }")
    comfy_page.wait_for_message("execution_error")
    comfy_page.page.wait_for_timeout(1500)
    comfy_page.screenshot(f"refused-{'vue' if vue else 'canvas'}")
    shown = comfy_page.page.evaluate(SHOWN)
    print(shown)
    assert "mmp_core" not in shown and "custom_nodes" not in shown
    for error in comfy_page.complaints():
        assert "does not know a word" in error
