"""A page that is reloaded in mid-run, a second tab, and a tab that is closed."""

import pytest
from mmada_parallel.tests.browser.conftest import ComfyPage, serve_page
from mmada_parallel.tests.browser.test_refusals import NEGATIVE
from mmada_parallel.tests.browser.test_stopping import open_slow
from mmada_parallel.tests.browser.test_viewer import HAS_STEPPED, NODE, WORKFLOW, ViewerPage
from mmada_parallel.tests.front_ends import NEWEST

pytestmark = pytest.mark.exhaustive
QUEUE_AND_LEAVE = """async (workflow) => {
    heard.length = 0
    await app.queuePrompt(0, 1)
    await app.loadGraphData(workflow, true, true, 'another workflow')
}"""
POSITIVE = NEGATIVE.replace("-0.5", "3.5")
RECORD_TOASTS = """() => {
    window.toasts = []
    const { toast } = app.extensionManager, add = toast.add
    toast.add = (message) => (toasts.push(message.detail), add.call(toast, message))
}"""
MINUTE = 60_000


@pytest.fixture(scope="module")
def comfy(tmp_path_factory):
    yield from serve_page("current", NEWEST, tmp_path_factory)


@pytest.fixture
def viewer(comfy_page):
    return ViewerPage(comfy_page)


def begun(viewer, steps=3):
    viewer.page.wait_for_function(HAS_STEPPED, arg=[NODE, steps], timeout=2 * MINUTE)


def run_begun(viewer):
    open_slow(viewer, "vue")
    viewer.comfy.queue()
    begun(viewer)


def open_tab(viewer, name):
    """A workflow that the page has open behind another."""
    viewer.page.locator(".workflow-tabs").get_by_text(name, exact=True).first.click()
    viewer.page.wait_for_timeout(1500)


def another_tab(viewer):
    page = viewer.page.context.new_page()
    tab = ViewerPage(ComfyPage(page, viewer.comfy.server, viewer.comfy.screenshots))
    tab.comfy.open(vue=True)
    tab.comfy.load(WORKFLOW, "another tab")
    return tab


def test_a_reload_in_mid_run_catches_up(viewer):
    run_begun(viewer)
    viewer.page.reload()
    viewer.comfy.wait_until_ready()
    begun(viewer)
    assert viewer.state()["text"]
    assert viewer.comfy.wait_for_end() == "execution_success"
    viewer.check_result()
    viewer.check_no_complaints()


def test_a_second_tab_leaves_the_run_of_the_first_alone(viewer):
    run_begun(viewer)
    other = another_tab(viewer)
    assert "appear here" in other.state()["text"]  # its own viewer, not the first's run
    assert viewer.comfy.wait_for_end() == "execution_success"
    before = viewer.check_result()
    other.comfy.reseed()
    other.run()
    other.check_result()
    assert viewer.check_result() == before
    for tab in (viewer, other):
        tab.check_no_complaints()


def test_a_run_of_another_workflow_shows_nothing_on_nodes_of_the_same_number(viewer):
    """Neither its steps nor what it refuses: the page has both workflows open."""
    viewer.open("vue")
    viewer.page.evaluate(NEGATIVE)
    viewer.comfy.queue()
    viewer.comfy.wait_for_message("execution_error")
    viewer.page.wait_for_timeout(1000)
    assert "give 0 or more" in viewer.state()["text"]
    for wrong in (True, False):
        open_slow(viewer, "vue")
        if wrong:
            viewer.page.evaluate(NEGATIVE)
        viewer.page.evaluate(QUEUE_AND_LEAVE, WORKFLOW)
        ended = "execution_error" if wrong else "execution_success"
        viewer.comfy.wait_for_message(ended)
        viewer.page.wait_for_timeout(1000)
        assert "appear here" in viewer.state()["text"]


def test_what_was_refused_meanwhile_is_shown_when_its_workflow_is_opened_again(viewer):
    """Once in a toast, and on the node each time until the workflow is queued again."""
    sentence = "guidance is -0.5: give 0 or more, or set profile to recommended."
    open_slow(viewer, "vue")
    viewer.page.evaluate(NEGATIVE)
    viewer.page.evaluate(RECORD_TOASTS)
    viewer.page.evaluate(QUEUE_AND_LEAVE, WORKFLOW)
    viewer.comfy.wait_for_message("execution_error")
    viewer.page.wait_for_timeout(1000)
    assert viewer.page.evaluate("() => window.toasts") == []
    for _ in range(2):
        assert "appear here" in viewer.state()["text"]
        open_tab(viewer, "stopping")
        assert viewer.state()["text"].strip() == sentence
        assert viewer.page.evaluate("() => window.toasts") == [sentence]
        open_tab(viewer, "another workflow")
    open_tab(viewer, "stopping")
    viewer.page.evaluate(POSITIVE)
    viewer.run()
    open_tab(viewer, "another workflow")
    open_tab(viewer, "stopping")
    viewer.check_result()


def test_a_run_ends_whose_tab_was_closed(viewer):
    run_begun(viewer)
    other = another_tab(viewer)
    server = viewer.comfy.server
    (prompt_id,) = [item[1] for item in server.get("/queue")["queue_running"]]
    viewer.page.close()
    for _ in range(600):
        if prompt_id in server.get(f"/history/{prompt_id}"):
            break
        other.page.wait_for_timeout(500)
    assert server.history(prompt_id)["status"]["status_str"] == "success"
    other.comfy.reseed()
    other.run()
    other.check_result()
    other.check_no_complaints()
