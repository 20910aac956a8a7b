"""Apply LoRA: adapters on a model whose memory is ComfyUI's."""

import gc
import os

import pytest
import torch
from mmada_parallel.mmp_core import InputError, SamplerSettings, denoise, encode_instruction
from mmada_parallel.mmp_core.checkpoint.convert import convert
from mmada_parallel.tests.nodes.hosted import prepare
from mmada_parallel.tests.training.adapted import KINDS, stirred
from mmada_parallel.training.weights.adapter_files import (
    adapter_tensors,
    base_metadata,
    save_adapter,
)
from mmada_parallel.training.weights.policies import LoRA

IDS = torch.arange(60)[None]


def adapter_for(model, seed=1):
    lora = stirred(LoRA(model.model.transformer, rank=4, alpha=6), seed)
    lora.detach()
    return lora


@pytest.fixture(scope="session")
def lora_folder(nodes, tmp_path_factory):
    import folder_paths

    folder = tmp_path_factory.mktemp("loras")
    folder_paths.add_model_folder_path("loras", str(folder), is_default=True)
    return folder


@pytest.fixture
def edit(lora_folder, model):
    """An adapter file of the model folder."""
    path = lora_folder / "edit.safetensors"
    save_adapter(path, adapter_for(model), base_metadata(model.model))
    yield path
    path.unlink()


@pytest.fixture
def apply(run_node, model):
    def run(lora="none", strength=1.0, on=model, **inputs):
        return run_node("ApplyLoRA", model=on, lora=lora, strength=strength, **inputs)[0]

    return run


@torch.inference_mode()  # as ComfyUI runs nodes
def hidden(hosted):
    """What the transformer computes once ComfyUI has loaded ``hosted``."""
    prepare(hosted, encode_instruction(hosted.model, "add a red star"), previews=True)
    return hosted.model.transformer(IDS)


def with_ours(model, *loras, strengths=None):
    """The same through the core alone."""
    base = hidden(model)
    at_work = [
        lora.attach(model.model.transformer, strength * lora.alpha / lora.rank)
        for lora, strength in zip(loras, strengths or [1.0] * len(loras), strict=True)
    ]
    with torch.inference_mode():
        found = model.model.transformer(IDS)
    for bypass in at_work:
        bypass.remove()
    assert not torch.allclose(found, base, atol=1e-2)
    return found


def test_a_file_is_applied_and_the_model_stays_as_it_was(model, apply, edit):
    before, expected = hidden(model), with_ours(model, adapter_for(model))
    adapted = apply("edit.safetensors")
    assert torch.equal(hidden(model), before)
    assert torch.allclose(hidden(adapted), expected, atol=1e-5)
    assert torch.equal(hidden(model), before)
    assert torch.allclose(hidden(adapted), expected, atol=1e-5)
    assert adapted.model is model.model


def test_what_is_connected_wins_over_the_file(model, apply, edit):
    other = adapter_for(model, seed=2)
    adapted = apply("edit.safetensors", lora_model=adapter_tensors(other))
    assert torch.allclose(hidden(adapted), with_ours(model, other), atol=1e-5)


@pytest.mark.parametrize("strength", [-0.5, 0.3, 2.0])
def test_strength_scales_what_is_added(model, apply, edit, strength):
    expected = with_ours(model, adapter_for(model), strengths=[strength])
    assert torch.allclose(hidden(apply("edit.safetensors", strength)), expected, atol=1e-5)


def test_none_and_strength_0_are_the_model_itself(model, apply, edit):
    assert apply("none") is model
    assert apply("edit.safetensors", 0.0) is model


def test_adapters_add_up_and_each_branch_keeps_its_own(model, apply, edit):
    one, two = adapter_for(model, 1), adapter_for(model, 2)
    first = apply("edit.safetensors")
    hidden(first)
    both = apply(on=first, strength=0.5, lora_model=adapter_tensors(two))
    expected = {
        "base": hidden(model),
        "first": with_ours(model, one),
        "both": with_ours(model, one, two, strengths=[1.0, 0.5]),
    }
    branches = {"base": model, "first": first, "both": both}
    for name in ("both", "first", "base", "both", "base", "first", "both"):
        assert torch.allclose(hidden(branches[name]), expected[name], atol=1e-5), name


def test_an_adapted_model_that_is_dropped_leaves_nothing(model, apply, edit):
    before = hidden(model)
    first = apply("edit.safetensors")
    adapted = hidden(first)
    both = apply("edit.safetensors", on=first)  # cloned from a patcher at work, never loaded
    del both
    gc.collect()
    with torch.inference_mode():
        assert torch.equal(first.model.transformer(IDS), adapted)
    del first
    gc.collect()
    with torch.inference_mode():
        assert torch.equal(model.model.transformer(IDS), before)
    assert torch.equal(hidden(model), before)


def test_freeing_all_memory_takes_adapters_off_until_the_next_run(model, apply, edit):
    import comfy.model_management

    before, adapted = hidden(model), apply("edit.safetensors")
    expected = hidden(adapted)
    comfy.model_management.unload_all_models()
    with torch.inference_mode():
        assert torch.equal(model.model.transformer(IDS), before)
    assert torch.equal(hidden(adapted), expected)


def test_comfyui_counts_and_moves_the_adapters_own_memory(model, apply, edit):
    import comfy.model_management

    adapted = apply("edit.safetensors")
    hidden(adapted)
    own = adapted.adapters[0].patcher
    stored = sum(tensor.numel() * 4 for tensor in adapter_for(model).state_dict().values())
    assert own.model_size() == stored
    assert own in [entry.model for entry in comfy.model_management.current_loaded_models]
    assert adapted.get_models() == [adapted.patcher, own, adapted.image_patcher]
    assert all(
        hasattr(layer, "comfy_cast_weights")
        for layer in own.model.modules()
        if getattr(layer, "weight", None) is not None
    )


def test_nodes_work_with_an_adapted_model(run_node, model, apply, edit, denoised):
    adapted = apply("edit.safetensors")
    prompt = run_node(
        "EncodeInstruction",
        model=adapted,
        image=torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(1)),
        width=0,
        height=0,
        instruction="remove the red star",
        text_length=0,
    )[0]
    plain = denoised(prompt, model=model)
    answer = denoised(prompt, model=adapted)
    again = denoised(prompt, model=adapted)
    assert torch.equal(answer[0].image, again[0].image)
    assert not torch.equal(answer[0].image, plain[0].image)
    assert torch.equal(denoised(prompt, model=model)[0].image, plain[0].image)
    assert run_node("DecodeImage", model=adapted, tokens=answer[0], fill="grey")[0].ndim == 4


def test_an_adapter_can_be_trained_on_in_though_nodes_run_in_inference_mode(model, apply, edit):
    with torch.inference_mode():
        adapted = apply("edit.safetensors")
    assert not any(p.is_inference() for p in adapted.adapters[0].patcher.model.parameters())


@pytest.fixture(params=["fp8", "int8"])
def quantised(host, model_folder, request):
    file = model_folder / "adapted.safetensors"
    convert(model_folder / "untrained", file, quantize=request.param)
    yield host.load(file.name, "fp32", "auto")
    file.unlink()


def test_quantised_weights_are_bypassed(quantised, apply, edit, model):
    before = hidden(quantised)
    adapted = apply("edit.safetensors", on=quantised)
    assert torch.allclose(hidden(adapted), with_ours(quantised, adapter_for(model)), atol=1e-5)
    assert torch.equal(hidden(quantised), before)


def test_adapters_train_over_comfyuis_quantised_layers(quantised):
    transformer = quantised.model.transformer
    before = hidden(quantised)
    with LoRA(transformer, rank=2, device="cpu") as lora:
        transformer(IDS).sin().sum().backward()
        grads = [low_rank.lora_B.weight.grad for low_rank in lora.low_ranks.values()]
        assert all(grad.abs().max() > 0 for grad in grads)
        stirred(lora)
        assert not torch.equal(transformer(IDS), before)
        with lora.reference():
            assert torch.equal(transformer(IDS), before)


def test_layers_without_weights_until_loading_are_filled(model, apply, edit, monkeypatch):
    """As under DynamicVRAM, where a linear layer is empty until its weights come."""
    import comfy.memory_management

    expected = with_ours(model, adapter_for(model))
    with monkeypatch.context() as dynamic:
        dynamic.setattr(comfy.memory_management, "aimdo_enabled", True)
        adapted = apply("edit.safetensors")
    assert torch.allclose(hidden(adapted), expected, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_comfyuis_lora_machinery_reads_every_kind(model, edit, kind):
    import comfy.lora
    import comfy.utils

    lora = stirred(LoRA(model.model.transformer, rank=4, **KINDS[kind]))
    with torch.inference_mode():
        expected = model.model.transformer(IDS)
    count = len(lora.shapes)
    lora.detach()
    save_adapter(edit, lora, base_metadata(model.model))
    tensors = comfy.utils.load_torch_file(str(edit), safe_load=True)
    keys = model.model.transformer.state_dict()
    names = {f"base_model.model.{key.removesuffix('.weight')}": key for key in keys}
    patches = comfy.lora.load_lora(tensors, names)
    assert len(patches) == count
    patcher = model.patcher.clone()
    assert len(patcher.add_patches(patches)) == count
    comfy_model = type(model)(model.model, patcher, model.image_patcher)
    assert torch.allclose(hidden(comfy_model), expected, atol=1e-5)
    del patcher, comfy_model
    gc.collect()
    assert not torch.allclose(hidden(model), expected, atol=1e-2)


def test_what_save_lora_writes_is_read(model, apply, lora_folder, monkeypatch):
    import folder_paths
    from comfy_extras.nodes_train import SaveLoRA

    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(lora_folder))
    lora = adapter_for(model)
    SaveLoRA.execute(adapter_tensors(lora), "trained", 12)
    [file] = lora_folder.glob("trained_12_steps_*.safetensors")
    assert torch.allclose(hidden(apply(file.name)), with_ours(model, lora), atol=1e-5)
    file.unlink()


def test_files_are_offered_but_for_pickles(folders, edit, lora_folder):
    (lora_folder / "old.pt").touch()
    assert folders.adapter_names()[0] == "none"
    assert "edit.safetensors" in folders.adapter_names()
    assert "old.pt" not in folders.adapter_names()
    for name in ("old.pt", "../edit.safetensors", "gone.safetensors"):
        with pytest.raises(InputError, match="put it there"):
            folders.adapter_file(name)


def test_the_fingerprint_changes_with_the_file_and_only_then(classes, edit):
    fingerprint = classes["MMaDAParallelApplyLoRA"].fingerprint_inputs
    before = fingerprint(lora="edit.safetensors", strength=1.0)
    assert before == fingerprint(lora="edit.safetensors", strength=1.0)
    os.utime(edit, (0, 0))
    assert fingerprint(lora="edit.safetensors", strength=1.0) != before
    assert fingerprint(lora="none", strength=1.0) == []


def test_an_adapter_of_another_model_is_refused(apply):
    wrong = {
        "layers.0.lora_down.weight": torch.zeros(2, 4),
        "layers.0.lora_up.weight": torch.zeros(4, 2),
    }
    with pytest.raises(InputError, match="lora_model is not an adapter of this model"):
        apply(lora_model=wrong)


def test_another_base_is_doubted_in_the_log(model, apply, lora_folder, caplog):
    path = lora_folder / "other.safetensors"
    save_adapter(path, adapter_for(model), {"base_fingerprint": "another"})
    apply("other.safetensors")
    path.unlink()
    assert "other.safetensors was trained on another checkpoint" in caplog.text


def test_tokens_are_those_of_the_plain_core(model, apply, edit):
    settings = SamplerSettings(seed=3, image_steps=4)
    prompt = encode_instruction(model.model, "add a red star")
    adapted = apply("edit.safetensors")
    prepare(adapted, prompt)
    found = denoise(adapted.model, prompt, settings).final
    hidden(model)
    lora = adapter_for(model)
    bypass = lora.attach(model.model.transformer, lora.alpha / lora.rank)
    expected = denoise(model.model, prompt, settings).final
    bypass.remove()
    assert torch.equal(found.text, expected.text) and torch.equal(found.image, expected.image)
