"""A running ComfyUI with this pack, and what can be asked of it. Standard library only."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import comfyui
from comfyui import ROOT

PACK = "mmada-parallel"
_START_SECONDS = 300
_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class StartError(Exception):
    """Why ComfyUI did not start or do what it was asked, in one sentence."""


class Server:
    """``with Server(...) as server``: ComfyUI with no pack but this, until the block ends.

    The pack is linked into a temporary folder that ComfyUI is told of: nothing is put into its own
    custom_nodes. ``isolated``: models, outputs and settings lie in the temporary folder, too.
    """

    def __init__(self, folder: Path, python: Path, log: Path, *, cpu: bool, isolated: bool):
        self.folder, self.python, self.log = folder, python, log
        self.cpu, self.isolated = cpu, isolated
        self.name = f"ComfyUI {'.'.join(map(str, comfyui.version(folder)))}"
        self.url = f"http://127.0.0.1:{_free_port()}"

    def __enter__(self) -> Server:
        self._temporary = tempfile.TemporaryDirectory(prefix="mmada-parallel-")
        self.log.parent.mkdir(parents=True, exist_ok=True)
        ours = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        with open(self.log, "wb") as log:
            self._process = subprocess.Popen(
                self._command(Path(self._temporary.name)),
                cwd=self.folder,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=ours,
            )
        try:
            self._wait_until_ready()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop()

    def _command(self, work: Path) -> list[str]:
        command = [str(self.python), "main.py", "--port", self.url.rpartition(":")[2]]
        command += ["--disable-auto-launch", "--disable-all-custom-nodes"]
        command += ["--cpu"] if self.cpu else []
        if self.isolated:
            _link(work / "custom_nodes" / PACK)
            command += ["--base-directory", str(work)]
            command += ["--database-url", f"sqlite:///{work / 'comfyui.db'}"]
        elif (pack := self._installed()) is None:
            _link(work / "packs" / PACK)
            paths = {"base_path": str(work), "custom_nodes": "packs"}
            (work / "paths.yaml").write_text(json.dumps({PACK: paths}), encoding="utf-8")
            command += ["--extra-model-paths-config", str(work / "paths.yaml")]
        else:
            return [*command, "--whitelist-custom-nodes", pack]
        return [*command, "--whitelist-custom-nodes", PACK]

    def _installed(self) -> str | None:
        """The pack's name in ComfyUI's own custom_nodes, if it lies there."""
        packs = self.folder / "custom_nodes"
        found = packs.iterdir() if packs.is_dir() else ()
        return next((pack.name for pack in found if pack.resolve() == ROOT), None)

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                lines = self.log.read_text(encoding="utf-8", errors="replace").split("\n")
                last = next((line for line in reversed(lines) if line.strip()), "")
                raise StartError(f"{self.name} ended while starting ({last}); see {self.log}.")
            try:
                self.get("/system_stats")
                return
            except (OSError, ValueError):
                time.sleep(0.5)
        raise StartError(f"{self.name} did not answer within {_START_SECONDS} s; see {self.log}.")

    def wait(self) -> None:
        """Until ComfyUI ends by itself."""
        self._process.wait()

    def _stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._temporary.cleanup()

    def fetch(self, path: str, body: Any = None) -> bytes:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            self.url + path, data, {"Content-Type": "application/json"}
        )
        with _direct.open(request, timeout=60) as answer:
            return answer.read()

    def get(self, path: str) -> Any:
        return json.loads(self.fetch(path))

    def run(self, prompt: dict[str, Any], seconds: float = 300) -> dict[str, Any]:
        """Queue an API-format prompt and wait; its history entry."""
        try:
            queued = json.loads(self.fetch("/prompt", {"prompt": prompt}))["prompt_id"]
        except urllib.error.HTTPError as error:
            raise StartError(f"{self.name} refused the workflow: {error.read().decode()}") from None
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            entry = self.get(f"/history/{queued}").get(queued)
            if entry and entry["status"]["status_str"] == "success":
                return entry
            if entry:
                raise StartError(f"the workflow failed: {entry['status']['messages'][-1]}")
            time.sleep(0.5)
        raise StartError(f"the workflow was not done within {seconds:.0f} s; see {self.log}.")


def _link(link: Path) -> None:
    link.parent.mkdir(parents=True)
    if os.name == "nt":  # a junction: symbolic links need an administrator
        import _winapi

        _winapi.CreateJunction(str(ROOT), str(link))
    else:
        link.symlink_to(ROOT, target_is_directory=True)


def _free_port() -> int:
    """ComfyUI's usual port, else any."""
    for port in (8188, 0):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return probe.getsockname()[1]
    raise StartError("no port is free on 127.0.0.1.")
