"""What a script may give to datasets, rewards and runs: used, or refused in one sentence."""

import numpy as np
import pytest
import torch
from mmada_parallel.mmp_core import InputError, load_checkpoint
from mmada_parallel.training.data.dataset import EditDataset, joined, open_dataset, tokenised
from mmada_parallel.training.dpo.run import DPORun
from mmada_parallel.training.dpo.settings import DPOSettings
from mmada_parallel.training.loop.settings import RunSettings
from mmada_parallel.training.pararl.run import ParaRLRun
from mmada_parallel.training.pararl.settings import ParaRLSettings
from mmada_parallel.training.rewards.consistency import ConsistencyReward
from mmada_parallel.training.rewards.registry import weighted_reward
from mmada_parallel.training.rewards.weighted import Weighted
from mmada_parallel.training.sft.run import SFTRun
from mmada_parallel.training.sft.settings import SFTSettings
from mmada_parallel.training.weights.policies import FullWeights, LoRA

WRONG = [7, "text", {"a": 1}, np.array([1, 2]), torch.zeros(2)]


@pytest.fixture(scope="module")
def demo():
    return load_checkpoint("demo")


@pytest.mark.parametrize("value", WRONG)
def test_datasets(demo, tmp_path, value):
    (tmp_path / "a.txt").write_text("draw a red circle")
    dataset = open_dataset(tmp_path)
    for name, use in (
        ("bad_items", lambda: open_dataset(tmp_path, bad_items=value)),
        ("settings", lambda: open_dataset(tmp_path, settings=value)),
        ("callback", lambda: open_dataset(tmp_path, callback=value)),
        ("limit", lambda: open_dataset(tmp_path, limit=[value])),
        ("repeats", lambda: open_dataset(tmp_path, repeats=[value])),
        ("datasets", lambda: joined(value)),
        ("datasets", lambda: joined([])),
        ("datasets", lambda: joined([dataset, value])),
        ("dataset", lambda: tokenised(value, demo)),
        ("model", lambda: tokenised(dataset, value)),
        ("callback", lambda: tokenised(dataset, demo, callback=value)),
    ):
        with pytest.raises(InputError, match=f"^{name} is"):
            use()


@pytest.mark.parametrize("value", WRONG)
def test_runs_and_what_they_train(demo, tmp_path, value):
    def sft(model=demo, cases=(), settings=None, folder=tmp_path, **more):
        return SFTRun(model, cases, settings or SFTSettings(), folder, **{"policy": None, **more})

    for name, use in (
        ("settings", lambda: SFTRun(demo, (), value, tmp_path, policy=None)),
        ("settings", lambda: SFTRun(demo, (), RunSettings(), tmp_path, policy=None)),
        ("settings", lambda: DPORun(demo, (), ParaRLSettings(), tmp_path, policy=None)),
        ("settings", lambda: ParaRLRun(demo, (), len, DPOSettings(), tmp_path, policy=None)),
        ("reward", lambda: ParaRLRun(demo, (), value, ParaRLSettings(), tmp_path, policy=None)),
        ("model", lambda: sft(model=value)),
        ("cases", lambda: sft(cases={7})),
        ("watched", lambda: sft(watched=value)),
        ("policy", lambda: sft(policy=value)),
        ("transformer", lambda: LoRA(value)),
        ("transformer", lambda: LoRA(demo)),
        ("transformer", lambda: FullWeights(value)),
        ("start", lambda: LoRA(demo.transformer, start=[value])),
        ("The rank", lambda: LoRA(demo.transformer, rank=[value])),
    ):
        with pytest.raises(InputError, match=f"^{name} is"):
            use()
    with LoRA(demo.transformer, rank=1) as policy:
        for name in ("ranks", "about", "callback"):
            with pytest.raises(InputError, match=f"^{name} is"):
                sft(policy=policy, **{name: [value]})
        with pytest.raises(InputError, match="^cases is"):
            sft(cases=[value], policy=policy)


@pytest.mark.parametrize("value", [*WRONG, float("nan")])
def test_what_adapters_and_rewards_are_made_of(demo, value):
    reward = ConsistencyReward()
    uses = [
        ("parts", lambda: Weighted(value)),
        ("parts", lambda: Weighted([[value]])),
        ("reward", lambda: Weighted([(value, 1.0)])),
        ("layers", lambda: LoRA(demo.transformer, layers=value)),
        ("alpha", lambda: LoRA(demo.transformer, alpha=[value])),
        ("seed", lambda: LoRA(demo.transformer, seed=[value])),
        ("The weight of consistency", lambda: Weighted([(reward, [value])])),
    ]
    for name, use in uses:
        with pytest.raises(InputError, match=f"^({name} (is|has)|.* cannot be adapted)"):
            use()
    with pytest.raises(InputError, match="^consistency:.* is a share of the picture"):
        ConsistencyReward(value)


@pytest.mark.parametrize("value", [None, 7, b"clip:demo", ["checker"]])
def test_rewards_are_named_by_texts(value):
    with pytest.raises(InputError, match="^The reward is"):
        weighted_reward([value], lambda place: None, EditDataset("none", ()))
