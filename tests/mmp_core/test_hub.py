"""Downloads from a server on this machine that speaks the hub's protocol."""

import json
import os
import random
import shutil
import signal
import sys
import time
from collections import namedtuple

import pytest
from mmada_parallel.mmp_core import InputError, load_checkpoint
from mmada_parallel.mmp_core.checkpoint import convert as convert_module
from mmada_parallel.mmp_core.checkpoint import hub as module
from mmada_parallel.mmp_core.checkpoint.convert import convert
from mmada_parallel.mmp_core.checkpoint.hub import download
from mmada_parallel.mmp_core.checkpoint.inspect import inspect_checkpoint
from mmada_parallel.tests.fake_hub import COMMIT, serving
from mmada_parallel.tests.mmp_core import tiny
from safetensors import safe_open

NAMES = {"A": "MMaDA-Parallel-A", "M": "MMaDA-Parallel-M"}
SHARD = "model-00002.safetensors"
PICTURES = "vqvae/diffusion_pytorch_model.safetensors"
README = "---\nlicense: mit\n---\n# A card\n"


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """The three repositories as their authors laid them out, tiny."""
    root = tmp_path_factory.mktemp("released")
    for variant, name in NAMES.items():
        folder = tiny.write_checkpoint(root / name, variant, shards=3)
        (folder / "README.md").write_text(README)
        (folder / "modeling.py").write_text("raise SystemExit")
    magvit = root / "magvitv2"
    (root / NAMES["M"] / "magvitv2").rename(magvit)
    (magvit / "model.safetensors").rename(magvit / "pytorch_model.safetensors")
    return root


@pytest.fixture(autouse=True)
def short_chunks(monkeypatch):
    """``huggingface_hub`` keeps what has arrived of a file in chunks, of 10 MB."""
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 512)


@pytest.fixture
def hub(released, monkeypatch):
    monkeypatch.setattr(module, "_PAUSE", 0)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    repositories = {f"tyfeld/{name}": released / name for name in NAMES.values()}
    with serving(repositories | {"showlab/magvitv2": released / "magvitv2"}) as hub:
        yield hub


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("variant", NAMES)
def test_the_folder_is_what_was_released(hub, released, tmp_path, variant):
    notes = []
    path = download(variant, tmp_path, endpoint=hub.url, note=notes.append)
    assert path == tmp_path / NAMES[variant]
    expected = contents(released / NAMES[variant])
    del expected[next(name for name in expected if name.name == "modeling.py")]
    found = contents(path)
    if variant == "M":
        held = {name: found.pop(name) for name in list(found) if name.parts[0] == "magvitv2"}
        assert list(held.values()) == list(contents(released / "magvitv2").values())
    assert found == expected
    assert load_checkpoint(path).variant.id == variant
    repositories = [f"tyfeld/{NAMES[variant]}"] + ["showlab/magvitv2"] * (variant == "M")
    assert notes == [f"{r} at commit {COMMIT[:10]}, licence: mit" for r in repositories]
    assert inspect_checkpoint(path).licence == f"mit ({path.name})"


def test_a_converted_download_is_the_converted_folder(hub, tmp_path):
    variant = "M"
    folder = download(variant, tmp_path / "whole", endpoint=hub.url)
    convert(folder, tmp_path / "expected.safetensors", quantize="int8")
    path = download(variant, tmp_path / "into", quantize="int8", endpoint=hub.url)
    assert list(path.parent.iterdir()) == [path]
    assert path.name == f"{NAMES[variant]}-int8.safetensors"
    assert_same_but_for_provenance(path, tmp_path / "expected.safetensors")
    origin = provenance(path)
    assert (origin["source"], origin["commit"]) == (f"tyfeld/{NAMES[variant]}", COMMIT)
    assert f"mit (tyfeld/{NAMES[variant]})" in inspect_checkpoint(path).licence


def provenance(path):
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()["mmada_parallel"])["provenance"]


def assert_same_but_for_provenance(path, other):
    with safe_open(path, framework="pt") as a, safe_open(other, framework="pt") as b:
        about = [file.metadata() for file in (a, b)]
        assert a.keys() == b.keys()
        assert all((a.get_tensor(n) == b.get_tensor(n)).all() for n in a.keys())
    for each in about:
        del each["mmada_parallel"]
    assert about[0] == about[1]


def test_the_disk_holds_the_result_and_one_shard_at_most(hub, released, tmp_path):
    held, whole = set(), set()

    def measure(label, done, total):
        names = [path.name for path in tmp_path.rglob("*model-*") if "index" not in path.name]
        held.add(len(names))
        whole.update(name for name in names if name.startswith("model-"))

    download("A", tmp_path, quantize="int8", endpoint=hub.url, advance=measure)
    assert held == {0, 1}
    assert whole == {path.name for path in (released / NAMES["A"]).glob("model-*")}


def test_breaks_in_mid_file_lose_nothing(hub, released, tmp_path):
    hub.cut = [1500, 3000, 1200, 20000, 1000, 2500, 5000]
    path = download("A", tmp_path, quantize="fp8", endpoint=hub.url)
    assert hub.cut == []
    assert any(start > 0 for _, start, _ in hub.log)
    size = (released / NAMES["A"] / PICTURES).stat().st_size
    assert size <= hub.sent(PICTURES) <= size + 5 * 512
    calm = download("A", tmp_path / "calm", quantize="fp8", endpoint=hub.url)
    assert path.read_bytes() == calm.read_bytes()


def test_a_server_that_sends_all_again_spoils_nothing(hub, tmp_path):
    hub.cut, hub.ignore_range = [1500, 3000, 1200], True
    path = download("A", tmp_path, endpoint=hub.url)
    load_checkpoint(path)


def test_a_dead_line_is_one_sentence_and_the_next_call_goes_on(hub, released, tmp_path):
    hub.cut = [30_000, *[0] * 60]
    with pytest.raises(InputError, match="could not be downloaded .*run the same command again"):
        download("A", tmp_path, endpoint=hub.url)
    assert not (tmp_path / NAMES["A"] / "config.json").exists()
    hub.cut, hub.log = [], []
    path = download("A", tmp_path, endpoint=hub.url)
    assert any(start > 29_000 for _, start, _ in hub.log)
    load_checkpoint(path)
    assert not list(path.rglob("*.part"))


def test_a_download_that_is_whole_is_not_repeated(hub, tmp_path):
    for quantize in (None, "int8"):
        path = download("A", tmp_path, quantize=quantize, endpoint=hub.url)
        hub.log, before = [], path.stat().st_mtime_ns
        assert download("A", tmp_path, quantize=quantize, endpoint=hub.url) == path
        assert (hub.log, path.stat().st_mtime_ns) == ([], before)


def test_what_hf_download_has_filled_is_completed(hub, released, tmp_path):
    folder = tmp_path / NAMES["A"]
    shutil.copytree(released / NAMES["A"], folder)
    (folder / SHARD).unlink()
    download("A", tmp_path, endpoint=hub.url)
    assert {name for name, _, _ in hub.log} == {SHARD}


def refused(hub, into, message, **options):
    with pytest.raises(InputError, match=message) as caught:
        download("A", into, endpoint=hub.url, **options)
    assert "\n" not in str(caught.value)


def test_an_unknown_format_is_refused_before_anything_is_fetched(hub, tmp_path):
    refused(hub, tmp_path, "quantize is 'bogus'; expected fp8", quantize="bogus")
    assert not list(tmp_path.iterdir())


def test_another_file_of_the_same_name_is_left_alone(hub, tmp_path):
    own = tmp_path / NAMES["A"] / SHARD
    own.parent.mkdir()
    own.write_bytes(b"mine")
    refused(hub, tmp_path, "is not the file that tyfeld/MMaDA-Parallel-A has now: move it away")
    assert own.read_bytes() == b"mine"


def test_damaged_files_are_noticed(hub, tmp_path):
    hub.spoil = {SHARD}
    for quantize in (None, "int8"):
        refused(hub, tmp_path, f"{SHARD} of .* arrived damaged, twice", quantize=quantize)
        assert not list(tmp_path.rglob(SHARD))


@pytest.mark.parametrize(
    "status, message",
    [(404, "is not there, or not for everyone"), (403, "was refused"), (500, "could not be")],
)
def test_refusals_are_one_sentence(hub, tmp_path, status, message):
    hub.status = status
    refused(hub, tmp_path, message)
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_is_not_there_is_one_sentence(hub, tmp_path):
    hub.url = "http://127.0.0.1:1"
    refused(hub, tmp_path, "could not be downloaded")


@pytest.mark.parametrize("quantize", [None, "int8"])
def test_a_full_disk_is_told_before_the_weights(hub, tmp_path, quantize, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: usage(10**9, 10**9, 20_000))
    refused(hub, tmp_path, r"more are needed, but .* has 0.0 MB: make room", quantize=quantize)
    assert not any("model-" in name and ".json" not in name for name, _, _ in hub.log)


def test_a_disk_that_fills_up_is_one_sentence(hub, tmp_path, monkeypatch):
    class Full:
        def write(self, data):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "_Counted", lambda *args: Full())
    refused(hub, tmp_path, "cannot be written .No space left on device.: make room; run the same")


def test_an_update_of_the_repository_begins_anew(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(convert_module, "_write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        download("A", tmp_path, quantize="int8", endpoint=hub.url)
    (work,) = tmp_path.glob(".*.download")
    work.rename(work.with_name(work.name.replace(COMMIT[:10], "0123456789")))
    monkeypatch.undo()
    path = download("A", tmp_path, quantize="int8", endpoint=hub.url)
    assert list(tmp_path.iterdir()) == [path]


def interrupted(*args):
    raise KeyboardInterrupt


def killed_at_random_moments(action, seed, result, forget, longest=0.5, kills=10):
    """Run ``action`` in a child again and again until so many kills hit, without warning; then to
    its end. Never is there half of a ``result``; one that is whole before a kill is forgotten."""
    hits, random_moments = 0, random.Random(seed)
    while hits < kills:
        child = os.fork()
        if not child:
            try:
                action()
            finally:
                os._exit(0)
        time.sleep(random_moments.uniform(0, longest))
        os.kill(child, signal.SIGKILL)
        hit = os.waitpid(child, 0)[1] != 0
        hits += hit
        if result.is_file():
            load_checkpoint(result if result.suffix == ".safetensors" else result.parent)
            if not hit:
                forget()
    action()


@pytest.mark.skipif(sys.platform == "win32", reason="forks")
@pytest.mark.parametrize("quantize", [None, "int8"])
def test_ten_kills_change_nothing(released, tmp_path, quantize):
    name = NAMES["A"]
    with serving({f"tyfeld/{name}": released / name}) as hub:
        into, calm = tmp_path / "killed", tmp_path / "calm"
        download("A", calm, quantize=quantize, endpoint=hub.url)
        hub.pause = 0.004
        result = into / (f"{name}-{quantize}.safetensors" if quantize else f"{name}/config.json")

        def action():
            download("A", into, quantize=quantize, endpoint=hub.url)

        killed_at_random_moments(action, 3, result, lambda: shutil.rmtree(into))
        assert contents(into) == contents(calm)


@pytest.mark.skipif(sys.platform == "win32", reason="forks")
def test_ten_kills_of_a_conversion_change_nothing(released, tmp_path, monkeypatch):
    source, out = released / NAMES["A"], tmp_path / "out.safetensors"
    convert(source, tmp_path / "calm.safetensors", quantize="int8")
    write = convert_module._write

    def slow_write(*parts):
        time.sleep(0.01)
        write(*parts)

    monkeypatch.setattr(convert_module, "_write", slow_write)
    killed_at_random_moments(lambda: convert(source, out, quantize="int8"), 3, out, out.unlink)
    assert out.read_bytes() == (tmp_path / "calm.safetensors").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["calm.safetensors", "out.safetensors"]
