"""ParaRL by votes in the page: the run waits, votes are kept at once, and it goes on with them."""

import json

import pytest
from mmada_parallel.tests.browser.conftest import serve_page
from mmada_parallel.tests.front_ends import NEWEST
from mmada_parallel.tests.hosts import PACK_ROOT

WORKFLOW = json.loads((PACK_ROOT / "workflows" / "ParaRL with your votes.json").read_text())
NODE = "MMaDAParallelParaRLFinetune"
SET = """([name, value]) => {
    const node = app.graph.nodes.find((one) => one.type === 'MMaDAParallelParaRLFinetune')
    node.widgets.find((one) => one.name === name).value = value
}"""
SHOWN = "() => document.querySelector('.mmada-votes section')?.checkVisibility() ?? false"
GONE = "() => !document.querySelector('.mmada-votes')"
LOADED = "() => [...document.querySelectorAll('.mmada-votes img')].every((i) => i.naturalWidth)"
VOTES = "() => app.api.fetchApi('/mmada_parallel/votes?run_name=page').then((a) => a.json())"
SAID = "() => document.querySelector('.mmada-votes .said').textContent"
# How many pixels of each answer are red, by its picture as the page shows it.
REDNESS = """() => [...document.querySelectorAll('.mmada-votes section')].map((section) =>
    [...section.querySelectorAll('.answer img')].map((image) => {
        const canvas = document.createElement('canvas')
        canvas.width = image.naturalWidth
        canvas.height = image.naturalHeight
        const context = canvas.getContext('2d')
        context.drawImage(image, 0, 0)
        const { data } = context.getImageData(0, 0, canvas.width, canvas.height)
        let red = 0
        for (let i = 0; i < data.length; i += 4)
            if (data[i] > 150 && data[i + 1] < 90 && data[i + 2] < 90) red++
        return red
    }))"""
# A click as by a keyboard: the canvas may have any zoom.
PRESS = """([group, answer]) => {
    const section = document.querySelectorAll('.mmada-votes section')[group]
    const buttons = answer === null ? section.querySelectorAll('.tie')
        : section.querySelectorAll('.answer')
    buttons[answer ?? 0].click()
}"""


LINK_THE_NAME = """(name) => {
    const node = app.graph.nodes.find((one) => one.type === 'MMaDAParallelParaRLFinetune')
    const text = LiteGraph.createNode('PrimitiveString')
    app.graph.add(text)
    text.widgets[0].value = name
    text.connect(0, node, node.inputs.findIndex((input) => input.name === 'run_name'))
    const { subgraph } = app.graph.convertToSubgraph(new Set([node]))
    app.canvas.setGraph(subgraph)
}"""
COPY = """() => {
    const [node] = app.canvas.graph.nodes.filter((one) => one.comfyClass.endsWith('ParaRLFinetune'))
    app.canvas.copyToClipboard(new Set([node]))
    app.canvas.pasteFromClipboard()
    return app.canvas.graph.nodes.filter((one) => one.comfyClass === node.comfyClass)
        .map((one) => one.widgets.some((widget) => widget.type === 'votes'))
}"""
REMOVE = """() => {
    const nodes = app.canvas.graph.nodes.filter((one) => one.comfyClass.endsWith('ParaRLFinetune'))
    for (const node of nodes) app.canvas.graph.remove(node)
}"""


@pytest.fixture(scope="module")
def comfy(tmp_path_factory):
    yield from serve_page("current", NEWEST, tmp_path_factory)


def queued(comfy_page):
    comfy_page.queue()
    assert comfy_page.wait_for_end() == "execution_success"
    assert comfy_page.complaints() == [] and comfy_page.script_errors == []


def vote_for_red(comfy_page):
    """Its winners as lists of numbers from 1."""
    page = comfy_page.page
    page.wait_for_function(SHOWN)
    page.wait_for_function(LOADED)
    wanted = []
    for group, counts in enumerate(page.evaluate(REDNESS)):
        best = [n for n, count in enumerate(counts) if count == max(counts)]
        best = [] if len(best) == len(counts) else best
        for answer in best or [None]:
            page.evaluate(PRESS, [group, answer])
        wanted.append([n + 1 for n in best])
    page.wait_for_function("() => !document.querySelector('.mmada-votes .queue').disabled")
    return wanted


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("vue", [False, True], ids=["canvas", "vue"])
def test_a_voter_who_prefers_red_moves_the_run(comfy_page, vue):
    page, name = comfy_page.page, "vue" if vue else "canvas"
    comfy_page.open(vue=vue)
    comfy_page.load(WORKFLOW, f"votes-{name}")
    for widget, value in {"run_name": f"page {name}", "steps": 2, "batch_size": 4}.items():
        page.evaluate(SET, [widget, value])
    votes = VOTES.replace("page", f"page%20{name}")
    queued(comfy_page)
    page.wait_for_function(SHOWN)
    comfy_page.screenshot(f"votes-{name}-waiting")
    assert "4 of 4 to go" in page.evaluate(SAID)
    wanted = vote_for_red(comfy_page)
    assert any(wanted)
    comfy_page.screenshot(f"votes-{name}-voted")
    page.wait_for_timeout(500)
    sheet = page.evaluate(votes)
    assert [group["winners"] for group in sheet["groups"]] == wanted
    prompt = comfy_page.api_prompt()
    (node,) = (n for n in prompt.values() if n["class_type"] == NODE)
    assert not any("votes " in key for key in node["inputs"])
    page.reload()  # the browser was closed
    comfy_page.wait_until_ready()
    if not page.evaluate(SHOWN):
        comfy_page.load(WORKFLOW, f"votes-{name}")
        for widget, value in {"run_name": f"page {name}", "steps": 2, "batch_size": 4}.items():
            page.evaluate(SET, [widget, value])
        page.evaluate("() => app.extensionManager.command.execute('Comfy.RefreshNodeDefinitions')")
        page.wait_for_function(SHOWN)
    assert [group["winners"] for group in page.evaluate(votes)["groups"]] == wanted
    pressed = "() => document.querySelectorAll('.mmada-votes [aria-pressed=true]').length"
    assert page.evaluate(pressed) == sum(len(each) or 1 for each in wanted)
    page.evaluate(
        "() => { heard.length = 0; document.querySelector('.mmada-votes .queue').click() }"
    )
    assert comfy_page.wait_for_end() == "execution_success"
    page.wait_for_function(
        "() => document.querySelector('.mmada-votes .said')?.textContent.startsWith('Step 2')"
    )
    assert page.evaluate(votes)["step"] == 1
    vote_for_red(comfy_page)
    queued(comfy_page)
    page.wait_for_function(GONE)
    assert page.evaluate(votes) is None
    comfy_page.screenshot(f"votes-{name}-done")
    runs = comfy_page.server.base / "output" / "mmada_parallel" / "training"
    lines = (runs / f"page {name}_00001" / "log.jsonl").read_text().splitlines()
    assert json.loads(lines[0])["tokens"] > 0 and len(lines) == 2
    (train,) = (i for i, n in comfy_page.api_prompt().items() if n["class_type"] == NODE)
    assert "Done." in comfy_page.widget_value(train, "shown_text")


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("vue", [False, True], ids=["canvas", "vue"])
def test_votes_in_a_subgraph_on_a_run_whose_name_is_linked(comfy_page, vue):
    page, name = comfy_page.page, f"linked {'vue' if vue else 'canvas'}"
    comfy_page.open(vue=vue)
    comfy_page.load(WORKFLOW, name)
    for widget, value in {"run_name": "another", "steps": 2, "batch_size": 4}.items():
        page.evaluate(SET, [widget, value])
    page.evaluate(LINK_THE_NAME, name)
    queued(comfy_page)
    page.wait_for_function(SHOWN)
    comfy_page.screenshot(f"votes-{name}")
    votes = VOTES.replace("=page", "=" + name.replace(" ", "%20"))
    wanted = vote_for_red(comfy_page)
    page.wait_for_timeout(500)
    assert [group["winners"] for group in page.evaluate(votes)["groups"]] == wanted
    assert page.evaluate(COPY) == [True, False]
    page.evaluate(REMOVE)
    page.wait_for_function(GONE)
    assert comfy_page.complaints() == [] and comfy_page.script_errors == []


@pytest.mark.slow
@pytest.mark.exhaustive
def test_a_server_that_is_away_is_said_and_leaves_no_script_error(comfy_page):
    page = comfy_page.page
    comfy_page.open()
    comfy_page.load(WORKFLOW, "away")
    for widget, value in {"run_name": "away", "steps": 2, "batch_size": 4}.items():
        page.evaluate(SET, [widget, value])
    queued(comfy_page)
    page.wait_for_function(SHOWN)
    before = page.evaluate(SAID)
    page.route("**/mmada_parallel/**", lambda route: route.abort())
    page.evaluate(PRESS, [0, 0])
    page.wait_for_function(SAID.replace("textContent", "textContent.startsWith('Not saved')"))
    comfy_page.load(WORKFLOW, "again")  # asks for votes, tasks and profiles
    page.wait_for_timeout(1000)
    page.unroute("**/mmada_parallel/**")
    assert "4 of 4 to go" in before and comfy_page.script_errors == []
