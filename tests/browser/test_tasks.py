"""The tasks that Encode Instruction offers are those of the connected checkpoint's family."""

import json

import pytest
from mmada_parallel.tests.hosts import PACK_ROOT

WORKFLOW = json.loads((PACK_ROOT / "workflows" / "Edit an image.json").read_text())
OFFERED = """() => app.graph.nodes.find((one) => one.type === 'MMaDAParallelEncodeInstruction')
    .widgets.find((one) => one.name === 'task').options.values"""
CHOOSE = """([name, value]) => {
    const loader = app.graph.nodes.find((one) => one.type === 'MMaDAParallelLoader')
    const widget = loader.widgets.find((one) => one.name === name)
    widget.value = value
    widget.callback?.(value)
}"""
COUNT = f"count => ({OFFERED})().length === count"


@pytest.mark.parametrize("vue", [False, True], ids=["canvas", "vue"])
@pytest.mark.exhaustive
def test_only_tasks_of_the_family_are_offered(comfy_page, vue):
    comfy_page.open(vue=vue)
    comfy_page.load(WORKFLOW, "tasks")
    comfy_page.page.wait_for_function(COUNT, arg=3)
    assert comfy_page.page.evaluate(OFFERED) == ["auto", "edit", "generate"]
    comfy_page.page.evaluate(CHOOSE, ["family", "Lumina-DiMOO"])
    comfy_page.page.wait_for_function(COUNT, arg=10)
    assert "describe" in comfy_page.page.evaluate(OFFERED)
    comfy_page.screenshot(f"tasks-{'vue' if vue else 'canvas'}")
    comfy_page.page.evaluate(CHOOSE, ["family", "auto"])
    comfy_page.page.wait_for_function(COUNT, arg=3)
