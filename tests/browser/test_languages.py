"""The page in Chinese and Japanese: nodes, inputs and the viewer."""

import json
import re

import pytest
from mmada_parallel.tests.browser.test_looks import WRITTEN
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


GO_TO = """() => {
    const node = app.graph.nodes.find((one) => one.type === 'MMaDAParallelDenoise')
    app.canvas.ds.scale = 1
    app.canvas.ds.offset = node.pos.map((place) => 100 - place)
}"""
BOXES = """() => [...document.querySelectorAll('.lg-node [role=combobox], .lg-node button')]
    .map((one) => one.innerText.trim())"""
TRANSLATED = """(text) => import('/extensions/mmada-parallel/words.js')
    .then(({ translated }) => translated(text))"""
SAYS = (
    "6.4% of the pixels are replaced, the others are the original's.",
    "Drawn again: 7 of 16 image tokens, 0 of 21 text tokens.\n\nNo pixel is replaced.",
    "Recommended for MMaDA-Parallel-A: 128 text steps, guidance 3.5. Memory: 2 MB needed (1 MB of "
    "it weights), 3 GB of 4 GB free.",
    "GPU: 9 GB needed, 2 GB of 3 GB can be used. 7 GB of the weights are streamed at each step, "
    "which is slow. Host: 5 MB needed, 1 GB of 2 GB free.",
    "Too little memory: a picture of 128x128 image tokens needs about 7.6 GB to be decoded, in "
    "addition to the weights (11.2 MB), and 5.0 GB are free. Use a smaller picture.",
    "guidance is -0.5: give 0 or more, or set profile to recommended.",
    "No item of pets can be used. cat: its mask is black all over: paint what matters white, or "
    "remove it. dog: dog.txt is empty: write the instruction into it. The same holds for 4 more. "
    "line 3: b.png is 900x30: expected sides at most 8 times apart; crop it. And 2 more.",
    "pets: 3 item(s), 2 with a picture to edit, 1 to generate; 1 with reasoning and target, as "
    "SFT needs.\n2 skipped:\n  cat: its instruction is 5; expected text.\n  line 3: its image is "
    "8x8: expected sides of at least 16 pixels.",
)
LATIN = ("GPU", "MMaDA-Parallel-A", "token", "MB", "GB", "x128", "guidance", "recommended")
LATIN += ("pets", "cat", "dog", "txt", "line", "b", "png", "x30", "SFT", "image", "x8")
"""Of those, what stays."""


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
        said = [comfy_page.page.evaluate(TRANSLATED, text) for text in SAYS]
        other = comfy_page.page.evaluate(TRANSLATED, "the circle becomes red . Or else?")
        comfy_page.page.evaluate(GO_TO)
        comfy_page.page.wait_for_timeout(500)
        texts = comfy_page.page.evaluate(BOXES if vue else WRITTEN)
        comfy_page.screenshot(f"{language}-{'vue' if vue else 'canvas'}")
        queued = comfy_page.api_prompt().values()
    finally:
        comfy_page.server.post("/settings", {"Comfy.Locale": "en"})
    for text, before in zip(said, SAYS, strict=True):
        assert set(re.findall(r"[A-Za-z][\w-]*", text)) <= set(LATIN)
        assert sorted(re.findall(r"[\d.]*\d", text)) == sorted(re.findall(r"[\d.]*\d", before))
        assert text.count("\n") == before.count("\n")
    if not vue or comfy_page.server.host.name != "oldest":  # whose boxes show the value alone
        for choice in ("recommended", "exact"):
            label = f"{words['mmada_parallel_choices'][choice]} ({choice})"
            assert any(text.startswith(label[:7]) for text in texts), label
    assert "recommended" in [node["inputs"].get("profile") for node in queued]
    assert other == "the circle becomes red . Or else?"
    denoise = nodes["MMaDAParallelDenoise"]
    viewer = words["mmada_parallel"]
    assert shown == {
        "title": denoise["display_name"],
        "input": denoise["inputs"]["model"]["name"],
        "empty": viewer["Text and picture appear here while this node runs."],
        "stop": viewer["Stop here"],
    }


SLOW = """(texts) => import('/extensions/mmada-parallel/words.js').then(({ translated }) =>
    texts.map((text) => {
        const began = performance.now()
        return [translated(text).length, performance.now() - began]
    }))"""


@pytest.mark.exhaustive
def test_no_text_holds_the_page_up(comfy_page):
    """The words of a model, and names in a sentence, are a stranger's."""
    comfy_page.server.post("/settings", {"Comfy.Locale": "zh"})
    says = json.loads((PACK_ROOT / "locales" / "zh" / "main.json").read_text("utf-8"))
    sentences = [re.split(r"{\d+}", each) for each in says["mmada_parallel_says"]]
    longest = sorted(sentences, key=len)[-8:]
    texts = ["x" * 20_000, "a. " * 7000, " ░" * 4096]
    texts += [parts[0] + "b".join(["", *parts[1:-1]]) * 2000 for parts in longest]
    texts += [(parts[0] + "a. ") * 2000 for parts in longest]
    try:
        comfy_page.open()
        taken = comfy_page.page.evaluate(SLOW, texts)
    finally:
        comfy_page.server.post("/settings", {"Comfy.Locale": "en"})
    assert all(milliseconds < 5000 for _, milliseconds in taken), taken
