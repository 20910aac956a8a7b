"""Runs that their page can stop after the present step, and the tokens of runs that ended early."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import folder_paths
from aiohttp import web
from comfy_execution.utils import get_executing_context
from server import PromptServer

from ...mmp_core import MASKED, InputError, TokenState
from ...mmp_core.checkpoint.tokens import save_tokens
from .folders import FOLDER, TOKENS_ENDING, write_numbered
from .models import HostedModel
from .page import Progress, sent

_log = logging.getLogger(__name__)
stops: Counter[str | None] = Counter()
"""How often a run of each node was stopped. A stopped result is not to be taken from the cache for
that of a whole run, so the nodes' fingerprints count them."""


@dataclass
class Run:
    """One execution of a node that denoises, for all items of a list.

    ``client``: the page that queued it. ``shown_id``: the node of that page. ``item``: place in the
    list, from 0. ``stop_asked``: set by the page, at any time.
    """

    client: str | None = None
    prompt_id: str = ""
    node_id: str = ""
    shown_id: str = ""
    item: int = 0
    running: bool = True
    stop_asked: bool = False

    def keep_if_stopped(self, hosted: HostedModel, tokens: TokenState) -> str | None:
        """As :func:`keep`, where the run was stopped before its end; else ``None``."""
        if not (self.stop_asked and (MASKED in tokens.text or MASKED in tokens.image)):
            return None
        stops[self.node_id] += 1
        return keep(hosted, tokens)


def keep(hosted: HostedModel, tokens: TokenState) -> str | None:
    """Save the tokens of a run that ended early for Load Tokens, until ComfyUI ends. Their name
    there; ``None`` where they cannot be written, for which nobody's result should be lost."""
    hosted.prepare_decoding(tokens.grid)
    temporary = folder_paths.get_temp_directory()
    try:
        path = write_numbered(
            lambda file: save_tokens(file, tokens, hosted.model, new=True),
            f"{FOLDER}_stopped",
            TOKENS_ENDING,
            temporary,
        )
    except InputError as error:
        _log.warning("MMaDA-Parallel: what was stopped is not kept. %s", error)
        return None
    return f"{path.name} [temp]"


_latest: list[Run] = []
"""The latest run, if there was one."""


@contextmanager
def stoppable(progress: Progress) -> Iterator[Run]:
    """What the node does inside is a run that its page can stop; if it is the next item of the same
    list, it is the same run."""
    context, server = get_executing_context(), getattr(PromptServer, "instance", None)
    client = server.client_id if server else None
    prompt_id = context.prompt_id if context else ""
    item = (context.list_index or 0) if context else 0
    run = Run(client, prompt_id, progress.node_id, progress.shown_id, item)
    for before in _latest:
        if item and (before.prompt_id, before.node_id) == (prompt_id, run.node_id):
            run.stop_asked = before.stop_asked
    _latest[:] = [run]
    try:
        yield run
    finally:
        run.running = False


def stop(client: str, node: str) -> str | None:
    """Stop the run of ``node`` that the page ``client`` queued. One sentence where none runs."""
    for run in _latest:
        if (run.client, run.shown_id) == (client, node) and run.running:
            run.stop_asked = True
            return None
    return f"Node {node[:40]!r} is not denoising for this page: there is nothing to stop."


if getattr(PromptServer, "instance", None):

    @PromptServer.instance.routes.post("/mmada_parallel/stop")
    async def stop_route(request: web.Request) -> web.Response:
        """A page stops a run of its own after the present step."""
        form = await sent(request.post) or {}
        client, node = form.get("client_id"), form.get("node")
        if not (isinstance(client, str) and client and isinstance(node, str) and node):
            problem = "Send a form with client_id, the page's id, and node, the node's id."
            return web.Response(status=400, text=problem)
        problem = stop(client, node)
        return web.Response(status=409 if problem else 200, text=problem)
