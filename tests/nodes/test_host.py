"""Folders, memory and what the page is told: everything of ours that touches ComfyUI itself."""

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmada_parallel.mmp_core import CheckpointError, SamplerSettings, encode_instruction, memory
from mmada_parallel.mmp_core.checkpoint.load import EMBEDDED
from mmada_parallel.mmp_core.memory import (
    MemoryEstimate,
    decoding_bytes,
    denoising_estimate,
)
from mmada_parallel.tests.nodes.hosted import prepare


def test_the_users_own_model_paths_are_kept(host):
    import folder_paths

    paths, extensions = folder_paths.folder_names_and_paths["mmada_parallel"]
    assert "from/extra_model_paths" in paths
    assert os.path.join(folder_paths.models_dir, "mmada_parallel") in paths
    assert extensions == {".safetensors"}


@pytest.fixture
def crowded(model_folder):
    """Everything a user may put there, for the time of one test."""
    cached = ["models--tyfeld--MMaDA-Parallel-M", "models--showlab--magvitv2"]
    added = ["tyfeld/A", "magvitv2", "notes", *(f"{name}/snapshots/0123" for name in cached)]
    for name in added:
        (model_folder / name).mkdir(parents=True)
        (model_folder / name / "model.safetensors").touch()
    for name in ("tyfeld/A", "magvitv2"):
        (model_folder / name / "config.json").write_text("{}")
    (model_folder / "tyfeld" / "A" / "vqvae").mkdir()
    (model_folder / "tyfeld" / "A" / "vqvae" / "config.json").write_text("{}")
    (model_folder / "packed.safetensors").touch()
    (model_folder / "magvit.bin").touch()
    yield
    for name in ("tyfeld", "magvitv2", "notes", *cached):
        shutil.rmtree(model_folder / name)
    (model_folder / "packed.safetensors").unlink()
    (model_folder / "magvit.bin").unlink()


def test_only_what_can_be_loaded_is_offered(folders, crowded):
    notes = "notes/model.safetensors"
    assert list(folders.checkpoints()) == [
        *(name for name, path in EMBEDDED.items() if path.is_dir()),
        "models--tyfeld--MMaDA-Parallel-M",
        notes,
        "packed.safetensors",
        "tyfeld/A",
        "untrained",
    ]
    assert list(folders.image_tokenizers()) == [
        "auto",
        "magvit.bin",
        "magvitv2",
        "models--showlab--magvitv2",
        notes,
        "packed.safetensors",
    ]


@pytest.mark.parametrize("name", ["../untrained", "/etc", "gone"])
def test_a_name_that_is_not_offered_is_refused_with_the_place_it_goes(host, model_folder, name):
    with pytest.raises(CheckpointError, match=str(model_folder)):
        host.load(name, "auto", "auto")


def test_an_incomplete_checkpoint_is_named(host, model_folder):
    broken = model_folder / "broken"
    shutil.copytree(model_folder / "untrained", broken)
    (broken / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match="tokenizer.json is missing in .*broken"):
        host.load("broken", "auto", "auto")
    shutil.rmtree(broken)


def test_the_fingerprint_changes_with_a_file_and_only_then(classes, model_folder):
    def fingerprint(checkpoint):
        loader = classes["MMaDAParallelLoader"]
        return loader.fingerprint_inputs(checkpoint, "auto", image_tokenizer="auto")

    before = fingerprint("untrained")
    assert before and before == fingerprint("untrained")
    json.dumps(before)
    os.utime(model_folder / "untrained" / "vqvae" / "config.json", (0, 0))
    assert fingerprint("untrained") != before
    assert fingerprint("gone") == []


def test_comfyui_manages_both_parts(host, model):
    import comfy.model_management

    assert model.patcher.model is model.model.transformer
    assert model.get_models() == [model.patcher, model.image_patcher]
    assert model.is_dynamic() is False
    model.prepare_decoding((4, 4))
    prepare(model, encode_instruction(model.model, "add a red star"), previews=True)
    loaded = [entry.model for entry in comfy.model_management.current_loaded_models]
    assert model.patcher in loaded and model.image_patcher in loaded


def test_its_layers_are_those_that_comfyui_can_stream(model):
    bare = {
        type(layer)
        for part in (model.model.transformer, model.model.image_tokenizer)
        for layer in part.modules()
        if getattr(layer, "weight", None) is not None and not hasattr(layer, "comfy_cast_weights")
    }
    assert not bare


def test_weights_can_be_trained_though_nodes_run_in_inference_mode(host):
    with torch.inference_mode():
        loaded = host.load("untrained", "fp32", "auto")
    assert not any(p.is_inference() for p in loaded.model.transformer.parameters())


@pytest.mark.parametrize("name, expected", [("auto", "float32"), ("bf16", "bfloat16")])
def test_dtype_is_that_of_the_transformer(host, name, expected):
    loaded = host.load("untrained", name, "auto").model
    assert {str(p.dtype) for p in loaded.transformer.parameters()} == {f"torch.{expected}"}
    assert {p.dtype for p in loaded.image_tokenizer.parameters()} == {torch.float32}


def test_a_large_model_stays_as_stored_on_a_cpu(host, monkeypatch):
    stored = {"model.transformer.ln_f.weight": torch.ones(1, dtype=torch.bfloat16)}
    source, cpu = SimpleNamespace(weights=stored), torch.device("cpu")
    assert host.models._fitting_dtype(source, cpu) == torch.float32
    monkeypatch.setattr(memory, "_SMALL", 1)
    assert host.models._fitting_dtype(source, cpu) == torch.bfloat16


def mapped(loaded):
    """The weights of ``loaded`` that lie in a file which is mapped into memory."""
    lines = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    spans = [tuple(int(end, 16) for end in line[0].split("-")) for line in lines if len(line) > 5]
    parts = (patcher.model for patcher in loaded.get_models())
    pointers = [weight.data_ptr() for part in parts for weight in part.parameters()]
    files = [line[5] for line in lines if len(line) > 5]
    return [
        pointer
        for pointer in pointers
        for (start, end), file in zip(spans, files, strict=True)
        if start <= pointer < end and file.endswith(".safetensors")
    ]


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc")
def test_weights_that_may_be_pinned_have_memory_of_their_own(host, monkeypatch):
    """Two that share a page of a mapped file cannot be."""
    import comfy.model_management as management

    assert mapped(host.load("untrained", "auto", "auto")), "on a CPU nothing is copied"
    monkeypatch.setattr(management, "get_torch_device", lambda: torch.device("meta"))
    assert not mapped(host.load("untrained", "fp32", "auto"))


def test_layers_without_weights_until_loading_are_filled_and_checked(
    host, monkeypatch, model_folder
):
    """As under DynamicVRAM, where a linear layer is empty until its weights come."""
    import comfy.memory_management
    import comfy.utils

    monkeypatch.setattr(comfy.memory_management, "aimdo_enabled", True)
    monkeypatch.setattr(host.models, "_read_by_host", lambda source: source)
    loaded = host.load("untrained", "auto", "auto")
    assert loaded.model.transformer.layers["ff_out"].weight is not None
    loaded.model.transformer.layers["ff_out"].weight = None
    with pytest.raises(CheckpointError, match="lacks model.transformer.ff_out.weight"):
        host.models._check_filled(loaded.model, model_folder)


class Loading:
    """Stands for `load_models_gpu`."""

    def __init__(self):
        self.patchers, self.asked = [], []

    def __call__(self, patchers, memory_required):
        self.patchers.append(patchers)
        self.asked.append(memory_required)


def test_room_is_made_for_what_was_estimated(host, model, monkeypatch):
    import comfy.model_management as management

    loading = Loading()
    monkeypatch.setattr(management, "load_models_gpu", loading)
    prompt = encode_instruction(model.model, "add a red star", batch=3)
    estimate = denoising_estimate(model.model, prompt, SamplerSettings())
    model.memory_budget(prompt, previews=False).prepare(estimate, 2)
    model.memory_budget(prompt, previews=True).prepare(estimate, 2)
    prepare(model, prompt)
    assert loading.patchers[:2] == [[model.patcher], [model.patcher, model.image_patcher]]
    assert loading.asked == [estimate.total(2), estimate.total(2), estimate.total(3)]


@pytest.mark.parametrize("spare, expected", [(0.0, 8), (1.0, 1), (3.5, 3), (99.0, 8)])
def test_a_batch_is_split_before_its_weights_are_streamed(
    host, model, monkeypatch, spare, expected
):
    """``spare``: samples that fit beside the weights. Other models can make way, so they count as
    free. Where not even one sample fits, half of the device is for samples."""
    import comfy.model_management as management

    device, estimate = torch.device("meta"), MemoryEstimate(fixed=1000, working=900, retained=100)
    loaded = [
        SimpleNamespace(
            device=place, model=model.patcher, model_loaded_memory=lambda size=size: size
        )
        for place, size in ((device, 5000), (torch.device("cpu"), 10**12))
    ]
    monkeypatch.setattr(management, "current_loaded_models", loaded)
    monkeypatch.setattr(management, "extra_reserved_memory", lambda: 300)
    size = model.patcher.model_size()
    free = size + int(estimate.total(spare)) + 300 - 5000 + (0 if spare else -1)
    monkeypatch.setattr(management, "get_free_memory", lambda device: free)
    monkeypatch.setattr(model.patcher, "load_device", device)
    prompt = encode_instruction(model.model, "add a red star")
    assert model.memory_budget(prompt, previews=False).samples(estimate, 8) == expected


def test_a_file_in_float32_counts_as_what_is_loaded_of_it(host, monkeypatch):
    """DynamicVRAM keeps its weights as they are stored, and casts each that it loads."""
    import comfy.memory_management

    expected = host.load("untrained", "bf16", "auto").weights
    monkeypatch.setattr(comfy.memory_management, "aimdo_enabled", True)
    monkeypatch.setattr(host.models, "_read_by_host", lambda source: source)  # no driver here
    dynamic = host.load("untrained", "bf16", "auto")
    assert dynamic.model.transformer.blocks[0].q_proj.weight.dtype == torch.float32
    assert dynamic.weights == expected
    assert host.TrainingMemory(dynamic).weights == expected


def test_a_model_that_somebody_leaked_is_not_counted_as_free(host, monkeypatch):
    """Its patcher is gone, its module is not: ComfyUI warns of it, and cannot unload it."""
    import comfy.model_management as management
    import comfy.model_patcher

    leaked, cpu = torch.nn.Linear(4, 4), torch.device("cpu")
    patcher = comfy.model_patcher.ModelPatcher(leaked, load_device=cpu, offload_device=cpu)
    management.load_models_gpu([patcher])
    del patcher
    assert any(entry.is_dead() for entry in management.current_loaded_models)
    monkeypatch.setattr(management, "is_device_cpu", lambda device: False)
    assert host.models.free_bytes(cpu) > 0
    del leaked


@pytest.mark.parametrize(
    "gpu_free, host_free, expected",
    [
        (20, 8, "20.0 GB of 24.0 GB can be used. Host: 0.0 MB needed, 8.0 GB of 32.0 GB free."),
        (8, 8, "2.5 GB of the weights are streamed at each step, which is slow. Host: 2.5 GB "
         "needed, 8.0 GB of 32.0 GB free."),
        (8, 2, "2.5 GB needed, 2.0 GB of 32.0 GB free. The weights are read from disk again and "
         "again."),
    ],
)  # fmt: skip
def test_what_is_needed_is_said_against_what_there_is(
    host, monkeypatch, gpu_free, host_free, expected
):
    import comfy.model_management as management

    device, cpu = torch.device("meta"), torch.device("cpu")
    free, total = {device: gpu_free, cpu: host_free}, {device: 24, cpu: 32}
    monkeypatch.setattr(management, "get_free_memory", lambda device: free[device] * 10**9)
    monkeypatch.setattr(management, "get_total_memory", lambda device: total[device] * 10**9)
    monkeypatch.setattr(host.models, "free_bytes", management.get_free_memory)
    said = host.memory_cost(device, 10 * 10**9, 5 * 10**8)
    assert said.startswith("GPU: 10.5 GB needed (10.0 GB of it weights), ")
    assert said.endswith(expected)
    loading = host.memory_cost(device, 10 * 10**9, 0, loading=True)
    assert "GPU: 10.0 GB needed," in loading and "Host: 10.0 GB needed" in loading
    on_cpu = host.memory_cost(cpu, 10**9, 10**9)
    free_there = f"{host_free}.0 GB of 32.0 GB free."
    assert on_cpu == f"Memory: 2.0 GB needed (1.0 GB of it weights), {free_there}"


def test_encoding_asks_for_the_memory_of_the_picture_as_the_model_sees_it(
    run_node, model, monkeypatch
):
    import comfy.model_management as management

    loading = Loading()
    monkeypatch.setattr(management, "load_models_gpu", loading)
    picture = torch.rand(1, 500, 700, 3)
    given = {"width": 0, "height": 0, "text_length": 0}
    (prompt,) = run_node(
        "EncodeInstruction", model=model, image=picture, instruction="make it red", **given
    )
    tokenizer = model.model.image_tokenizer
    assert loading.asked[0] == decoding_bytes(tokenizer, tuple(prompt.image.shape[1:]))


def test_on_a_cpu_the_weights_are_there_already(host, model, monkeypatch):
    import comfy.model_management as management

    estimate = MemoryEstimate(fixed=0, working=900, retained=100)
    monkeypatch.setattr(management, "extra_reserved_memory", lambda: 300)
    monkeypatch.setattr(management, "get_free_memory", lambda device: 3300)
    prompt = encode_instruction(model.model, "add a red star")
    assert model.memory_budget(prompt, previews=False).samples(estimate, 8) == 3


@pytest.mark.parametrize(
    "text, shown",
    [
        ("a < b\nc", "a &lt; b<br>c"),
        ("<img src=x onerror=alert(1)>", "&lt;img src=x onerror=alert(1)&gt;"),
        ("two  spaces", "two &nbsp;spaces"),
    ],
)
def test_live_text_reaches_the_page_literally(host, text, shown):
    assert host.page.for_page(text) == shown


def test_progress_without_a_server_is_silent(host):
    progress = host.Progress("1")
    assert progress.text_due and progress.picture_due
    progress.show(1, 2)
    progress.show_text("words")
    progress.show_words(1, 2, [("words", "new")], "words")
    assert not progress.text_due


def test_words_go_to_the_page_that_queued_the_prompt(host, monkeypatch):
    sent = []
    server = SimpleNamespace(
        client_id="page",
        sockets={"page": object()},
        send_sync=lambda *message: sent.append(message),
        send_progress_text=lambda *message: sent.append(message),
    )
    monkeypatch.setattr(host.page.PromptServer, "instance", server, raising=False)
    words = [("<b>", "new"), (" ░", "masked")]
    host.Progress("5:12").show_words(3, 9, words, "<b> ░")
    assert sent == [("&lt;b&gt; ░", "5:12", "page")]
    key = "page", host.page.STEP_EVENT
    monkeypatch.setitem(host.page._listening, key, server.sockets["page"])
    host.Progress("5:12").show_words(3, 9, words, "<b> ░")
    event = {"node": "5:12", "step": 3, "total": 9, "words": words}
    assert sent[1:] == [(host.page.STEP_EVENT, event, "page")]
    server.sockets["page"] = object()  # it has connected anew, and not said so yet
    host.Progress("5:12").show_words(3, 9, words, "<b> ░")
    assert len(sent) == 3 and sent[2][0] == "&lt;b&gt; ░"


@pytest.mark.parametrize("client", [["a"], {"a": 1}, None, 5])
def test_a_page_may_call_itself_anything(host, monkeypatch, client):
    """The body of /prompt says so, unchecked."""
    sent = []
    server = SimpleNamespace(
        client_id=client, sockets={}, send_progress_text=lambda text, *_: sent.append(text)
    )
    monkeypatch.setattr(host.page.PromptServer, "instance", server, raising=False)
    host.Progress("1").show_words(3, 9, [("<b>", "new")], "<b>")
    assert sent in ([], ["&lt;b&gt;"])


def test_words_for_a_node_whose_id_cannot_be_sent_are_not(host, monkeypatch):
    """A prompt of the API may call its nodes by half of an emoji."""
    server = SimpleNamespace(
        client_id="page", sockets={}, send_progress_text=lambda text, node, page: node.encode()
    )
    monkeypatch.setattr(host.page.PromptServer, "instance", server, raising=False)
    host.Progress("\ud83d").show_words(3, 9, [("<b>", "new")], "<b>")


def test_words_in_a_loop_reach_the_node_that_the_page_shows(host, monkeypatch):
    from comfy_execution import progress
    from comfy_execution.graph import DynamicPrompt

    prompt = DynamicPrompt({"5": {}})
    prompt.add_ephemeral_node("5.0.0.7", {}, "5", "5")
    registry = progress.ProgressRegistry("a prompt", prompt)
    monkeypatch.setattr(progress, "global_progress_registry", registry)
    assert host.Progress("5.0.0.7").shown_id == "5"
