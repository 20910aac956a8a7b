"""ComfyUI's page in headless Chromium, with a fresh profile for every test."""

import itertools
import os
import re
import shutil
from pathlib import Path

import pytest
from mmada_parallel.tests.front_ends import FrontEndUnavailable, front_end, pinned
from mmada_parallel.tests.hosts import find_host, serve

CHROMIUM_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
READY = "() => Boolean(window.app?.graph && app.extensionManager?.setting && LiteGraph && \
    'KSampler' in LiteGraph.registered_node_types)"
# What the page uses to tell that something is wrong: 1.49 has an overlay, 1.39 dialogs.
COMPLAINTS = "() => [...document.querySelectorAll('[data-testid=error-overlay], \
    .p-dialog[role=dialog], .p-toast-message-error, .p-toast-message-warn')] \
    .map(element => element.innerText.trim())"
RECORD = """() => {
    window.heard = []
    const kinds = ['execution_success', 'execution_error', 'execution_interrupted',
                   'progress_text', 'b_preview_with_metadata', 'progress_state']
    for (const kind of kinds) app.api.addEventListener(kind, () => heard.push(kind))
}"""
fresh = itertools.count(1)
ENDED = "() => heard.some(kind => kind.startsWith('execution_'))"


class ComfyPage:
    """The page of one server. Node ids are strings, as in the API format."""

    def __init__(self, page, server, screenshots):
        self.page, self.server, self.screenshots = page, server, screenshots
        self.script_errors = []
        page.on("pageerror", lambda error: self.script_errors.append(str(error)))

    def open(self, vue=False):
        """Open the page past its first-run dialog, on the canvas or in the Vue renderer."""
        settings = {"Comfy.TutorialCompleted": True, "Comfy.Minimap.Visible": False}
        self.server.post("/settings", settings | {"Comfy.VueNodes.Enabled": vue})
        self.page.goto(self.server.url)
        self.wait_until_ready()

    def wait_until_ready(self):
        self.page.wait_for_function(READY)
        self.page.wait_for_timeout(1000)  # the page opens its default workflow last
        self.page.evaluate(RECORD)

    def show_in(self, vue):
        """Change the renderer of the open page."""
        self.page.evaluate(
            "on => app.extensionManager.setting.set('Comfy.VueNodes.Enabled', on)", vue
        )
        self.page.wait_for_timeout(1500)

    def load(self, workflow, name):
        """Open a UI-format workflow as the page does with a dropped file."""
        self.page.evaluate("([w, n]) => app.loadGraphData(w, true, true, n)", [workflow, name])
        self.page.wait_for_timeout(1000)

    def missing_nodes(self):
        return self.page.evaluate(
            "() => app.graph.nodes.map(n => n.type) \
                .filter(type => !(type in LiteGraph.registered_node_types))"
        )

    def reseed(self):
        """Change every seed, so that nothing comes from the server's cache."""
        self.page.evaluate(
            "k => app.graph.nodes.flatMap(n => n.widgets ?? []) \
                .filter(w => w.name.includes('seed')).forEach(w => w.value += k)",
            next(fresh),
        )

    def complaints(self):
        """Texts of all error overlays, dialogs and toasts on show."""
        return self.page.evaluate(COMPLAINTS)

    def api_prompt(self):
        """The prompt that the page itself would queue."""
        nodes = self.page.evaluate("() => app.graphToPrompt().then(p => p.output)")
        keys = ("class_type", "inputs")
        return {node_id: {k: node[k] for k in keys} for node_id, node in nodes.items()}

    def queue(self):
        self.page.evaluate("() => { heard.length = 0; app.queuePrompt(0, 1) }")

    def wait_for_message(self, kind, timeout=120):
        self.page.wait_for_function("k => heard.includes(k)", arg=kind, timeout=timeout * 1000)

    def wait_for_end(self, timeout=300):
        """How the queued prompt ended; a refused one never starts, which is a complaint."""
        for _ in range(timeout * 5):
            if self.page.evaluate(ENDED):
                self.page.wait_for_timeout(1000)  # results are drawn after the message
                return self.page.evaluate("() => heard.findLast(k => k.startsWith('execution_'))")
            if complaints := self.complaints():
                raise AssertionError(f"the page complains: {complaints}")
            self.page.wait_for_timeout(200)
        raise TimeoutError(f"the prompt has not ended:\n{self.server.log()[-4000:]}")

    def widget_value(self, node_id, name):
        """The value of a node's widget, if it has one of this name."""
        return self.page.evaluate(
            "([id, name]) => app.graph.nodes.find(n => String(n.id) === id).widgets \
                .find(w => w.name === name)?.value",
            [node_id, name],
        )

    def run_command(self, name, settle=1500):
        """One of the page's own commands, such as Comfy.Undo."""
        self.page.evaluate("name => app.extensionManager.command.execute(name)", name)
        self.page.wait_for_timeout(settle)

    def screenshot(self, name):
        """The whole graph, as <version>-<name>.png in $MMADA_SCREENSHOTS or a temporary folder."""
        self.run_command("Comfy.Canvas.FitView", settle=700)
        file = re.sub(r"[^\w.-]+", "-", f"{self.server.host.version}-{name}.png")
        self.page.screenshot(path=self.screenshots / file)
        return self.screenshots / file


def serve_page(name, version, tmp_path_factory):
    """A server of our own, since what other tests ran must not be in its cache.

    `version`: of the front end; None for the one that this ComfyUI asks for.
    """
    host = find_host(name)
    if problem := host.problem():
        pytest.skip(problem)
    try:
        folder = front_end(version or pinned(host.path))
    except FrontEndUnavailable as reason:
        pytest.skip(str(reason))
    yield from serve(name, tmp_path_factory.mktemp(f"browser-{name}"), folder)


@pytest.fixture(scope="session", params=["current", "oldest"])
def comfy(request, tmp_path_factory):
    yield from serve_page(request.param, None, tmp_path_factory)


@pytest.fixture(scope="session")
def screenshots(tmp_path_factory):
    folder = os.environ.get("MMADA_SCREENSHOTS")
    folder = Path(folder) if folder else tmp_path_factory.mktemp("screenshots")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def chromium():
    """Module scope: while Playwright runs, its thread has an event loop that others trip over."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    names = ("chromium", "chromium-browser", "google-chrome")
    binary = os.environ.get("MMADA_CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    if binary is None:
        pytest.skip("no Chromium (Debian: apt-get install chromium; or set MMADA_CHROMIUM)")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=binary, args=CHROMIUM_FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def comfy_page(comfy, chromium, screenshots):
    with chromium.new_context(viewport={"width": 1600, "height": 1000}) as context:
        yield ComfyPage(context.new_page(), comfy, screenshots)
