"""ParaRL Finetune and SFT Finetune: what comes out, what is kept, and what is as before."""

import gc
import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from mmada_parallel.cli import main
from mmada_parallel.demo.items import world_dataset
from mmada_parallel.mmp_core import InputError, SamplerSettings, denoise, encode_instruction
from mmada_parallel.mmp_core.checkpoint.adapters import read_adapter
from mmada_parallel.training.dpo.preferences import save_preference
from mmada_parallel.training.pararl.settings import ParaRLSettings
from mmada_parallel.training.rewards.clip import DEMO_CLIP
from mmada_parallel.training.rewards.registry import REWARDS
from mmada_parallel.training.weights.adapter_files import base_metadata, save_adapter
from mmada_parallel.training.weights.policies import LoRA

COMMON = {
    "batch_size": 2,
    "micro_batch": 0,
    "steps": 2,
    "learning_rate": 1e-2,
    "rank": 2,
    "seed": 0,
    "gradient_checkpointing": True,
    "existing_lora": "none",
    "run_name": "run",
    "resume": False,
    "preview_every": 0,
    "layers": "all",
    "schedule": "constant",
    "checkpoint_every": 10,
    "text_length": 0,
    "warmup_steps": 10,
}
PARARL = COMMON | {
    "reward": "checker (toy world)",
    "group_size": 2,
    "scored_steps": 2,
    "reward_at": "trajectory",
    "kl": 1e-4,
    "text_steps": 2,
    "image_steps": 2,
    "text_temperature": 2.0,
    "image_temperature": 1.0,
    "inner_epochs": 1,
    "clip_range": 0.2,
    "kl_reference": "base",
}


@pytest.fixture
def output(nodes, tmp_path):
    import folder_paths

    before = folder_paths.get_output_directory()
    folder_paths.set_output_directory(str(tmp_path))
    yield tmp_path / "mmada_parallel" / "training"
    folder_paths.set_output_directory(before)


@pytest.fixture
def shown(host, monkeypatch):
    """Texts and pictures that went to the page."""
    seen = {"texts": [], "pictures": []}
    monkeypatch.setattr(host.Progress, "show_text", lambda self, text: seen["texts"].append(text))

    def show(self, done, total, picture=None, size=512):
        seen["pictures"] += [picture] if picture else []

    monkeypatch.setattr(host.Progress, "show", show)
    return seen


def give(monkeypatch, reward):
    """Let the checker be ``reward``."""
    kind = replace(REWARDS["checker"], make=lambda *_: reward)
    monkeypatch.setitem(REWARDS, "checker", kind)


@pytest.fixture
def paid(monkeypatch, nodes):
    """A reward with spread whatever an untrained model answers."""

    def brightness(pairs):
        return [np.asarray(pair.picture).mean() + len(pair.text) for pair in pairs]

    give(monkeypatch, brightness)


@pytest.fixture
def pararl(run_node, model, output, shown, paid):
    def run(dataset=None, on=model, **changes):
        with torch.inference_mode():  # as ComfyUI runs nodes
            return run_node(
                "ParaRLFinetune", model=on, dataset=dataset or world_dataset(3), **PARARL | changes
            )

    return run


@pytest.fixture
def sft(run_node, model, output, shown):
    def run(dataset=None, on=model, **changes):
        with torch.inference_mode():
            return run_node(
                "SFTFinetune", model=on, dataset=dataset or world_dataset(3), **COMMON | changes
            )

    return run


def trained(lora):
    return any(t.abs().max() > 0 for name, t in lora.items() if "lora_B" in name)


def test_pararl_gives_what_comfyuis_nodes_take(pararl, output, shown, run_node, model):
    lora, losses, steps, curve = pararl().result
    assert trained(lora) and steps == 2 and len(losses["loss"]) == 2
    assert curve.shape == (1, 400, 640, 3) and curve.min() < 0.5
    (folder,) = (path for path in output.iterdir() if path.is_dir())
    assert folder.name == "run_00001"
    state, about = read_adapter(folder / "adapter.safetensors")
    assert about["training"] == "pararl" and about["dataset"] == "toy world"
    assert json.loads(about["settings"])["groups"] == 2 and "base_fingerprint" in about
    assert all(torch.equal(t, lora[f"base_model.model.{n}"]) for n, t in state.items())
    assert run_node("ApplyLoRA", model=model, lora="none", strength=1.0, lora_model=lora)[0]


def test_it_shows_figures_and_samples(pararl, shown):
    pararl(steps=4, preview_every=2)  # how long it takes is said after three
    last = shown["texts"][-1]
    for words in ("Done.", "step 4 of 4", "reward", "±", "KL", "clipped", "s per step", "memory"):
        assert words in last
    assert any("left" in text for text in shown["texts"]) and "left" not in last
    assert any("rollouts" in text for text in shown["texts"])
    assert len(shown["pictures"]) == 2
    pararl(preview_every=0)
    assert len(shown["pictures"]) == 2


def test_sft_learns_and_shows_loss_and_samples(sft, shown, output):
    lora, losses, steps, curve = sft(steps=8, preview_every=4).result
    assert trained(lora) and steps == 8 and curve.ndim == 4
    assert sum(losses["loss"][-3:]) < sum(losses["loss"][:3])
    assert "loss" in shown["texts"][-1] and len(shown["pictures"]) == 2
    assert read_adapter(output / "run_00001" / "adapter.safetensors")[1]["training"] == "sft"


def test_what_it_costs_is_shown_until_there_are_figures(pararl, shown, host, monkeypatch):
    monkeypatch.setattr(host.Progress, "text_due", True)
    pararl()
    figures = next(i for i, text in enumerate(shown["texts"]) if "after step 1" in text)
    begun = [text for text in shown["texts"][:figures] if text.startswith("step 1 of")]
    assert begun and all("\nMemory: " in text and " needed" in text for text in begun)
    assert not any(" needed" in text for text in shown["texts"][figures:])


def test_the_model_is_afterwards_as_it_was(pararl, encoded, denoised, model):
    prompt = encoded()
    before = denoised(prompt)
    forwards = [module.forward for module in model.model.transformer.modules()]
    pararl()
    after = denoised(prompt)
    assert torch.equal(after[0].text, before[0].text)
    assert torch.equal(after[0].image, before[0].image)
    modules = list(model.model.transformer.modules())
    assert [module.forward for module in modules] == forwards
    assert not any(module._forward_hooks for module in modules)
    assert not any(
        p.requires_grad or p.grad is not None for p in model.model.transformer.parameters()
    )


def test_nothing_of_the_run_stays_in_memory(pararl):
    def optimizers():
        gc.collect()
        return sum(type(o) is torch.optim.AdamW for o in gc.get_objects())

    before = optimizers()
    pararl()
    assert optimizers() == before


def test_resume_goes_on_with_the_newest_run_of_the_name(pararl, output):
    whole = pararl(steps=3, run_name="whole").result
    pararl(steps=1)
    lora, losses, steps, _ = pararl(steps=3, resume=True).result
    assert steps == 3 and losses == whole[1]
    assert all(torch.equal(t, whole[0][name]) for name, t in lora.items())
    pararl(steps=1)
    assert {p.name for p in output.iterdir() if p.is_dir()} == {
        "whole_00001",
        "run_00001",
        "run_00002",
    }
    with pytest.raises(InputError, match="begun with seed 0, not 1"):
        pararl(seed=1, resume=True)
    assert pararl(run_name="new", resume=True).result[2] == 2


@pytest.mark.parametrize("log", ["", '{"step": 1}\n'])
def test_a_log_without_figures_costs_the_curve_alone(pararl, output, log):
    trained = pararl(steps=1).result[0]
    (output / "run_00001" / "log.jsonl").write_text(log)
    lora, losses, steps, _ = pararl(steps=1, resume=True).result
    assert steps == 1 and len(losses["loss"]) == bool(log)
    assert all(torch.equal(tensor, trained[name]) for name, tensor in lora.items())


@pytest.mark.parametrize("phase", ["rollouts", "update"])
def test_interruption_keeps_the_run_and_says_where(pararl, shown, host, output, phase, monkeypatch):
    import comfy.model_management as management

    whole = pararl(steps=3, run_name="whole").result[0]
    texts = shown["texts"]
    texts.clear()

    def show_text(self, text):
        texts.append(text)
        if text.startswith(f"step 2 of 3: {phase}"):
            management.interrupt_current_processing()

    with monkeypatch.context() as patch:
        patch.setattr(host.Progress, "show_text", show_text)
        patch.setattr(host.Progress, "text_due", True)
        lora, losses, steps, _ = pararl(steps=3).result
    folder = output / "run_00001"
    assert f"after step 1 is kept in {folder / 'run.pt'}" in texts[-1] and "resume" in texts[-1]
    assert f"The adapter is kept in {folder / 'adapter.safetensors'}." in texts[-1]
    assert steps == len(losses["loss"]) == 1 and trained(lora)
    kept, _ = read_adapter(folder / "adapter.safetensors")
    assert all(torch.equal(tensor, lora[f"base_model.model.{n}"]) for n, tensor in kept.items())
    resumed = pararl(steps=3, resume=True).result[0]
    assert all(torch.equal(t, whole[name]) for name, t in resumed.items())


def test_after_an_interruption_the_node_runs_again(pararl, shown, host, monkeypatch, nodes):
    import comfy.model_management as management

    node = nodes.finetune.ParaRLFinetune.PREPARE_CLASS_CLONE(None)
    before = [node.fingerprint_inputs(run_name=name) for name in ("run", "other")]

    def show_text(self, text):
        if text.startswith("step 1 of"):
            management.interrupt_current_processing()

    with monkeypatch.context() as patch:
        patch.setattr(host.Progress, "show_text", show_text)
        patch.setattr(host.Progress, "text_due", True)
        with pytest.raises(management.InterruptProcessingException):  # no adapter yet
            pararl(run_name="run")
    after = [node.fingerprint_inputs(run_name=name) for name in ("run", "other")]
    assert after[0] != before[0] and after[1] == before[1]


def test_held_out_guard_and_samples_are_watched_on_the_node(sft, shown, output):
    watched = {"guard": world_dataset(2, 70), "samples": world_dataset(12, 50), "held_out": 0.4}
    more = {"evaluate_every": 2, "keep_every": 1, "keep_last": 1, "guard_rise": 9.0, "ema": 0.5}
    lora, _, _, curves = sft(world_dataset(5), steps=4, **watched, **more).result
    assert curves.shape == (2, 400, 640, 3)
    last = shown["texts"][-1]
    for words in ("held-out loss", "guard loss", "at the start", "The best so far", "best.safe"):
        assert words in last
    folder = output / "run_00001"
    assert len(shown["pictures"]) == 3 and shown["pictures"][-1].height > 400 + 3 * 128
    assert len(list((folder / "samples" / "step-00004").glob("*.png"))) == 8
    kept, about = read_adapter(folder / "adapters" / "step-00004.safetensors")
    assert "guard_loss" in about
    assert all(torch.equal(tensor, lora[f"base_model.model.{n}"]) for n, tensor in kept.items())


def test_adapters_that_a_run_kept_are_compared(sft, run_node, nodes, encoded, model, output):
    sft(steps=3, keep_every=1, keep_last=2, guard_rise=9.0, learning_rate=0.5)
    assert list(nodes.host.training_folders.runs_with_adapters()) == ["run_00001"]
    prompt = encoded()
    options = {"seed": 3, "text_steps": 2, "image_steps": 2, "joint_guidance": 0.0, "step": 2}
    with torch.inference_mode():
        done = run_node("CompareAdapters", model=model, prompt=prompt, run="run_00001", **options)
        sheet, tokens, lora = done.result
        assert tokens.batch == 3 and sheet.ndim == 4
        kept, _ = read_adapter(output / "run_00001" / "adapters" / "step-00002.safetensors")
        assert all(torch.equal(tensor, lora[f"base_model.model.{n}"]) for n, tensor in kept.items())
        assert "step 2" in done.ui["text"][0] and "no adapter" in done.ui["text"][0]
        settings = SamplerSettings(seed=3, text_steps=2, image_steps=2, joint_guidance=0.0)
        plain = denoise(model.model, prompt, settings, record=0).final
        assert torch.equal(plain.text, tokens.text[:1])
        assert torch.equal(plain.image, tokens.image[:1])
        assert len({tuple(row.flatten().tolist()) for row in tokens.image}) > 1
        best = run_node(
            "CompareAdapters", model=model, prompt=prompt, run="run_00001", **options | {"step": 0}
        ).result[2]
        assert best.keys() == lora.keys()
    for changes, told in (({"step": 9}, "no adapter of step 9"), ({"run": "gone"}, "gone")):
        inputs = {"model": model, "prompt": prompt, "run": "run_00001", **options, **changes}
        with pytest.raises(InputError, match=told):
            run_node("CompareAdapters", **inputs)
    for step in range(10, 6000):
        (output / "run_00001" / "adapters" / f"step-{step:05}.safetensors").touch()
    wide = encoded(width=4096, height=32)
    inputs = {"model": model, "prompt": wide, "run": "run_00001", **options}
    with pytest.raises(InputError, match="5993 answers have .* million pixels; expected at most"):
        run_node("CompareAdapters", **inputs)


def test_the_command_starts_the_run_of_a_node_again(sft, pararl, run_node, output, tmp_path):
    dataset = run_node(
        "LoadEditDataset", dataset="demo (toy world)", bad_items="skip", limit=3, trigger_word="sks"
    )[0]
    pararl(dataset, run_name="rl", kl=0.5, joint_guidance=1.5)
    text = (output / "rl_00001" / "run.toml").read_text()
    for line in ('method = "pararl"', 'reward = ["checker=1.0"]', "kl = 0.5", "text_steps = 2"):
        assert line in text
    assert "joint_guidance = 1.5" in text and 'speed = "' in text
    more = {"rslora": True, "dora": True, "layers": "mlp", "held_out": 0.4}
    lora = sft(dataset, **more).result[0]
    assert any(name.endswith("lora_magnitude_vector") for name in lora)
    again = tmp_path / "again.safetensors"
    said = ["--output", str(again), "--run-folder", str(tmp_path / "again"), "--device", "cpu"]
    assert main(["train", "file", str(output / "run_00001" / "run.toml"), *said]) == 0
    state, about = read_adapter(again)
    assert about["data"] == read_adapter(output / "run_00001" / "adapter.safetensors")[1]["data"]
    assert all(
        torch.allclose(tensor, lora[f"base_model.model.{name}"], atol=1e-5)
        for name, tensor in state.items()
    )


def test_patience_says_why_a_run_ended(sft, shown):
    held_out = {"held_out_data": world_dataset(2, 70), "evaluate_every": 1, "patience": 1}
    assert sft(steps=9, learning_rate=1e-7, warmup_steps=9, **held_out).result[2] < 9
    assert "nothing improved" in shown["texts"][-1]


def test_a_dora_is_applied_as_it_was_trained(sft, encoded, denoised, model, run_node):
    lora = sft(dora=True, steps=3, learning_rate=0.05, warmup_steps=0).result[0]
    prompt = encoded()
    adapted = run_node("ApplyLoRA", model=model, lora="none", strength=1.0, lora_model=lora)[0]
    off = run_node("ApplyLoRA", model=model, lora="none", strength=0.0, lora_model=lora)[0]
    found, plain, before = (denoised(prompt, model=each)[0] for each in (adapted, off, model))
    assert torch.equal(plain.text, before.text) and torch.equal(plain.image, before.image)
    assert not (torch.equal(found.text, before.text) and torch.equal(found.image, before.image))


def test_an_existing_adapter_is_trained_further(pararl, sft, output, folders, monkeypatch):
    first = sft(rank=3, layers="attention").result[0]
    file = output / "run_00001" / "adapter.safetensors"
    monkeypatch.setattr(folders, "adapter_file", lambda name: file)
    further = pararl(existing_lora="sft.safetensors", steps=1, learning_rate=1e-6).result[0]
    assert further.keys() == first.keys()
    moved = [(further[name] - first[name]).abs().max() for name in first]
    assert 0 < max(moved) < 1e-4


def test_an_existing_adapter_of_another_family_is_refused(
    sft, model, folders, tmp_path, monkeypatch
):
    file = tmp_path / "other.safetensors"
    with LoRA(model.model.transformer, rank=2) as lora:
        save_adapter(file, lora, base_metadata(model.model) | {"variant": "D"})
    monkeypatch.setattr(folders, "adapter_file", lambda name: file)
    with pytest.raises(InputError, match="was trained on variant D"):
        sft(existing_lora=file.name)


def test_training_on_top_of_an_applied_adapter(pararl, sft, run_node, model):
    first = sft().result[0]
    adapted = run_node("ApplyLoRA", model=model, lora="none", strength=1.0, lora_model=first)[0]
    second = pararl(on=adapted).result[0]
    assert trained(second)
    assert any(not torch.equal(second[n], t) for n, t in pararl().result[0].items())


def test_the_same_seed_gives_the_same_adapter_whatever_fits(pararl):
    first, second = pararl(micro_batch=1).result[0], pararl(micro_batch=4).result[0]
    assert all(torch.allclose(t, second[n], atol=1e-4) for n, t in first.items())
    assert any(not torch.equal(t, first[n]) for n, t in pararl(seed=1).result[0].items())


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"run_name": "../x"}, "run_name is '../x': give a name"),
        ({"run_name": ""}, "run_name is ''"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0"),
        ({"existing_lora": "gone.safetensors"}, "put it there"),
    ],
)
def test_bad_values_are_told_before_anything_is_written(pararl, output, changes, message):
    with pytest.raises(InputError, match=message):
        pararl(**changes)
    assert not output.exists() or not list(output.iterdir())


def plain(dataset, **gone):
    """``dataset`` without what ``gone`` names."""
    items = tuple(type(i)(**{**i.__dict__, **gone}) for i in dataset)
    return type(dataset)("pets", items)


def test_the_checker_judges_the_toy_world_only(pararl):
    with pytest.raises(InputError, match="of pets is not a task of the toy world.*choose a CLIP"):
        pararl(plain(world_dataset(2), facts=None))


def test_sft_without_targets_is_told(sft):
    with pytest.raises(InputError, match="No item of pets can be used.*target picture, which SFT"):
        sft(plain(world_dataset(2), target=None))


def test_no_spread_ends_in_one_sentence(pararl, nodes, monkeypatch, output):
    give(monkeypatch, lambda pairs: [1.0] * len(pairs))
    with pytest.raises(InputError, match="scored the same in 2 steps.*raise text_temperature"):
        pararl()
    assert (output / "run_00001" / "run.pt").is_file()


def test_a_reward_that_is_not_a_number_is_told(pararl, nodes, monkeypatch):
    give(monkeypatch, lambda pairs: [float("nan")] * len(pairs))
    with pytest.raises(InputError, match="gave nan for"):
        pararl()


def test_too_little_memory_is_told_with_numbers_before_the_model_is_loaded(
    pararl, nodes, monkeypatch, output
):
    room = nodes.host.TrainingMemory
    loads = []
    monkeypatch.setattr(room, "free", 3e6)
    monkeypatch.setattr(room, "prepare", lambda *args: loads.append(1))
    with pytest.raises(
        InputError, match=r"needs about 0\.\d GB in addition to.*3.0 MB are free on cpu"
    ):
        pararl(micro_batch=64)
    assert not loads and not (output / "run_00001").exists()


def test_without_open_clip_that_is_told_before_anything_is_loaded(
    run_node, model, output, shown, monkeypatch
):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(InputError, match="pip install open_clip_torch"), torch.inference_mode():
        run_node(
            "ParaRLFinetune",
            model=model,
            dataset=world_dataset(2),
            **PARARL | {"reward": "clip: demo"},
        )
    assert not list(output.glob("*"))


def test_a_clip_pays(run_node, model, output, shown):
    pytest.importorskip("open_clip")
    with torch.inference_mode():
        lora = run_node(
            "ParaRLFinetune",
            model=model,
            dataset=world_dataset(3),
            **PARARL | {"reward": "clip: demo", "reward_at": "output", "text_temperature": 5.0},
        )[0]
    assert trained(lora)


def test_picks_train_an_adapter_that_its_run_file_trains_again(
    run_node, model, output, shown, tmp_path
):
    """As Pick Sample keeps them; the folder is found by its name."""
    prompt = encode_instruction(model.model, "draw a red star on white", batch=3)
    settings = SamplerSettings(text_steps=2, image_steps=2, text_temperature=2.0)
    batch = denoise(model.model, prompt, settings).final
    picks = output.parent / "preferences" / "mine"
    save_preference(picks, model.model, prompt, batch, 1)
    widgets = COMMON | {"beta": 0.1, "masks": 2, "preview_every": 2, "run_name": "picks"}
    with torch.inference_mode():
        lora, losses, steps, curve = run_node(
            "PreferenceFinetune", model=model, preferences="mine", **widgets
        ).result
    assert trained(lora) and steps == 2 and len(losses["loss"]) == 2 and curve.ndim == 4
    assert losses["loss"][0] == pytest.approx(0.6931, abs=1e-3)
    assert any("as you picked" in text for text in shown["texts"])
    run = output / "picks_00001"
    again = ("--output", str(tmp_path / "again.safetensors"), "--run-folder", str(tmp_path / "run"))
    assert main(["train", "file", str(run / "run.toml"), *again, "--device", "cpu"]) == 0
    first, second = (
        read_adapter(file)[0]
        for file in (run / "adapter.safetensors", tmp_path / "again.safetensors")
    )
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    with pytest.raises(InputError, match="expected one of mine"):
        run_node("PreferenceFinetune", model=model, preferences="yours", **widgets)


def test_several_rewards_are_weighed_and_shown_each(nodes, pararl, output, shown):
    """In the log, on the node, as curves of their own, and for the command."""
    more = "clip: demo = 0.5\nconsistency=2"
    result = pararl(more_rewards=more, run_name="sum").result
    assert len(result[3]) == 2
    (line, *_) = [json.loads(x) for x in (output / "sum_00001" / "log.jsonl").open()]
    parts = {name: line[f"reward_{name}"] for name in ("brightness", "clip", "consistency")}
    expected = parts["brightness"] + 0.5 * parts["clip"] + 2 * parts["consistency"]
    assert line["reward_mean"] == pytest.approx(expected, rel=1e-4)
    assert any("consistency 0." in text for text in shown["texts"])
    recipe = nodes.finetune.ParaRL(ParaRLSettings(), PARARL["reward"], more)
    assert recipe.options()["reward"] == [
        "checker=1.0",
        f"clip:{DEMO_CLIP}=0.5",
        "consistency=2.0",
    ]
    with pytest.raises(InputError, match="no reward 'beauty'"):
        pararl(more_rewards="beauty", run_name="other")
    with pytest.raises(InputError, match="Votes stand alone"):
        pararl(reward="your votes", more_rewards="consistency", run_name="third")
