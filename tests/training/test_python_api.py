"""What a script may give to datasets, rewards and runs: used, or refused in one sentence."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from mmada_parallel.mmp_core import (
    InputError,
    Prompt,
    SamplerSettings,
    TokenState,
    denoise,
    encode_instruction,
    load_checkpoint,
)
from mmada_parallel.mmp_core.checkpoint.convert import convert
from mmada_parallel.training.data.dataset import EditDataset, joined, open_dataset, tokenised
from mmada_parallel.training.dpo.preferences import open_preferences, save_preference
from mmada_parallel.training.dpo.run import DPORun
from mmada_parallel.training.dpo.settings import DPOSettings
from mmada_parallel.training.loop.settings import RunSettings
from mmada_parallel.training.pararl.run import ParaRLRun
from mmada_parallel.training.pararl.settings import ParaRLSettings
from mmada_parallel.training.rewards.clip import DEMO_CLIP, ClipScorer, score_trajectory
from mmada_parallel.training.rewards.consistency import ConsistencyReward
from mmada_parallel.training.rewards.registry import weighted_reward
from mmada_parallel.training.rewards.weighted import Weighted
from mmada_parallel.training.sft.run import SFTRun
from mmada_parallel.training.sft.settings import SFTSettings
from mmada_parallel.training.weights.adapter_files import save_adapter
from mmada_parallel.training.weights.policies import FullWeights, LoRA
from PIL import Image

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


@pytest.fixture(scope="module")
def answered(demo):
    prompt = encode_instruction(demo, "draw a blue star on white")
    settings = SamplerSettings(text_steps=2, image_steps=2, joint_guidance=0.0)
    return prompt, denoise(demo, prompt, settings)


@pytest.fixture(scope="module")
def clip():
    return ClipScorer(DEMO_CLIP)


@pytest.mark.parametrize("value", WRONG)
def test_scores(demo, clip, answered, value):
    red = Image.new("RGB", (64, 64), "red")
    _, trajectory = answered
    uses = [
        ("images", lambda: clip.score(["a"], value)),
        ("images", lambda: clip.score(["a"], [value])),
        ("texts", lambda: clip.score(value, [red])),
        ("scorer", lambda: score_trajectory(value, demo, trajectory)),
        ("model", lambda: score_trajectory(clip, value, trajectory)),
        ("trajectory", lambda: score_trajectory(clip, demo, value)),
        ("texts", lambda: score_trajectory(clip, demo, trajectory, texts=value)),
        ("images", lambda: score_trajectory(clip, demo, trajectory, images=value)),
        ("callback", lambda: score_trajectory(clip, demo, trajectory, callback=value)),
    ]
    if not isinstance(value, str):
        uses += [
            ("The CLIP", lambda: ClipScorer(value)),
            ("texts", lambda: clip.score([value], [red])),
        ]
    for name, use in uses:
        with pytest.raises(InputError, match=f"^{name} is"):
            use()


def test_as_many_texts_as_pictures_are_scored(demo, clip, answered):
    _, trajectory = answered
    red = Image.new("RGB", (64, 64), "red")
    for given in ({"texts": ["a", "b"]}, {"texts": ["a"], "images": [red, red]}):
        with pytest.raises(InputError, match=r"^There are \d texts and \d images"):
            score_trajectory(clip, demo, trajectory, **given)
    with pytest.raises(InputError, match="^There are 1 texts and 2 images"):
        score_trajectory(clip, demo, trajectory, images=[red, red])


@pytest.mark.parametrize("value", WRONG)
def test_what_is_written(demo, answered, tmp_path, value):
    prompt, trajectory = answered
    state, file = trajectory.final, tmp_path / "a.safetensors"
    with LoRA(demo.transformer, rank=1) as policy:
        uses = [
            ("metadata", lambda: save_adapter(file, policy, value)),
            ("source|The adapter holds", lambda: save_adapter(file, value)),
            ("prompt", lambda: save_preference(tmp_path, demo, value, state, 0)),
            ("answers", lambda: save_preference(tmp_path, demo, prompt, value, 0)),
            ("picked", lambda: save_preference(tmp_path, demo, prompt, state, [value])),
            ("adapters", lambda: convert("demo", file, adapters=value)),
            ("adapters", lambda: convert("demo", file, adapters=[value])),
            ("The strength", lambda: convert("demo", file, adapters=[(file, [value])])),
            ("progress", lambda: convert("demo", file, progress=value)),
        ]
        if not isinstance(value, str):
            uses += [
                ("The adapter", lambda: save_adapter(value, policy)),
                ("The preferences", lambda: open_preferences(value)),
                ("The preferences", lambda: save_preference(value, demo, prompt, state, 0)),
            ]
        for name, use in uses:
            with pytest.raises(InputError, match=f"^({name})"):
                use()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "value", [*WRONG[1:], None, -1, 1.5, 2**63, pytest.param(10**5000, id="huge"), range(9)]
)
def test_samples_are_chosen_and_repeated(answered, value):
    prompt, trajectory = answered
    for tokens in (prompt, trajectory.final):
        if not (type(value) is int and value == 7):
            with pytest.raises(InputError, match="^n is"):
                tokens.repeat(value)
        if not isinstance(value, int | torch.Tensor):
            with pytest.raises(InputError, match="^samples is"):
                tokens[value]
    with pytest.raises(InputError, match="^prompts is"):
        Prompt.stack(value)


def test_numbers_beyond_all_floats_and_names_that_are_none():
    for value in (Fraction(10**400), 10**5000):
        with pytest.raises(InputError, match="^text_steps is"):
            SamplerSettings(text_steps=value)
        with pytest.raises(InputError, match="^The checkpoint is"):
            load_checkpoint(value)


def test_tensors_that_are_none(demo):
    parts = [torch.zeros(4).long(), torch.zeros(2).long()]
    nested = torch.nested.nested_tensor(parts)
    for make in (
        lambda: TokenState(nested, torch.zeros(2, 2, 2).long()),
        lambda: TokenState(torch.zeros(2, 4).long(), nested),
        lambda: encode_instruction(demo, "draw a star", image=nested),
    ):
        with pytest.raises(InputError, match="sparse or has no values"):
            make()
