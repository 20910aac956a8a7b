"""The real ComfyUI as a test host: find a checkout, start it, queue prompts, read every message.

Two hosts: `COMFYUI_PATH` (else ~/comfy/ComfyUI) and, at the oldest supported version,
`COMFYUI_OLD_PATH` (else ~/comfy/ComfyUI-0.16.4).
`COMFYUI_PYTHON` names the interpreter when ComfyUI lives in another environment.
"""

import importlib.util
import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from .messages import MessageStream, Result

PACK_ROOT = Path(__file__).resolve().parents[1]
PACK_FOLDER = "mmada-parallel"


class HostUnavailable(Exception):
    """The host cannot run here for a reason that is not the pack's: tests skip with it."""


@dataclass(frozen=True)
class Host:
    name: str
    path: Path

    def __str__(self):
        return f"ComfyUI {self.version}"

    @property
    def version(self):
        text = (self.path / "comfyui_version.py").read_text()
        return re.search(r'__version__ = "(.+?)"', text).group(1)

    def problem(self):
        """One sentence if the host is absent; import errors only show when it starts."""
        if not (self.path / "main.py").is_file():
            return f"no ComfyUI at {self.path} (set {_VARIABLES[self.name][0]})"
        if importlib.util.find_spec("aiohttp") is None:
            return "aiohttp is not installed (it comes with ComfyUI's requirements)"
        return None


_VARIABLES = {
    "current": ("COMFYUI_PATH", "~/comfy/ComfyUI"),
    "oldest": ("COMFYUI_OLD_PATH", "~/comfy/ComfyUI-0.16.4"),
}


def find_host(name):
    variable, default = _VARIABLES[name]
    return Host(name, Path(os.environ.get(variable) or default).expanduser())


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class ComfyServer:
    """ComfyUI's main.py on the CPU, with folders of its own under `base` and only our pack.

    `with ComfyServer(find_host("current"), tmp_path) as server: server.run(prompt).images`
    """

    def __init__(self, host, base, packs=None, front_end=None, temporary=None, options=()):
        """``temporary``: the folder of the server's temporary files, else the system's.
        ``options``: more of ComfyUI's command line."""
        self.host, self.base, self.front_end = host, Path(base), front_end
        self.temporary, self.options = temporary, options
        self.packs = {PACK_FOLDER: PACK_ROOT} if packs is None else packs
        self.url = f"http://127.0.0.1:{free_port()}"
        self._log = self.base / "server.log"
        self._process = self._stream = None

    def __enter__(self):
        if problem := self.host.problem():
            raise HostUnavailable(problem)
        self._lay_out()
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                self._command(), cwd=self.host.path, stdout=log, stderr=log, env=self._environment()
            )
        try:
            self._wait_until_ready()
            self._stream = MessageStream(self.url)
            self._stream.start()
            self._stream.wait(lambda m: m.kind == "feature_flags", 60)
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, *exc):
        self._stream.close()
        self._stop()

    def _lay_out(self):
        """The folders of a fresh installation, with the picture that ComfyUI ships."""
        for name in ("custom_nodes", "models", "input", "output", "temp", "user"):
            (self.base / name).mkdir(parents=True)
        if (example := self.host.path / "input" / "example.png").is_file():
            shutil.copy(example, self.base / "input")
        for folder, source in self.packs.items():
            (self.base / "custom_nodes" / folder).symlink_to(source, target_is_directory=True)

    def _command(self):
        python = os.environ.get("COMFYUI_PYTHON") or sys.executable
        port = self.url.rpartition(":")[2]
        command = [python, "main.py", "--cpu", "--listen", "127.0.0.1", "--port", port]
        command += ["--disable-auto-launch", "--base-directory", str(self.base)]
        command += ["--database-url", f"sqlite:///{self.base}/comfyui.db", "--disable-api-nodes"]
        command += self.options
        if self.front_end:
            command += ["--front-end-root", str(self.front_end)]
        return command

    def _environment(self):
        """Ours, less what would let the pack import itself by name, and no model hub."""
        kept = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        if self.temporary:
            kept["TMPDIR"] = str(self.temporary)
        return kept | {"HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}

    def _wait_until_ready(self, timeout=300):
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                self._explain_early_end()
            try:
                return self.get("/system_stats")
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.2)
        raise TimeoutError(f"{self.host} is not ready after {timeout} s\n{self.log()}")

    def _explain_early_end(self):
        """A requirement of ComfyUI that is missing skips; anything the pack did fails."""
        log = self.log()
        last = log.strip().rpartition("\n")[2]
        missing = re.match(r"ModuleNotFoundError|ImportError|OSError|RuntimeError: operator", last)
        if missing and "custom_nodes" not in log.rpartition("Traceback")[2]:
            raise HostUnavailable(f"{self.host} cannot start: {last}")
        raise RuntimeError(f"{self.host} ended while starting\n{log}")

    def _stop(self):
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    @property
    def pid(self):
        return self._process.pid

    def forget(self):
        """Drop the messages that have come, of which previews are pictures."""
        self._stream.messages.clear()

    def log(self, since=0):
        """The server's output from character `since` on, without colours."""
        text = self._log.read_text(errors="replace") if self._log.exists() else ""
        return re.sub(r"\x1b\[\d+m", "", text)[since:]

    def _request(self, path, data=None, headers=None):
        request = urllib.request.Request(self.url + path, data, headers or {})
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.read()

    def get(self, path):
        return json.loads(self._request(path))

    def post(self, path, body):
        data = json.dumps(body).encode()
        raw = self._request(path, data, {"Content-Type": "application/json"})
        return json.loads(raw) if raw else None

    def object_info(self):
        return self.get("/object_info")

    def history(self, prompt_id):
        return self.get(f"/history/{prompt_id}")[prompt_id]

    def upload_image(self, path):
        """Put a picture into the server's input folder; the name to give to Load Image."""
        path, mark = Path(path), uuid.uuid4().hex
        disposition = f'form-data; name="image"; filename="{path.name}"'
        head = f"--{mark}\r\nContent-Disposition: {disposition}\r\n\r\n".encode()
        body = head + path.read_bytes() + f"\r\n--{mark}--\r\n".encode()
        kind = {"Content-Type": f"multipart/form-data; boundary={mark}"}
        return json.loads(self._request("/upload/image", body, kind))["name"]

    def view(self, item):
        """A picture listed in a history entry or an `executed` message."""
        query = urllib.parse.urlencode({k: item[k] for k in ("filename", "subfolder", "type")})
        return Image.open(io.BytesIO(self._request(f"/view?{query}")))

    def queue(self, prompt, **extra):
        """Queue an API-format prompt; its id. Invalid prompts raise with the server's reasons."""
        self._mark = len(self._stream.messages)
        body = {"prompt": prompt, "client_id": self._stream.client_id, **extra}
        try:
            return self.post("/prompt", body)["prompt_id"]
        except urllib.error.HTTPError as error:
            raise ValueError(f"the server refused the prompt: {error.read().decode()}") from None

    def wait(self, wanted, timeout=120):
        """The first message for which wanted(message) holds, since the latest `queue`."""
        return self._stream.messages[self._await(wanted, timeout)]

    def _await(self, wanted, timeout):
        try:
            return self._stream.wait(wanted, timeout, self._mark)
        except (TimeoutError, RuntimeError) as error:
            raise type(error)(f"{error}\n{self.log()[-4000:]}") from None

    @property
    def messages(self):
        """What has come since the latest `queue`."""
        return self._stream.messages[self._mark :]

    def finish(self, prompt_id, timeout=300):
        """Wait for the end of the latest queued prompt, whatever the end is."""
        end = self._await(
            lambda m: m.kind == "executing" and m.node is None and m.prompt_id == prompt_id, timeout
        )
        messages = self._stream.messages[self._mark : end]
        messages = [m for m in messages if m.prompt_id in (None, prompt_id)]
        history = self.history(prompt_id)
        outputs = [out for _, out in sorted(history["outputs"].items())]
        items = [item for out in outputs for item in out.get("images", [])]
        return Result(prompt_id, messages, history, [self.view(item) for item in items])

    def run(self, prompt, timeout=300):
        return self.finish(self.queue(prompt), timeout)

    def interrupt(self, prompt_id=None):
        self.post("/interrupt", {"prompt_id": prompt_id} if prompt_id else {})


def serve(name, folder, front_end=None):
    """For fixtures: a running server with the pack; skips where that ComfyUI cannot be had.

    `front_end`: the folder of another front end than the one that is installed.
    """
    with ExitStack() as stack:
        try:
            server = ComfyServer(find_host(name), folder, front_end=front_end)
            stack.enter_context(server)
        except HostUnavailable as reason:
            pytest.skip(str(reason))
        yield server
