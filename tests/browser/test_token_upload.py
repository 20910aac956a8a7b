"""A file of tokens dropped on Load Tokens goes into the input folder and is chosen."""

import json

import pytest
from mmada_parallel.tests.hosts import PACK_ROOT

WORKFLOW = json.loads((PACK_ROOT / "workflows" / "Edit an image.json").read_text())
DROP = """async (name) => {
    const node = LiteGraph.createNode('MMaDAParallelLoadTokens')
    app.graph.add(node)
    const files = new DataTransfer()
    files.items.add(new File(['tokens'], name))
    const event = new DragEvent('drop', { dataTransfer: files })
    if (!node.onDragOver(event)) throw new Error('a file is not taken')
    await node.onDragDrop(event)
}"""
CHOSEN = """() => app.graph.nodes.find(({ type }) => type === 'MMaDAParallelLoadTokens')
    .widgets.find(({ name }) => name === 'file').value"""


@pytest.mark.exhaustive
@pytest.mark.parametrize("vue", [False, True], ids=["canvas", "vue"])
def test_a_dropped_file_is_uploaded_and_chosen(comfy_page, vue):
    comfy_page.open(vue=vue)
    comfy_page.load(WORKFLOW, "upload")
    name = f"from-{'vue' if vue else 'canvas'}.tokens.safetensors"
    comfy_page.page.evaluate(DROP, name)
    comfy_page.page.wait_for_function(f"name => ({CHOSEN})() === name", arg=name)
    comfy_page.screenshot(f"upload-{'vue' if vue else 'canvas'}")
    comfy_page.page.evaluate(DROP, "picture.png")
    comfy_page.page.wait_for_timeout(500)
    assert any("is not a file of Save Tokens" in text for text in comfy_page.complaints())
    assert comfy_page.script_errors == []
