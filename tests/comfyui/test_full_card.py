"""Memory of the card that runs out at any allocation of an edit or of training (full_card.py): the
result of other runs, or one sentence and ComfyUI's own error; nothing stays on the card, and the
next run, which goes on with the training, gives what undisturbed ones give."""

import json
import os
import subprocess
import sys

import pytest
from mmada_parallel.tests.hosts import find_host

FEW, ALL = 1, 0


@pytest.fixture(params=[FEW, pytest.param(ALL, marks=pytest.mark.exhaustive)], ids=["few", "all"])
def lines(request, tmp_path):
    """One for each allocation that failed."""
    host = find_host("current")
    if problem := host.problem():
        pytest.skip(problem)
    backends = pytest.importorskip("torch.utils.backend_registration")
    if not hasattr(backends, "_setup_privateuseone_for_python_backend"):
        pytest.skip("this torch cannot have a device in Python")
    python = os.environ.get("COMFYUI_PYTHON") or sys.executable
    command = [python, "-m", "mmada_parallel.tests.comfyui.full_card", str(host.path)]
    command += [str(tmp_path / "folder"), "edit,training", str(tmp_path / "lines")]
    done = subprocess.run(
        [*command, str(request.param)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return list(map(json.loads, (tmp_path / "lines").read_text().splitlines()))


def test_every_allocation_may_fail(lines):
    assert {line["kind"] for line in lines} == {"edit", "training"}
    bad = [line for line in lines if line["verdict"] not in ("as usual", "sentence")]
    assert not bad + [line for line in lines if line["after"] != "equal"]
