"""The second toy checkpoint, of Lumina-DiMOO's family, and the tasks that it was trained on."""

import pytest
from mmada_parallel.benchmarks import lumina_toy
from mmada_parallel.mmp_core import SamplerSettings, load_checkpoint
from mmada_parallel.mmp_core.checkpoint.load import DEMO_LUMINA

PLAIN = SamplerSettings(joint_guidance=0.0, text_steps=16, block_length=16, image_temperature=0.0)


@pytest.fixture(scope="module")
def toy():
    return load_checkpoint("demo-lumina")


def test_it_shares_the_demo_s_image_tokenizer(toy):
    assert toy.variant.name == "Lumina-DiMOO"
    assert not (DEMO_LUMINA / "vqvae").exists()
    files = sum(file.stat().st_size for file in DEMO_LUMINA.iterdir())
    assert files < 15 * 10**6


@pytest.mark.parametrize("kind", ["edit", "generate"])
def test_it_draws(toy, kind):
    assert lumina_toy.share_right(toy, list(lumina_toy.held_out(8, kind)), PLAIN) >= 0.5


def test_tasks_are_the_same_everywhere():
    task = lumina_toy.lumina_task(7, (4, 4), "describe")
    assert task == lumina_toy.lumina_task(7, (4, 4), "describe")
    style = lumina_toy.lumina_task(7, (4, 4), "style")
    assert style.after.background == style.reference.background
    assert style.after.cells == style.before.cells
