"""A third family is trained as the others are, by adapters of its own, on answers of one kind."""

from dataclasses import replace

import pytest
import torch
from mmada_parallel.mmp_core import InputError, TokenState, decode_text, load_checkpoint
from mmada_parallel.mmp_core.checkpoint.adapters import base_metadata, build_adapter, read_adapter
from mmada_parallel.mmp_core.pipeline import NO_PICTURE, encode_instruction
from mmada_parallel.mmp_core.variants import registry
from mmada_parallel.tests.mmp_core import third_family, tiny
from mmada_parallel.tests.training import tiny_cases
from mmada_parallel.training.cases import Case
from mmada_parallel.training.pararl.run import ParaRLRun
from mmada_parallel.training.sft.run import SFTRun
from mmada_parallel.training.sft.settings import SFTSettings
from mmada_parallel.training.weights.adapter_files import save_adapter
from mmada_parallel.training.weights.policies import FullWeights, LoRA

SFT = SFTSettings(
    steps=40,
    batch_size=6,
    learning_rate=1e-2,
    warmup_steps=0,
    micro_batch=4,
    gradient_checkpointing=False,
)
SIZES = {"image": {"text_length": 0}, "text": {"size": NO_PICTURE, "text_length": 4}}


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setattr(registry, "VARIANTS", [*registry.VARIANTS, third_family.Postcard()])


@pytest.fixture
def model(tmp_path):
    return load_checkpoint(third_family.write_checkpoint(tmp_path / "card"), family="P")


@pytest.fixture(params=SIZES)
def cases(request, model):
    rng = torch.Generator().manual_seed(0)
    made = []
    for number in range(4):
        instruction = f"make it {tiny.WORDS[1 + number % 2]}"
        prompt = encode_instruction(model, instruction, **SIZES[request.param])
        text, image = prompt.initial.text, prompt.initial.image
        target = TokenState(
            torch.randint(1, 9, text.shape, generator=rng),
            torch.randint(third_family.COLOURS, image.shape, generator=rng),
        )
        made.append(Case(f"case {number}", prompt, instruction, None, target))
    return made


@pytest.mark.parametrize("kind", [FullWeights, LoRA])
def test_sft_learns_answers_of_one_kind(kind, model, cases, tmp_path):
    lines = []
    run = SFTRun(model, cases, SFT, tmp_path / "run", policy=kind(model.transformer))
    run.train(lambda _, line: lines.append(line))
    first, last = (sum(line["loss"] for line in part) / 5 for part in (lines[:5], lines[-5:]))
    assert last < 0.9 * first
    absent = "image_loss" if cases[0].target.text.shape[1] else "text_loss"
    assert {line[absent] for line in lines} == {0.0}


def test_pararl_learns_from_rewards_of_one_kind(model, cases, tmp_path):
    def reward(pairs):
        shown = [pair.text.count("e") + sum(pair.picture.tobytes()) / 1000 for pair in pairs]
        return torch.tensor(shown)

    settings = replace(tiny_cases.QUICK, steps=2)
    policy = LoRA(model.transformer, rank=2)
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    lines = []
    run = ParaRLRun(model, cases, reward, settings, tmp_path / "run", policy=policy)
    run.train(lambda _, line: lines.append(line))
    assert all(torch.tensor(line["reward_mean"]).isfinite() for line in lines)
    assert any(not torch.equal(value, before[name]) for name, value in policy.state_dict().items())
    for pair in run.samples(2):
        assert (pair.picture.width == 0) != (pair.text == "" and not pair.marked)


def test_an_adapter_is_saved_for_the_family(model, cases, tmp_path):
    lora = LoRA(model.transformer, rank=2)
    with torch.no_grad():
        for name, weight in lora.named_parameters():
            weight.normal_(generator=torch.Generator().manual_seed(len(name)))
    ids = model.layout.model_input(cases[0].prompt, cases[0].target).ids
    trained = model.transformer(ids)
    lora.detach()
    save_adapter(tmp_path / "card.safetensors", lora, base_metadata(model))
    state, metadata = read_adapter(tmp_path / "card.safetensors")
    assert metadata["variant"] == "P"
    adapter = build_adapter(model, state, metadata, "card")
    attached = adapter.attach(model.transformer)
    assert torch.allclose(model.transformer(ids), trained, atol=1e-6)
    attached.remove()
    assert decode_text(model, cases[0].target)
    other = load_checkpoint(tiny.write_checkpoint(tmp_path / "other", "A"))
    with pytest.raises(InputError, match="trained on variant P; this checkpoint is of variant A"):
        build_adapter(other, state, metadata, "card")
