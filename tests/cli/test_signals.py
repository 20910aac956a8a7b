"""Signals to a command that trains in a process of its own, with others that make its batches."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

SFT = ("train", "sft", "--data", "demo", "--cases", 8, "--steps", 10_000, "--batch-size", 2)
SFT += ("--micro-batch", 2, "--workers", 1, "--guard", "none")


def restored():
    """What the tests of this process have set is not passed on."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def under_nohup():
    restored()
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


@pytest.fixture
def begun(request, tmp_path):
    """A run of its own session, and what it has written so far, once it has taken a step."""
    output = tmp_path / "toy.safetensors"
    command = [sys.executable, "-m", "mmada_parallel.cli", *map(str, SFT), "--output", str(output)]
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
        preexec_fn=getattr(request, "param", restored),
    )
    told, stepped = bytearray(), threading.Event()

    def read():
        while content := os.read(process.stderr.fileno(), 4096):
            told.extend(content)
            if b" 1/10000 " in told:
                stepped.set()

    reader = threading.Thread(target=read)
    reader.start()
    yield process, told, stepped, reader
    process.kill()
    reader.join()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_one_to_the_whole_group_is_told_in_one_line(begun, tmp_path, number):
    process, told, stepped, reader = begun
    assert stepped.wait(timeout=300), told.decode()
    os.killpg(process.pid, number)
    assert process.wait(timeout=120) == 130, told.decode()
    reader.join()
    assert b"Traceback" not in told and told.endswith(b"\nmmada-parallel: stopped\n")
    assert b"--resume continues it." in told
    assert (tmp_path / "toy-run" / "run.pt").is_file()
    assert (tmp_path / "toy.safetensors").is_file()


@pytest.mark.parametrize("begun", [under_nohup], indirect=True)
def test_under_nohup_training_goes_on(begun):
    process, told, stepped, _ = begun
    assert stepped.wait(timeout=300), told.decode()
    os.killpg(process.pid, signal.SIGHUP)
    before = len(told)
    while process.poll() is None and b" 4/10000 " not in told[before:]:
        time.sleep(0.1)
    assert process.poll() is None, told.decode()
    os.killpg(process.pid, signal.SIGTERM)
    assert process.wait(timeout=120) == 130, told.decode()
