"""The toy world as a dataset is the toy world as cases."""

import pytest
import torch
from mmada_parallel.demo import world
from mmada_parallel.demo.dataset import cases_of
from mmada_parallel.demo.items import world_dataset
from mmada_parallel.demo.register import register
from mmada_parallel.mmp_core import load_checkpoint
from mmada_parallel.training.data.dataset import tokenised
from mmada_parallel.training.data.registry import GENERATED


@pytest.fixture(scope="module")
def demo():
    return load_checkpoint("demo", dtype=torch.float32)


@pytest.mark.parametrize("name", ["demo-open", "demo-word"])
def test_every_item_of_the_other_worlds_can_be_used(demo, name):
    register()
    found = tokenised(GENERATED[name].make(60), demo, need_target=True)
    assert len(found) == 60 and found.skipped == ()


def test_its_items_become_the_cases_of_the_world(demo):
    cases = cases_of(demo, [world.task(i) for i in range(40, 64)])
    found = tokenised(world_dataset(24, first=40), demo, need_target=True)
    assert len(found) == 24 and found.skipped == ()
    for own, other in zip(found, cases, strict=True):
        assert (own.instruction, own.facts) == (other.instruction, other.facts)
        assert torch.equal(own.prompt.instruction, other.prompt.instruction)
        assert torch.equal(own.target.text, other.target.text)
        assert torch.equal(own.target.image, other.target.image)
        assert own.prompt.initial.grid == other.prompt.initial.grid
        assert (own.source is None) == (other.source is None) == (other.prompt.image is None)
        if other.source is not None:
            assert torch.equal(own.prompt.image, other.prompt.image)
            assert own.source().tobytes() == other.source().tobytes()


def test_the_fingerprint_tells_tasks_apart():
    first = world_dataset(8).fingerprint
    assert first == world_dataset(8).fingerprint
    assert len({first, world_dataset(8, first=1).fingerprint, world_dataset(9).fingerprint}) == 3
