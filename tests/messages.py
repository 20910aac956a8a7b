"""What ComfyUI tells a client while a prompt runs: messages, a stream of them, a result."""

import asyncio
import io
import json
import struct
import threading
import time
import uuid
from dataclasses import dataclass, field

from PIL import Image

FINAL = {
    "execution_success": "success",
    "execution_error": "error",
    "execution_interrupted": "interrupted",
}


@dataclass(frozen=True)
class Message:
    """One websocket message. `kind` is the JSON type, or "preview" or "text" for binary ones."""

    kind: str
    data: dict
    node: str | None = None
    image: Image.Image | None = field(default=None, repr=False)
    text: str | None = None

    @property
    def prompt_id(self):
        return self.data.get("prompt_id")


def decode_json(raw):
    message = json.loads(raw)
    data = message.get("data") or {}
    return Message(message["type"], data, data.get("node"))


def decode_binary(raw):
    (event,) = struct.unpack(">I", raw[:4])
    body = raw[4:]
    if event in (1, 2):  # image type (JPEG, PNG), image
        return Message("preview", {}, image=Image.open(io.BytesIO(body[4:])))
    (size,) = struct.unpack(">I", body[:4])
    head, rest = body[4 : 4 + size], body[4 + size :]
    if event == 3:
        return Message("text", {}, head.decode(), text=rest.decode())
    if event == 4:
        data = json.loads(head)
        return Message("preview", data, data.get("node_id"), Image.open(io.BytesIO(rest)))
    raise ValueError(f"unknown binary message type {event}")


class MessageStream(threading.Thread):
    """One websocket to the server in a thread of its own; keeps all messages in order."""

    def __init__(self, url):
        super().__init__(daemon=True)
        self.client_id = uuid.uuid4().hex
        self.url = f"{url}/ws?clientId={self.client_id}"
        self.messages = []
        self.failure = None
        self._changed = threading.Condition()
        self._loop = asyncio.new_event_loop()
        self._reader = None

    def run(self):
        self._reader = self._loop.create_task(self._read())
        try:
            self._loop.run_until_complete(self._reader)
            self._end("the server closed the websocket")
        except asyncio.CancelledError:
            self._end("the websocket was closed by the test")
        except Exception as error:
            self._end(f"the websocket failed: {error!r}")

    def _end(self, failure):
        with self._changed:
            self.failure = failure
            self._changed.notify_all()

    async def _read(self):
        import aiohttp

        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(self.url, max_msg_size=0) as ws,
        ):
            flags = {"supports_preview_metadata": True}
            await ws.send_json({"type": "feature_flags", "data": flags})
            async for frame in ws:
                binary = frame.type == aiohttp.WSMsgType.BINARY
                message = (decode_binary if binary else decode_json)(frame.data)
                with self._changed:
                    self.messages.append(message)
                    self._changed.notify_all()

    def wait(self, wanted, timeout, start=0):
        """Index of the first message from `start` on for which wanted(message) holds."""
        deadline = time.monotonic() + timeout
        with self._changed:
            while True:
                while start < len(self.messages):
                    if wanted(self.messages[start]):
                        return start
                    start += 1
                if self.failure:
                    raise RuntimeError(self.failure)
                if not self._changed.wait(deadline - time.monotonic()):
                    raise TimeoutError(f"no such message within {timeout} s")

    def close(self):
        self._loop.call_soon_threadsafe(lambda: self._reader.cancel())
        self.join(10)


@dataclass
class Result:
    """All that a prompt sent while it ran, in order, and what it left in the history."""

    prompt_id: str
    messages: list
    history: dict = field(repr=False)
    images: list = field(repr=False)

    def of(self, kind, node=None):
        return [m for m in self.messages if m.kind == kind and node in (None, m.node)]

    @property
    def status(self):
        return next((FINAL[m.kind] for m in reversed(self.messages) if m.kind in FINAL), None)

    @property
    def error(self):
        """Node, exception and traceback of a failed prompt as one text."""
        for message in self.of("execution_error"):
            d = message.data
            trace = "".join(d.get("traceback", []))
            return f"{d['node_type']} #{d['node_id']}: {d['exception_message']}\n{trace}"
        return None

    @property
    def cached(self):
        return {node for m in self.of("execution_cached") for node in m.data["nodes"]}

    @property
    def started(self):
        """Ids of the nodes that really ran, in order."""
        return [m.node for m in self.of("executing") if m.node is not None]

    def steps(self, node):
        """(value, max) as the page's progress bar of that node showed them, without repeats."""
        return progress_steps(self.messages, node)

    def previews(self, node=None):
        return [m.image for m in self.of("preview", node)]

    def live_texts(self, node=None):
        return [m.text for m in self.of("text", node)]

    @property
    def texts(self):
        outputs = [out for _, out in sorted(self.history["outputs"].items())]
        return [text for out in outputs for text in out.get("text", [])]


def progress_steps(messages, node):
    steps = []
    states = (m.data["nodes"].get(node) for m in messages if m.kind == "progress_state")
    for state in states:
        if state and (step := (state["value"], state["max"])) not in steps[-1:]:
            steps.append(step)
    return steps
