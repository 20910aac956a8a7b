"""What training needs against counted peaks: at most a tenth too small."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from mmada_parallel.demo import world
from mmada_parallel.demo.dataset import cases_of
from mmada_parallel.mmp_core import SamplerSettings, load_checkpoint
from mmada_parallel.mmp_core.model.config import ModelConfig
from mmada_parallel.tests.live_bytes import most_bytes
from mmada_parallel.tests.nodes.untrained import write_untrained
from mmada_parallel.tests.training.tiny_cases import brightness
from mmada_parallel.training.loop.memory import (
    pararl_bytes,
    sft_bytes,
    trained_parameters,
    update_bytes,
)
from mmada_parallel.training.pararl.run import ParaRLRun
from mmada_parallel.training.pararl.settings import ParaRLSettings
from mmada_parallel.training.sft import loss
from mmada_parallel.training.sft.loss import logits_at_once
from mmada_parallel.training.sft.run import SFTRun
from mmada_parallel.training.sft.settings import SFTSettings
from mmada_parallel.training.weights.policies import LoRA

SAMPLER = SamplerSettings(text_steps=2, image_steps=2, text_temperature=2.0, joint_guidance=0.0)
PARARL = ParaRLSettings(
    steps=1, groups=2, group_size=4, scored_steps=2, micro_batch=4, sampler=SAMPLER
)
SFT = SFTSettings(steps=1, batch_size=4, micro_batch=4)
CONFIG = ModelConfig(8, 1, 1, 1, 16, 5000, 1e4, 1e-5, 0, 0)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load_checkpoint(write_untrained(tmp_path_factory.mktemp("need") / "untrained"))


@pytest.fixture(scope="module")
def cases(model):
    return cases_of(model, [world.task(i) for i in range(4)])


def parts(lora):
    return sum(p.numel() for _, p in lora.named_parameters())


def test_parameters_are_counted_of_the_chosen_layers(model):
    for layers in (("q_proj",), ("ff_out", "up_proj")):
        for dora in (False, True):
            with LoRA(model.transformer, rank=3, layers=layers, dora=dora) as lora:
                assert trained_parameters(model, layers, 3, dora=dora) == parts(lora)


@pytest.mark.parametrize("again, dora", [(False, False), (True, False), (False, True)])
def test_sft_holds_what_is_estimated(model, cases, tmp_path, again, dora):
    settings = replace(SFT, gradient_checkpointing=again)
    with LoRA(model.transformer, rank=4, dora=dora) as lora:
        run = SFTRun(model, cases, settings, tmp_path, policy=lora)
        counted = 4 * parts(lora) + most_bytes(run.train)
        estimate = sft_bytes(model, cases, settings, parts(lora), 4, dora=dora)
    assert counted / 1.1 <= estimate <= 4 * counted  # which has all masked at the worst


class Head(torch.nn.Linear):
    """What the loss asks of a transformer."""

    def __init__(self, vocabulary):
        super().__init__(8, vocabulary, bias=False)
        self.config, self.logits = SimpleNamespace(embedding_size=vocabulary), self.forward
        self.requires_grad_(False)


def test_the_loss_holds_the_logits_of_some_positions_at_a_time(monkeypatch):
    def counted():
        hidden, ids = torch.rand(200, 8, requires_grad=True), torch.arange(200)
        return most_bytes(lambda: loss._errors(head, hidden, ids).sum().backward())

    head = Head(5000)
    whole = counted()
    monkeypatch.setattr(loss, "LOGITS_AT_ONCE", 10 * 5000)
    assert whole > 2 * 4 * 200 * 5000
    assert counted() < update_bytes(CONFIG, 4, 0, logits_at_once(5000), 0, True) < whole / 5


def test_the_loss_of_the_released_vocabulary_is_estimated_by_its_parts(model, cases, monkeypatch):
    whole = sft_bytes(model, cases, SFT, 0, 4)
    monkeypatch.setattr(loss, "LOGITS_AT_ONCE", 1)
    assert sft_bytes(model, cases, SFT, 0, 4) < whole
    assert logits_at_once(134_656) == 134_656
    monkeypatch.undo()
    assert update_bytes(CONFIG, 2, 0, logits_at_once(134_656), 0, True) < 0.5e9


@pytest.mark.parametrize("guidance, at", [(0.0, "trajectory"), (3.5, "gain")])
def test_pararl_holds_no_more_than_is_estimated(model, cases, tmp_path, guidance, at):
    sampler = replace(SAMPLER, joint_guidance=guidance)
    settings = replace(PARARL, sampler=sampler, reward_at=at)
    with LoRA(model.transformer, rank=4) as lora:
        run = ParaRLRun(model, cases, brightness, settings, tmp_path, policy=lora)
        counted = 4 * parts(lora) + most_bytes(run.train)
        estimate = pararl_bytes(model, cases, settings, parts(lora), 4)
    assert counted <= 1.1 * estimate


def test_the_estimate_follows_what_can_be_lowered(model, cases):
    def needed(at_once=8, trained=10**6, **changes):
        return pararl_bytes(model, cases, replace(PARARL, **changes), trained, at_once)

    assert needed(at_once=4) < needed()
    assert needed(trained=10**5) < needed()
    few = SamplerSettings(text_steps=1, image_steps=1)
    assert needed(sampler=few, gradient_checkpointing=False) >= needed(sampler=few)


def test_the_longest_prompt_decides(model, cases):
    short = [case for case in cases if case.source is None] or cases[:1]
    assert sft_bytes(model, short, SFT, 0, 4) <= sft_bytes(model, cases, SFT, 0, 4)
