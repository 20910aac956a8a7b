"""Every shipped workflow opens in ComfyUI's page, runs there and shows what it does."""

import json

import pytest
from mmada_parallel.tests.workflow_api import PAGE_WIDGETS, WORKFLOWS, to_api

FIRST = next(path for path in WORKFLOWS if path.stem == "Edit an image")
LIVE = ("MMaDAParallelDenoise", "MMaDAParallelParaRLFinetune")
LIKE_OTHERS = ("Edit a large photo", "Inpaint part of a large photo")
"""Those with the nodes of others, so that they are opened only by those who ask for it."""
MINUTES = ("Teach it something new",)
WAITS = ("ParaRL with your votes",)
"""Run by test_votes.py."""
PICKS = ("Pick what you like", "Train on your picks")
"""Run by test_picks.py."""
FOR_WHO_ASKS = (*LIKE_OTHERS, *MINUTES, *WAITS, *PICKS)
TEXT_ALONE = ("Describe a picture",)
PICTURE_ALONE = ("Style from a second picture", "Text to image at any size")
EXHAUSTIVE = (pytest.mark.slow, pytest.mark.exhaustive)


def marks_of(path, host):
    asked_for = path.stem in FOR_WHO_ASKS or (host == "oldest" and path != FIRST)
    return EXHAUSTIVE if asked_for else ()


CASES = [
    pytest.param(path, "canvas", host, marks=marks_of(path, host))
    for path in WORKFLOWS
    for host in ("current", "oldest")
] + [(FIRST, "vue", "current"), (FIRST, "vue", "oldest")]


@pytest.mark.parametrize(
    "path, renderer, comfy", CASES, indirect=["comfy"], ids=lambda case: getattr(case, "stem", case)
)
def test_it_opens_runs_and_shows_its_results(comfy_page, path, renderer):
    """On the oldest ComfyUI only the first is run, all are opened; the API runs them there, too."""
    name, workflow = f"{path.stem}-{renderer}", json.loads(path.read_text())
    comfy_page.open(vue=renderer == "vue")
    comfy_page.load(workflow, name)
    comfy_page.screenshot(f"{name}-opened")
    assert comfy_page.missing_nodes() == []
    assert comfy_page.complaints() == []
    prompt = comfy_page.api_prompt()
    assert without_page_widgets(prompt) == to_api(workflow, comfy_page.server.object_info())
    if path.stem in (*WAITS, *PICKS) or (comfy_page.server.host.name == "oldest" and path != FIRST):
        return
    live = [i for i, node in prompt.items() if node["class_type"] in LIVE]
    comfy_page.reseed()
    comfy_page.queue()
    if path.stem not in TEXT_ALONE:
        timeout = 1200 if path.stem in MINUTES else 120
        comfy_page.wait_for_message("b_preview_with_metadata", timeout)
    comfy_page.screenshot(f"{name}-running")
    assert comfy_page.wait_for_end(1200 if path.stem in MINUTES else 300) == "execution_success"
    comfy_page.screenshot(f"{name}-done")
    assert comfy_page.complaints() == []
    assert comfy_page.script_errors == []
    shows = shows_picture if path.stem in PICTURE_ALONE else shows_text
    assert live and all(shows(comfy_page, node) for node in live)


def shows_picture(comfy_page, node):
    shown = "() => document.querySelector('.mmada-viewer canvas').checkVisibility()"
    return comfy_page.page.evaluate(shown)


def shows_text(comfy_page, node):
    words = "() => document.querySelector('.mmada-viewer .words .unmasked')"
    return comfy_page.widget_value(node, "shown_text") or comfy_page.page.evaluate(words)


def without_page_widgets(prompt):
    """The page's prompt less what only the page knows of."""
    for node in prompt.values():
        if node["class_type"] in PAGE_WIDGETS:
            node["inputs"] = {k: v for k, v in node["inputs"].items() if isinstance(v, list)}
    return prompt
