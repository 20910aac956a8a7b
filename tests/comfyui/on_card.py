"""Runs a module of these tests with ComfyUI on a card in Python (card.py), in its own process."""

import os
import subprocess
import sys

import pytest
from mmada_parallel.tests.hosts import find_host


def run_on_card(module, host_name, *arguments, timeout=300):
    """What ``tests/comfyui/MODULE.py COMFYUI ARGUMENTS`` prints. Skips the test where there is no
    such ComfyUI, or torch cannot have a device in Python."""
    host = find_host(host_name)
    if problem := host.problem():
        pytest.skip(problem)
    backends = pytest.importorskip("torch.utils.backend_registration")
    if not hasattr(backends, "_setup_privateuseone_for_python_backend"):
        pytest.skip("this torch cannot have a device in Python")
    python = os.environ.get("COMFYUI_PYTHON") or sys.executable
    command = [python, "-m", f"mmada_parallel.tests.comfyui.{module}", str(host.path)]
    command += map(str, arguments)
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=timeout)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
