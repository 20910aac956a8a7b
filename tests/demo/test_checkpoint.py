"""The embedded checkpoint does what the README says, on a sample of its held-out cases."""

import pytest
import torch
from mmada_parallel.demo.evaluate import answer, evaluate, held_out, tokenizer_parse_rate
from mmada_parallel.demo.train import transformer_run
from mmada_parallel.mmp_core import SamplerSettings, load_checkpoint
from mmada_parallel.mmp_core.checkpoint.load import DEMO, DEMO_LUMINA
from mmada_parallel.training.sft.settings import SFTSettings


@pytest.fixture(scope="module")
def demo():
    return load_checkpoint("demo", dtype=torch.float32)


def test_is_small_enough_to_ship():
    sizes = {file: file.stat().st_size for file in DEMO.rglob("*") if file.is_file()}
    second = sum(size for file, size in sizes.items() if DEMO_LUMINA in file.parents)
    assert 0 < second <= 15 * 2**20
    assert sum(sizes.values()) - second <= 25 * 2**20


def test_training_can_go_on_from_it(demo, tmp_path):
    run = transformer_run(tmp_path, SFTSettings(steps=1, ema=0.9), "cpu", DEMO, start=DEMO)
    wanted = dict(demo.transformer.named_parameters())
    for name, parameter in run.parameters.items():
        assert torch.equal(parameter, wanted[name])
    with run.averaged():
        assert torch.equal(run.parameters[name], wanted[name])


def test_pictures_survive_the_image_tokenizer(demo):
    assert tokenizer_parse_rate(demo, held_out(60)) >= 0.95


def test_edits_held_out_scenes(demo):
    """Far above copying (0), well below the rates measured on 500 cases: 48 cases vary."""
    found = evaluate(demo, cases=48)
    assert found["kept"] >= 0.95
    assert min(found["picture"], found["sentence"], found["agree"]) >= 0.85
    assert found["copying"]["picture"] == 0


def test_answers_repeat(demo):
    settings, tasks = SamplerSettings(text_steps=8, image_steps=4), held_out(3)
    first, again = (
        [a.sentence for a in answer(demo, tasks, settings, seed=5, batch=batch)] for batch in (1, 3)
    )
    assert sorted(first) == sorted(again)


def test_clip_loads_as_a_local_open_clip_model_and_tells_near_misses_apart():
    open_clip = pytest.importorskip("open_clip", reason="open_clip_torch is not installed")
    from mmada_parallel.demo.clip import near_miss_accuracy

    name = f"local-dir:{DEMO / 'clip'}"
    model = open_clip.create_model(name).eval()
    assert near_miss_accuracy(model, open_clip.get_tokenizer(name), "cpu", scenes=20) >= 2.5 / 8
