"""Where ComfyUI is, how to get it, and how to run it with this pack alone."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from environment import ROOT, SetupError, tell

OLDEST = (0, 16)
PACK = "mmada-parallel"
_ALONE = ("--disable-all-custom-nodes", "--whitelist-custom-nodes")
_SOURCE = "https://github.com/comfyanonymous/ComfyUI"
_CLONE_SECONDS, _START_SECONDS = 600, 300
_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def find() -> Path | None:
    """``COMFYUI_PATH``, else the ComfyUI that the pack lies in, else one in a usual place."""
    named = os.environ.get("COMFYUI_PATH")
    places = [Path(named).expanduser()] if named else _places()
    return next((place for place in places if _fits(place)), None)


def find_oldest() -> Path | None:
    """``COMFYUI_OLD_PATH``, else the usual place of the oldest supported version, for the tests."""
    place = Path(os.environ.get("COMFYUI_OLD_PATH") or "~/comfy/ComfyUI-0.16.4").expanduser()
    return place if _fits(place) else None


def _places() -> list[Path]:
    here = Path(__file__).absolute().parents[1]
    around = [root.parents[1] for root in (here, ROOT) if root.parent.name == "custom_nodes"]
    beside, home = ROOT.parent / "ComfyUI", Path.home()
    return [*around, beside, home / "comfy/ComfyUI", home / "ComfyUI"]


def _fits(folder: Path) -> bool:
    return (folder / "main.py").is_file() and version(folder) >= OLDEST


def version(folder: Path) -> tuple[int, ...]:
    """(0, 16, 4); empty where that cannot be read."""
    file = folder / "comfyui_version.py"
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    numbers = re.search(r'"(\d+)\.(\d+)\.(\d+)', text)
    return tuple(map(int, numbers.groups())) if numbers else ()


def clone() -> Path | None:
    """A new ComfyUI beside the repository, or nothing where GitHub cannot be reached."""
    target = ROOT.parent / "ComfyUI"
    if target.exists() or not shutil.which("git"):
        return None
    tell(f"Cloning {_SOURCE} to {target}")
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    command = ["git", "clone", "--depth", "1", _SOURCE, str(partial)]
    silent = {**os.environ, "GIT_TERMINAL_PROMPT": "0"}
    try:
        subprocess.run(command, check=True, timeout=_CLONE_SECONDS, env=silent)
        return partial.rename(target)
    except (subprocess.SubprocessError, OSError):
        shutil.rmtree(partial, ignore_errors=True)
        return None


@contextmanager
def running(
    folder: Path, python: Path, log: Path, *, cpu: bool
) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Run ComfyUI with no pack but this until the block ends: its address and its process.

    The pack is linked into a temporary folder that ComfyUI is told of: nothing is put into its own
    custom_nodes. Raises ``SetupError`` where ComfyUI or the pack does not start.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    port = _free_port()
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryDirectory(prefix=f"{PACK}-") as work, open(log, "wb") as output:
        command = [str(python), "main.py", "--port", str(port), "--disable-auto-launch"]
        command += [*(["--cpu"] if cpu else []), *_pack_options(folder, Path(work))]
        variables = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        process = subprocess.Popen(
            command, cwd=folder, stdout=output, stderr=subprocess.STDOUT, env=variables
        )
        try:
            _wait_until_ready(process, url, log)
            yield url, process
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _pack_options(folder: Path, work: Path) -> list[str]:
    """Let ComfyUI load this pack alone, from its own custom_nodes if it lies there."""
    packs = folder / "custom_nodes"
    for pack in packs.iterdir() if packs.is_dir() else ():
        if pack.resolve() == ROOT:
            return [*_ALONE, pack.name]
    link = work / "packs" / PACK
    link.parent.mkdir(parents=True)
    if os.name == "nt":  # a junction: symbolic links need an administrator
        import _winapi

        _winapi.CreateJunction(str(ROOT), str(link))
    else:
        link.symlink_to(ROOT, target_is_directory=True)
    paths = work / "paths.yaml"
    paths.write_text(json.dumps({PACK: {"base_path": str(work), "custom_nodes": "packs"}}))
    return [*_ALONE, PACK, "--extra-model-paths-config", str(paths)]


def _wait_until_ready(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise SetupError(f"ComfyUI ended while starting; see {log}.")
        try:
            with _direct.open(f"{url}/object_info", timeout=60) as answer:
                nodes = json.load(answer)
        except (OSError, ValueError):
            time.sleep(0.5)
            continue
        if "MMaDAParallelLoader" not in nodes:
            raise SetupError(f"ComfyUI did not load the pack; see {log}.")
        return
    raise SetupError(f"ComfyUI did not answer within {_START_SECONDS} s; see {log}.")


def _free_port() -> int:
    """ComfyUI's usual port, else any."""
    for port in (8188, 0):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return probe.getsockname()[1]
    raise SetupError("no port is free on 127.0.0.1.")
