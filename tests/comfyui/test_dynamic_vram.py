"""ComfyUI's DynamicVRAM, which NVIDIA's cards have by default: tokens and gradients are those of
the classic path, whichever weights the card holds at a moment. Its Python alone, on a card in
Python (card.py) with an allocator in Python (fake_aimdo.py)."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest
from mmada_parallel.tests.hosts import find_host

SMALL = ("variant-M", "small-fp8.safetensors", "small-int8.safetensors")
"""Most weights of these are below the 16 KB up to which ComfyUI loads them at once."""
EVERY = ",".join(
    ("plain", "tied-wide", "fp8.safetensors", "int8.safetensors", "nvfp4.safetensors", *SMALL)
)
SOME = ("current", "int8.safetensors", "classic,flapping")
ALL = "classic,all,none,alternate,flapping"


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(SOME, id="some"),
        pytest.param(("current", EVERY, ALL), id="current", marks=pytest.mark.exhaustive),
        pytest.param(("oldest", EVERY, ALL), id="oldest", marks=pytest.mark.exhaustive),
    ],
)
def observed(request, tmp_path_factory):
    """What each checkpoint did with each residency of its weights."""
    name, checkpoints, residencies = request.param
    host = find_host(name)
    if problem := host.problem():
        pytest.skip(problem)
    if importlib.util.find_spec("comfy_aimdo") is None:
        pytest.skip("comfy_aimdo is not installed (it comes with ComfyUI's requirements)")
    backends = pytest.importorskip("torch.utils.backend_registration")
    if not hasattr(backends, "_setup_privateuseone_for_python_backend"):
        pytest.skip("this torch cannot have a device in Python")
    python = os.environ.get("COMFYUI_PYTHON") or sys.executable
    module = "mmada_parallel.tests.comfyui.dynamic_vram"
    folder = tmp_path_factory.mktemp(f"dynamic-{name}")
    command = [python, "-m", module, str(host.path), str(folder), checkpoints, residencies]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=1800)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.strip().rpartition("\n")[2])


def test_the_weights_are_comfyuis_to_stream(observed):
    for name, runs in observed.items():
        for residency, run in runs.items():
            assert run["dynamic"] == (residency != "classic")
            assert bool(run["managed"]) == run["dynamic"] or name in SMALL
            assert bool(run["quantised"]) == name.endswith(".safetensors")


def test_tokens_and_pictures_do_not_depend_on_what_is_resident(observed):
    for name, runs in observed.items():
        for run in runs.values():
            assert run["edits"] == [runs["classic"]["edits"][0]] * 3  # also after a training
            assert run["adapted"] == [runs["classic"]["adapted"][0]] * 2
            assert run["adapted"][0] != run["edits"][0] or name in SMALL


def test_gradients_do_not_depend_on_what_is_resident(observed):
    for runs in observed.values():
        assert any(runs["classic"]["training"][1:])
        for run in runs.values():
            assert run["training"] == runs["classic"]["training"]


def test_every_weight_that_was_pinned_is_let_go(observed):
    for name, runs in observed.items():
        for residency, run in runs.items():
            assert run["pinned"] == 0
            if name in SMALL:
                continue
            assert bool(run["refused"]) == (residency in ("none", "alternate", "flapping"))
            assert (run["refused"] == run["asked"]) == (residency in ("none", "classic"))
