"""Finding the nodes by the page's own search, and telling them apart."""

import pytest
from mmada_parallel.tests.browser.test_viewer import WORKFLOW

WANTED = {
    "edit": ["Load Edit Dataset (MMaDA)", "Encode Instruction"],
    "mask": ["Lock / Re-mask (MMaDA)", "Encode Instruction"],
    "inpaint": ["Encode Instruction"],
    "generate": ["Encode Instruction"],
    "image to image": ["Encode Instruction"],
    "think": ["Parallel Denoise"],
    "caption": ["Set Tokens (MMaDA)"],
    "LoRA": ["Apply LoRA (MMaDA)"],
    "train": ["SFT Finetune (MMaDA)"],
}
"""The first of the pack's nodes for a search. The page ranks a word in a name before one in an
alias, so that two of them come after a node with the word in its name, and most come after nodes
of ComfyUI: docs/what-is-proven.md says which do not."""
BLUEPRINT = "Edit with MMaDA-Parallel"
RESULTS = """() => [...document.querySelectorAll('[role=option], [data-testid=result-item]')]
    .map((one) => one.innerText.replaceAll('\\u00a0', ' '))"""
TYPES = ("MMADA_MODEL", "MMADA_PROMPT", "MMADA_TOKENS", "MMADA_TRAJECTORY", "MMADA_DATASET")
COLOURS = """(types) => types.map((type) => [
    app.canvas.default_connection_color_byType[type], LGraphCanvas.link_type_colors[type],
    getComputedStyle(document.documentElement).getPropertyValue(`--color-datatype-${type}`).trim()
])"""
PALETTE = "id => app.extensionManager.setting.set('Comfy.ColorPalette', id)"
BACKGROUNDS = {"dark": "#141414", "light": "#d3d3d3"}


def found(comfy_page, query):
    """Names of the pack's nodes, in the order of the search."""
    comfy_page.page.keyboard.press("Control+a")
    comfy_page.page.keyboard.type(query)
    comfy_page.page.wait_for_timeout(1200)
    results = [one.split("\n") for one in comfy_page.page.evaluate(RESULTS) if one]
    return [lines[0].strip() for lines in results if "MMaDA-Parallel" in " ".join(lines[1:])]


@pytest.mark.exhaustive
def test_the_right_node_is_found(comfy_page):
    comfy_page.open()
    comfy_page.load(WORKFLOW, "search")
    comfy_page.run_command("Workspace.SearchBox.Toggle")
    for query, names in WANTED.items():
        results = found(comfy_page, query)
        if results[0] == BLUEPRINT:  # the oldest page has none
            assert query == "edit"
            results = results[1:]
        assert results[: len(names)] == names, query


def luminance(colour):
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return sum(w * p for w, p in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one, other):
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.exhaustive
def test_each_type_has_a_colour_of_its_own_in_each_theme(comfy_page):
    """In both renderers, before and after another palette; 3:1 to the canvas, as for graphics."""
    comfy_page.open()
    comfy_page.load(WORKFLOW, "colours")
    for palette in ("dark", "light", "dark"):
        comfy_page.page.evaluate(PALETTE, palette)
        comfy_page.page.wait_for_timeout(1500)
        rows = comfy_page.page.evaluate(COLOURS, list(TYPES))
        assert all(len(set(row)) == 1 and row[0].startswith("#") for row in rows), (palette, rows)
        assert len({row[0] for row in rows}) == len(TYPES)
        assert all(contrast(row[0], BACKGROUNDS[palette]) >= 3 for row in rows)
        comfy_page.screenshot(f"colours-{palette}")
