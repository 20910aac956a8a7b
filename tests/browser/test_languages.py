"""The page in Chinese and Japanese: nodes, inputs and the viewer."""

import json

import pytest
from mmada_parallel.tests.hosts import PACK_ROOT

WORKFLOW = json.loads((PACK_ROOT / "workflows" / "Edit an image.json").read_text())
NAMES = """() => {
    const node = app.graph.nodes.find((one) => one.type === 'MMaDAParallelDenoise')
    const viewer = node.widgets.find((one) => one.type === 'denoise_viewer').element
    const slot = node.inputs.find((one) => one.name === 'text_steps' || one.name === 'model')
    return {
        title: LiteGraph.registered_node_types.MMaDAParallelDenoise.title,
        input: slot.localized_name ?? slot.label ?? slot.name,
        empty: viewer.querySelector('.empty').textContent,
        stop: viewer.querySelector('.stop').textContent,
    }
}"""


@pytest.mark.exhaustive
@pytest.mark.parametrize("language", ["zh", "ja"])
@pytest.mark.parametrize("vue", [False, True], ids=["canvas", "vue"])
def test_the_page_speaks_it(comfy_page, language, vue):
    nodes = json.loads((PACK_ROOT / "locales" / language / "nodeDefs.json").read_text("utf-8"))
    words = json.loads((PACK_ROOT / "locales" / language / "main.json").read_text("utf-8"))
    comfy_page.server.post("/settings", {"Comfy.Locale": language})
    try:
        comfy_page.open(vue=vue)
        comfy_page.load(WORKFLOW, "Edit an image")
        shown = comfy_page.page.evaluate(NAMES)
        comfy_page.screenshot(f"{language}-{'vue' if vue else 'canvas'}")
    finally:
        comfy_page.server.post("/settings", {"Comfy.Locale": "en"})
    denoise = nodes["MMaDAParallelDenoise"]
    viewer = words["mmada_parallel"]
    assert shown == {
        "title": denoise["display_name"],
        "input": denoise["inputs"]["model"]["name"],
        "empty": viewer["Text and picture appear here while this node runs."],
        "stop": viewer["Stop here"],
    }
