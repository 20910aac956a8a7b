"""Texts of the viewer and of the templates' notes: 4.5:1, in both renderers and themes."""

import json

import pytest
from mmada_parallel.tests.browser.contrast import TEXTS
from mmada_parallel.tests.browser.test_finding import PALETTE
from mmada_parallel.tests.workflow_api import WORKFLOWS

PLACES = ".comfy-markdown, .comfy-markdown-content, .mmada-viewer"
CLOSER = """(place) => {
    app.canvas.ds.scale = 0.9
    app.canvas.ds.offset = [-place[0] + 40, -place[1] + 80]
    app.canvas.setDirty(true, true)
}"""
SHOW_ALL = """() => document.querySelectorAll('.mmada-viewer').forEach((viewer) => {
    viewer.querySelector('.words').innerHTML = '<span class="masked">░</span>'
        + '<span class="new">new</span><span class="unmasked">old</span>'
    viewer.querySelectorAll('[hidden]').forEach((part) => part.hidden = false)
    viewer.querySelector('.note').textContent = 'Stopped after step 3 of 9.'
    viewer.querySelector('.samples').textContent = 'sample'
})"""


@pytest.mark.exhaustive
@pytest.mark.parametrize("vue", [False, True], ids=["canvas", "vue"])
def test_texts_can_be_read(comfy_page, vue):
    comfy_page.open(vue=vue)
    seen = set()
    for palette in ("light", "dark"):
        comfy_page.page.evaluate(PALETTE, palette)
        comfy_page.page.wait_for_timeout(1000)
        for path in WORKFLOWS:
            workflow = json.loads(path.read_text())
            comfy_page.load(workflow, path.stem)
            for node in workflow["nodes"]:
                if node["type"] not in ("MarkdownNote", "MMaDAParallelDenoise"):
                    continue
                comfy_page.page.evaluate(CLOSER, node["pos"])
                comfy_page.page.wait_for_timeout(250)
                comfy_page.page.evaluate(SHOW_ALL)
                for place in comfy_page.page.query_selector_all(PLACES):
                    for text, tag, ratio in place.evaluate(TEXTS):
                        seen.add((palette, tag))
                        assert ratio >= 4.5, (palette, path.stem, text, tag, ratio)
        comfy_page.screenshot(f"contrast-{palette}-{'vue' if vue else 'canvas'}")
    assert {(p, tag) for p in ("dark", "light") for tag in ("H2", "SPAN", "BUTTON")} <= seen
