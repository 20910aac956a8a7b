"""Adapter files: what they hold, who reads them, and what is refused."""

import json
import warnings

import pytest
import torch
from mmada_parallel.mmp_core import InputError, load_checkpoint
from mmada_parallel.mmp_core.checkpoint.adapters import base_metadata, build_adapter, doubt_about
from mmada_parallel.mmp_core.checkpoint.convert import convert
from mmada_parallel.tests.mmp_core.tiny import write_checkpoint
from mmada_parallel.tests.training.adapted import KINDS, quantised, stirred, write_peft_folder
from mmada_parallel.training.weights.adapter_files import (
    adapter_tensors,
    read_adapter,
    save_adapter,
    stored_tensors,
)
from mmada_parallel.training.weights.policies import LoRA, rank_and_layers
from mmada_parallel.training.weights.settings import AdapterSettings
from safetensors.torch import load_file, save_file

IDS = torch.arange(10)[None]
Q_PROJ = "model.transformer.blocks.0.q_proj"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("checkpoints") / "tiny", "A")


@pytest.fixture
def model(folder):
    return load_checkpoint(folder)


@pytest.fixture
def trained(model):
    """An adapter with an alpha of its own, and what the model computes with and without it."""
    before = model.transformer(IDS)
    lora = stirred(LoRA(model.transformer, rank=4, alpha=6))
    after = model.transformer(IDS)
    lora.detach()
    assert (after - before).abs().max() > 0.05
    return lora, before, after


def applied(model, path):
    adapter = build_adapter(model, *read_adapter(path), str(path))
    bypass = adapter.attach(model.transformer)
    found = model.transformer(IDS)
    bypass.remove()
    return found


def test_a_file_gives_back_what_was_trained(model, trained, tmp_path):
    lora, before, after = trained
    notes = {**base_metadata(model), "step": "7", "settings": json.dumps({"seed": 3})}
    save_adapter(tmp_path / "new" / "edit.safetensors", lora, notes)
    assert torch.allclose(applied(model, tmp_path / "new" / "edit.safetensors"), after, atol=1e-6)
    assert torch.equal(model.transformer(IDS), before)
    _, metadata = read_adapter(tmp_path / "new" / "edit.safetensors")
    assert metadata == {
        **notes,
        "format": "pt",
        "rank": "4",
        "alpha": "6",
        "layers": "attn_out, ff_out, ff_proj, k_proj, q_proj, up_proj, v_proj",
    }


def test_a_file_that_is_read_and_written_stays_the_same(trained, tmp_path):
    save_adapter(tmp_path / "one.safetensors", trained[0])
    save_adapter(tmp_path / "two.safetensors", read_adapter(tmp_path / "one.safetensors")[0])
    one, two = (load_file(tmp_path / f"{name}.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_training_goes_on_from_a_file(model, trained, tmp_path):
    lora, _, after = trained
    save_adapter(tmp_path / "edit.safetensors", lora)
    again = LoRA(model.transformer, rank=4)
    again.load_state_dict(read_adapter(tmp_path / "edit.safetensors")[0])
    assert torch.allclose(model.transformer(IDS), after, atol=1e-6)


@pytest.mark.parametrize(
    "prefix, down, up",
    [
        ("diffusion_model.", "lora_down", "lora_up"),
        ("", "lora_A", "lora_B"),
        ("base_model.model.", "lora_A.default", "lora_B.default"),
    ],
)
def test_names_that_others_give_are_read(model, trained, tmp_path, prefix, down, up):
    lora, _, after = trained
    tensors = {f"{prefix}{name}.alpha": torch.tensor(6.0) for name in lora.shapes}
    for name, weight in lora.state_dict().items():
        name = name.replace("lora_A", down).replace("lora_B", up)
        tensors[prefix + name] = weight
    save_file(tensors, tmp_path / "other.safetensors")
    assert torch.allclose(applied(model, tmp_path / "other.safetensors"), after, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_peft_and_we_read_every_kind_as_it_was_trained(model, tmp_path, kind):
    peft = pytest.importorskip("peft")
    before = model.transformer(IDS)
    lora = stirred(LoRA(model.transformer, rank=4, **KINDS[kind]))
    after = model.transformer(IDS)
    lora.detach()
    assert not torch.allclose(after, before, atol=1e-2)
    write_peft_folder(tmp_path, lora, base_metadata(model))
    assert torch.allclose(applied(model, tmp_path / "adapter_model.safetensors"), after, atol=1e-5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it only warns of names that it does not find
        wrapped = peft.PeftModel.from_pretrained(model.transformer, tmp_path)
    assert torch.allclose(wrapped(IDS), after, atol=1e-5)


def test_a_dora_of_another_trainer_is_refused(model, trained, tmp_path):
    """Its scales, without magnitudes, mean something else in each trainer."""
    tensors = {**trained[0].state_dict(), f"{Q_PROJ}.dora_scale": torch.ones(16, 1)}
    save_file(tensors, tmp_path / "x.safetensors")
    assert "dora_scale, which is not a LoRA matrix" in refused(model, tmp_path / "x.safetensors")


def test_what_peft_saves_is_read(model, tmp_path):
    peft = pytest.importorskip("peft")
    settings = peft.LoraConfig(r=4, lora_alpha=12, target_modules=[Q_PROJ, "v_proj"])
    wrapped = stirred(peft.get_peft_model(model.transformer, settings))
    after = wrapped(IDS)
    wrapped.save_pretrained(tmp_path)
    plain = wrapped.unload()
    assert plain is model.transformer
    assert not torch.allclose(model.transformer(IDS), after, atol=1e-3)
    assert torch.allclose(applied(model, tmp_path), after, atol=1e-6)
    assert torch.allclose(applied(model, tmp_path / "adapter_model.safetensors"), after, atol=1e-6)


def refused(model, path):
    with pytest.raises(InputError) as caught:
        build_adapter(model, *read_adapter(path), str(path))
    return str(caught.value)


def test_missing_damaged_and_pickled_files_are_refused(model, tmp_path):
    assert "No adapter at" in refused(model, tmp_path / "gone.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"no safetensors")
    assert "cannot be read" in refused(model, tmp_path / "bad.safetensors")
    torch.save({"weight": torch.zeros(1)}, tmp_path / "pickled.pt")
    assert "pickled adapters can run code" in refused(model, tmp_path / "pickled.pt")


def test_an_adapter_of_another_variant_is_refused(model, trained, tmp_path):
    save_adapter(tmp_path / "m.safetensors", trained[0], {"variant": "M"})
    told = refused(model, tmp_path / "m.safetensors")
    assert "trained on variant M; this checkpoint is of variant A" in told


@pytest.mark.parametrize(
    "tensors, told",
    [
        ({}, "holds no LoRA"),
        ({"weight": (4, 16)}, "holds weight, which is not a LoRA matrix"),
        ({f"{Q_PROJ}.lora_A.weight": (4, 16)}, "lacks a matching pair of matrices for"),
        (
            {f"{Q_PROJ}.lora_A.weight": (4, 16), f"{Q_PROJ}.lora_B.weight": (16, 3)},
            "lacks a matching pair of matrices for",
        ),
        (
            {f"{Q_PROJ}.lora_A.weight": (4, 8), f"{Q_PROJ}.lora_B.weight": (8, 4)},
            "goes from 8 to 8, this model's from 16 to 16",
        ),
        (
            {"lora_unet_mid.lora_down.weight": (4, 16), "lora_unet_mid.lora_up.weight": (16, 4)},
            f"adapts lora_unet_mid, where this model's layers are named like {Q_PROJ}",
        ),
        (
            {
                "model.transformer.ff_out.lora_A.weight": (4, 16),
                "model.transformer.ff_out.lora_B.weight": (16, 4),
            },
            "adapts model.transformer.ff_out, the embedding or output layer",
        ),
    ],
)
def test_what_is_no_adapter_of_this_model_is_refused(model, tmp_path, tensors, told):
    tensors = {name: torch.zeros(shape) for name, shape in tensors.items()}
    save_file(tensors, tmp_path / "x.safetensors")
    assert told in refused(model, tmp_path / "x.safetensors")


@pytest.mark.parametrize("kind", ["rank_pattern", "fan_in_fan_out"])
def test_other_kinds_of_peft_are_refused(model, trained, tmp_path, kind):
    write_peft_folder(tmp_path, trained[0])
    config = tmp_path / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {kind: True}))
    assert "expected PEFT's LoRA without rank_pattern" in refused(model, tmp_path)


def test_rslora_of_peft_is_read_as_peft_computes_it(model, tmp_path):
    peft = pytest.importorskip("peft")
    layers = ["blocks.0.q_proj", "blocks.1.ff_proj"]
    config = peft.LoraConfig(r=4, lora_alpha=3, use_rslora=True, target_modules=layers)
    before = model.transformer(IDS)
    wrapped = peft.inject_adapter_in_model(config, model.transformer)
    torch.manual_seed(0)
    for name, weight in wrapped.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.2)
    wanted = model.transformer(IDS)
    tensors = {
        f"base_model.model.{name.replace('.default', '')}": weight.detach().clone()
        for name, weight in wrapped.named_parameters()
        if "lora_" in name
    }
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    config.save_pretrained(tmp_path)
    clean = load_checkpoint(model.place)
    assert torch.equal(clean.transformer(IDS), before)
    found = applied(clean, tmp_path)
    assert torch.allclose(found, wanted, atol=1e-5) and not torch.allclose(found, before, atol=1e-2)


def test_our_rslora_is_a_plain_file_with_its_scale_within(model, tmp_path):
    settings = AdapterSettings(rank=16, rslora=True)
    lora = stirred(LoRA(model.transformer, rank=settings.rank, alpha=settings.alpha))
    wanted = model.transformer(IDS)
    lora.detach()
    save_adapter(tmp_path / "edit.safetensors", lora)
    assert torch.allclose(applied(model, tmp_path / "edit.safetensors"), wanted, atol=1e-5)
    state, _ = read_adapter(tmp_path / "edit.safetensors")
    name = f"{Q_PROJ}.lora_B.weight"
    assert torch.allclose(state[name], 4 * lora.state_dict()[name])  # √16 times


@pytest.fixture
def dora(model):
    """A DoRA adapter with an alpha of its own, and what the model computes with it."""
    lora = stirred(LoRA(model.transformer, rank=4, alpha=6, dora=True))
    after = model.transformer(IDS)
    lora.detach()
    return lora, after


def test_a_stored_dora_is_handed_on_whole(model, dora, tmp_path):
    """Read as a state and named anew, it would lack what ComfyUI's loader needs to see a DoRA."""
    save_adapter(tmp_path / "dora.safetensors", dora[0])
    tensors = stored_tensors(tmp_path / "dora.safetensors")
    assert any(name.endswith(".dora_scale") for name in tensors)
    wanted = adapter_tensors(dora[0])
    assert tensors.keys() == wanted.keys()
    assert all(torch.equal(tensors[name], wanted[name]) for name in wanted)


def test_dora_begins_at_the_base_and_trains_magnitudes_and_matrices(model):
    before = model.transformer(IDS)
    lora = LoRA(model.transformer, rank=4, dora=True)
    found = model.transformer(IDS)
    assert torch.equal(found, before)
    found.square().sum().backward()
    for name, weight in lora.named_parameters():
        assert weight.grad is not None and weight.grad.isfinite().all(), name
        assert weight.grad.any() or "lora_A" in name  # B is zero at the start
    with lora.reference():
        assert torch.equal(model.transformer(IDS), before)
    lora.detach()


def test_dora_of_peft_is_read_as_peft_computes_it(model, tmp_path):
    peft = pytest.importorskip("peft")
    settings = peft.LoraConfig(
        r=4, lora_alpha=12, use_dora=True, target_modules=[Q_PROJ, "v_proj", "blocks.1.ff_out"]
    )
    before = model.transformer(IDS)
    wrapped = stirred(peft.get_peft_model(model.transformer, settings))
    after = wrapped(IDS)
    wrapped.save_pretrained(tmp_path)
    wrapped.unload()
    found = applied(model, tmp_path)
    assert torch.allclose(found, after, atol=1e-5) and not torch.allclose(found, before, atol=1e-2)


def test_dora_is_merged_as_it_computes(model, dora, folder, tmp_path):
    lora, after = dora
    save_adapter(tmp_path / "edit.safetensors", lora, base_metadata(model))
    convert(
        folder, tmp_path / "merged.safetensors", adapters=[(tmp_path / "edit.safetensors", 1.0)]
    )
    merged = load_checkpoint(tmp_path / "merged.safetensors")
    assert torch.allclose(merged.transformer(IDS), after, atol=1e-5)


def test_dora_counts_by_its_strength_and_beside_other_adapters(model, dora, trained, tmp_path):
    """What adapters change adds up, in whatever order they were attached."""
    save_adapter(tmp_path / "dora.safetensors", dora[0])
    save_adapter(tmp_path / "lora.safetensors", trained[0])
    layer, x = model.transformer.get_submodule(Q_PROJ), torch.randn(3, 16)
    plain = layer(x)

    def change(*names, strength=1.0):
        adapters = [
            build_adapter(model, *read_adapter(tmp_path / f"{name}.safetensors"), name)
            for name in names
        ]
        attached = [adapter.attach(model.transformer, strength) for adapter in adapters]
        found = layer(x) - plain
        for each in attached:
            each.remove()
        return found

    one, other = change("dora"), change("lora")
    assert one.abs().max() > 0.01
    assert torch.allclose(change("dora", strength=0.5), one / 2, atol=1e-5)
    assert not change("dora", strength=0.0).any()
    for names, wanted in (
        (("dora", "lora"), one + other),
        (("lora", "dora"), one + other),
        (("dora", "dora"), 2 * one),
    ):
        assert torch.allclose(change(*names), wanted, atol=1e-5), names


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_dora_trains_on_a_quantised_base(model, kind):
    quantised(model.transformer, kind)
    before = model.transformer(IDS)
    lora = LoRA(model.transformer, rank=4, dora=True)
    assert torch.equal(model.transformer(IDS), before)
    layer = model.transformer.get_submodule(Q_PROJ)
    weight = layer.dequantised(torch.float32)
    magnitude = lora.low_ranks[Q_PROJ].lora_magnitude_vector
    assert torch.allclose(magnitude, weight.norm(dim=1), rtol=1e-5)
    model.transformer(IDS).square().sum().backward()
    assert magnitude.grad.any()
    lora.detach()


def test_training_of_dora_goes_on_from_a_file(model, dora, tmp_path):
    lora, after = dora
    save_adapter(tmp_path / "edit.safetensors", lora)
    state, _ = read_adapter(tmp_path / "edit.safetensors")
    assert rank_and_layers(state)[0] == 4 and "q_proj" in rank_and_layers(state)[1]
    again = LoRA(model.transformer, rank=4, start=state)
    assert again.dora and torch.allclose(model.transformer(IDS), after, atol=1e-5)
    again.detach()


@pytest.mark.parametrize(
    "change, told",
    [
        (lambda t: t.pop(f"{Q_PROJ}.lora_B.weight"), "lacks a matching pair"),
        (lambda t: t.update({f"{Q_PROJ}.lora_magnitude_vector": torch.ones(3)}), "lacks the matr"),
        (lambda t: t[f"{Q_PROJ}.lora_magnitude_vector"].fill_(torch.inf), "not finite numbers"),
        (
            lambda t: t.update({f"{Q_PROJ}.lora_magnitude_vector": torch.ones(16, 1)}),
            "not a LoRA matrix",
        ),
        (lambda t: t.update({"x.lora_magnitude_vector": torch.ones(16)}), "lacks the matrices"),
    ],
)
def test_a_damaged_dora_is_refused(model, tmp_path, change, told):
    tensors = {
        f"{Q_PROJ}.lora_A.weight": torch.ones(4, 16),
        f"{Q_PROJ}.lora_B.weight": torch.ones(16, 4),
        f"{Q_PROJ}.lora_magnitude_vector": torch.ones(16),
    }
    change(tensors)
    save_file(tensors, tmp_path / "x.safetensors")
    assert told in refused(model, tmp_path / "x.safetensors")


def test_a_dora_of_peft_without_magnitudes_is_refused(model, trained, tmp_path):
    write_peft_folder(tmp_path, trained[0])
    config = tmp_path / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"use_dora": True}))
    assert "lacks magnitudes of DoRA" in refused(model, tmp_path)


def test_a_fine_tuned_base_is_doubted_and_a_quantised_one_is_not(model, trained, folder, tmp_path):
    save_adapter(tmp_path / "edit.safetensors", trained[0], base_metadata(model))
    _, metadata = read_adapter(tmp_path / "edit.safetensors")
    half = load_checkpoint(folder, dtype=torch.bfloat16)
    assert doubt_about(half, metadata, "edit") is None
    assert doubt_about(model, {}, "edit") is None
    half.transformer.layers["ln_f"].weight[0] += 0.5
    assert "edit was trained on another checkpoint" in doubt_about(half, metadata, "edit")


def test_nothing_is_left_of_a_file_that_cannot_be_written(tmp_path):
    with pytest.raises(InputError):
        save_adapter(tmp_path / "edit.safetensors", {"weight": torch.zeros(1)})
    assert list(tmp_path.iterdir()) == []
