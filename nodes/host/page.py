"""A running node as its page sees it: progress, previews, live text; interruption."""

from __future__ import annotations

import asyncio
import html
import time
import uuid
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar, get_args

import comfy.cli_args
import comfy.model_management
import comfy.utils
import folder_paths
import torch
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from comfy_execution.graph_utils import ExecutionBlocker
from PIL import Image
from server import PromptServer

from ...mmp_core import InputError, SamplerSettings
from ...mmp_core.checkpoint.load import open_checkpoint
from ...mmp_core.files import accessing, writing
from ...mmp_core.sampler.settings import PROFILED, Profile
from ...mmp_core.variants.registry import variant_named
from . import core
from .folders import FOLDER, checkpoint_paths

STEP_EVENT, TEXT_EVENT = "mmada_parallel.step", "mmada_parallel.text"
"""What a page that listens to it is sent while a node runs: words and their states for
web/denoise_viewer.js, the whole text so far for web/shown_text.js."""

_TEXT_INTERVAL = 0.1
_PICTURE_INTERVAL = 0.5
_PREVIEW_SIZE = 512
Item = TypeVar("Item")


def metadata_wanted() -> bool:
    return not comfy.cli_args.args.disable_metadata


def nothing() -> ExecutionBlocker:
    """As an output: what is connected to it does not run, and nothing is said about it."""
    return ExecutionBlocker(None)


def to_intermediate(pixels: torch.Tensor) -> torch.Tensor:
    """``pixels`` where ComfyUI keeps what travels between nodes."""
    return pixels.to(comfy.model_management.intermediate_device())


def stop_if_interrupted() -> None:
    comfy.model_management.throw_exception_if_processing_interrupted()


def interruptible(items: Iterable[Item]) -> Iterator[Item]:
    """``items``, before each of which a run may be interrupted."""
    for item in items:
        stop_if_interrupted()
        yield item


def save_temporary(picture: Image.Image) -> dict[str, str]:
    """Save ``picture`` until ComfyUI ends. What its ``/view`` needs to serve it."""
    folder = Path(folder_paths.get_temp_directory())
    name = f"{FOLDER}_{uuid.uuid4().hex}.jpg"
    with writing(folder / name):
        folder.mkdir(parents=True, exist_ok=True)
        picture.save(folder / name, quality=85)
    return {"filename": name, "subfolder": "", "type": "temp"}


class Progress:
    """The page's view of one running node: bar, picture and text.

    A caller makes a picture or a text only when it is due, since making one costs time.
    """

    def __init__(self, node_id: str):
        self.node_id = node_id
        self._bar = comfy.utils.ProgressBar(1, node_id=node_id)
        self._text_at = self._picture_at = 0.0

    @property
    def text_due(self) -> bool:
        return time.monotonic() >= self._text_at

    @property
    def picture_due(self) -> bool:
        return time.monotonic() >= self._picture_at

    def show(
        self,
        done: int,
        total: int,
        picture: Image.Image | None = None,
        size: int = _PREVIEW_SIZE,
    ) -> None:
        """``size``: the longest side of the picture on the page."""
        preview = None
        if picture is not None:
            preview = ("JPEG", picture, min(size, max(picture.size)))
            self._picture_at = time.monotonic() + _PICTURE_INTERVAL
        self._bar.update_absolute(done, total, preview)

    @property
    def shown_id(self) -> str:
        """The node of the page that stands for this one, which a loop may have made."""
        return core.shown_id(self.node_id)

    def show_text(self, text: str) -> None:
        """The whole text so far, on the node."""
        self._show(TEXT_EVENT, text, text=text)

    def show_words(
        self, done: int, total: int, words: Sequence[tuple[str, str]], text: str, **more: object
    ) -> None:
        """The whole text so far: words and their states in our viewer, with ``more`` of what it
        knows, else ``text`` alone."""
        self._show(STEP_EVENT, text, step=done, total=total, words=words, **more)

    def _show(self, event: str, plain: str, **data: object) -> None:
        """Send the page an event about this node if it listens to that, else ``plain``."""
        self._text_at = time.monotonic() + _TEXT_INTERVAL
        if (server := _server()) is None:
            return
        if _listens(server, event):
            server.send_sync(event, {"node": self.shown_id, **data}, server.client_id)
        elif send := core.usable(server, "send_progress_text", 3):
            with suppress(UnicodeEncodeError):  # in the node's id, which the API may choose
                send(for_page(plain), self.shown_id, server.client_id)


_listening: dict[tuple[str, str], object] = {}
"""The connection of each page, by its id and the event that it listens to."""


def _listens(server: PromptServer, event: str) -> bool:
    """Whether the page that queued this run has said so since it last connected."""
    if not isinstance(server.client_id, str):  # it comes from the body of /prompt as it is
        return False
    connection = server.sockets.get(server.client_id)
    return connection is not None and _listening.get((server.client_id, event)) is connection


def _server() -> PromptServer | None:
    return getattr(PromptServer, "instance", None)


async def sent(read: Callable[[], Awaitable[Any]]) -> Any:
    """What a page sent, as ``json`` or ``post`` of its request gives it; ``None`` where that cannot
    be read: it is damaged, or compressed or encoded in no known way."""
    try:
        return await read()
    except (ValueError, LookupError, RuntimeError, HttpProcessingError, web.RequestPayloadError):
        return None


if _server():

    @PromptServer.instance.routes.post("/mmada_parallel/listen")
    async def listen(request: web.Request) -> web.Response:
        """A page says that it shows one of our events itself."""
        form, sockets = await sent(request.post) or {}, PromptServer.instance.sockets
        client, event = str(form.get("client_id")), str(form.get("event"))
        if client not in sockets or event not in (STEP_EVENT, TEXT_EVENT):
            problem = "Send a form with an open page's client_id, and an event of this pack."
            return web.Response(status=400, text=problem)
        for key in [key for key in _listening if key[0] not in sockets]:
            del _listening[key]
        _listening[client, event] = sockets[client]
        return web.Response()

    @PromptServer.instance.routes.get("/mmada_parallel/family")
    async def family(request: web.Request) -> web.Response:
        """What the page needs to know of a checkpoint; 404 where its family cannot be told."""
        chosen = (request.query.get(name, "") for name in ("checkpoint", "family"))
        try:
            with accessing():
                facts = await asyncio.to_thread(family_facts, *chosen)
        except InputError as error:
            return web.Response(status=404, text=str(error))
        return web.json_response(facts)


def family_facts(checkpoint: str, family: str) -> dict[str, object]:
    """By the widgets of Load MMaDA-Parallel: tasks; what each profile sets, by task; pixels of an
    image token, None where its files do not say; side of the checkpoint's own picture. Raises
    ``InputError``."""
    named = None if family in ("", "auto") else variant_named(family)
    unit = side = config = None
    try:
        source = open_checkpoint(checkpoint_paths(checkpoint, "auto")[0], family=named)
        variant, config = source.variant, source.config
        side = config.get("default_image_size", variant.image_size)
        unit = variant.image_tokenizer(source.image_config, device="meta").downsample
    except InputError:
        if named is None:
            raise
        variant = named

    def values(profile: Profile, task: str) -> dict[str, object]:
        settings = SamplerSettings.of_profile(profile, variant, task, config)
        return {name: getattr(settings, name) for name in PROFILED}

    profiles = {
        profile: {task: values(profile, task) for task in variant.tasks or ("",)}
        for profile in get_args(Profile)
    }
    tasks = list(variant.task_names)
    return {"tasks": tasks, "profiles": profiles, "unit": unit, "side": side}


def for_page(text: str) -> str:
    """``text`` as the page's live text shows it literally: the page takes it for HTML."""
    return html.escape(text).replace("\n", "<br>").replace("  ", " &nbsp;")
