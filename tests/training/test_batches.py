from dataclasses import replace

import pytest
import torch
from mmada_parallel.training.sft.batches import Windows, group_by_shape, masked, stack
from mmada_parallel.training.sft.loss import Condition
from mmada_parallel.training.sft.settings import SFTSettings
from torch.utils.data import DataLoader

SETTINGS = SFTSettings(
    steps=8,
    batch_size=16,
    window=4,
    micro_batch=5,
    seed=3,
    drop_text=0.2,
    drop_image=0.2,
    drop_both=0.2,
)


def codes(steps):
    return torch.cat([batch.target.image.flatten() for step in steps for batch in step])


def test_groups_have_equal_shapes_and_lose_nothing(dataset):
    singles = [masked(dataset[i], SETTINGS, i) for i in range(40)]
    groups = [stack(group) for group in group_by_shape(singles)]
    assert sum(group.target.batch for group in groups) == 40
    assert len({group.condition for group in groups}) == 4
    found, wanted = (
        torch.cat([batch.target.image.flatten() for batch in batches]).sort().values
        for batches in (groups, singles)
    )
    assert torch.equal(found, wanted)


def test_what_is_not_there_is_not_dropped(dataset):
    case = next(c for c in (dataset[i] for i in range(200)) if c.source is None)
    drawn = {masked(case, SETTINGS, seed).condition for seed in range(50)}
    assert drawn == {Condition(), Condition(drop_text=True)}


def test_a_window_holds_each_of_its_cases_once(dataset):
    steps = Windows(dataset, SETTINGS)[1]
    wanted = torch.cat([dataset[i].target.image.flatten() for i in range(64, 128)])
    assert len(steps) == 4 and all(steps)
    assert torch.equal(codes(steps).sort().values, wanted.sort().values)
    assert max(batch.target.batch for step in steps for batch in step) <= 5
    sizes = [sum(batch.target.batch for batch in step) for step in steps]
    assert all(abs(size - 16) <= 5 for size in sizes)


def test_ranks_share_a_window_without_overlap(dataset):
    parts = [codes(Windows(dataset, SETTINGS, rank, 3)[0]) for rank in range(3)]
    whole = codes(Windows(dataset, SETTINGS)[0])
    assert torch.equal(torch.cat(parts).sort().values, whole.sort().values)


def test_masks_do_not_depend_on_the_window(dataset):
    """A case is masked as without one, whatever it is stacked with."""

    def masks(windows, count):
        steps = [step for number in range(count) for step in windows[number]]
        rows = [
            (*batch.target.image[row].flatten().tolist(), *batch.text_mask[row].tolist())
            for step in steps
            for batch in step
            for row in range(batch.target.batch)
        ]
        return sorted(rows)

    wide, narrow = Windows(dataset, SETTINGS), Windows(dataset, replace(SETTINGS, window=1))
    assert masks(wide, 1) == masks(narrow, 4)


def test_worker_processes_prepare_the_same_batches(dataset):
    windows = Windows(dataset, SETTINGS)
    made = DataLoader(windows, batch_size=None, sampler=range(2), num_workers=2)
    for number, steps in enumerate(made):
        assert torch.equal(codes(steps), codes(windows[number]))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_run_goes_on_within_a_window(workers, from_nothing, tmp_path):
    run = from_nothing(tmp_path, replace(SETTINGS, workers=workers))

    def step(at):
        run.step = at
        return [batch.target.image for batch in run._batches()]

    whole = [step(at) for at in range(8)]
    for at in (7, 0, 4, 1):
        assert all(map(torch.equal, step(at), whole[at]))


def test_an_interruption_while_cases_are_made_skips_none(from_nothing, dataset, tmp_path):
    run = from_nothing(tmp_path, SETTINGS)
    run._batches()
    make, run.step = type(dataset).__getitem__, 4

    class Stopping(type(dataset)):
        def __getitem__(self, number):
            if number == 70:
                raise KeyboardInterrupt
            return make(self, number)

    dataset.__class__ = Stopping
    with pytest.raises(KeyboardInterrupt):
        run._batches()
    dataset.__class__ = Stopping.__base__
    found, wanted = run._batches(), Windows(dataset, SETTINGS)[1][0]
    assert all(
        torch.equal(one.target.image, other.target.image)
        for one, other in zip(found, wanted, strict=True)
    )
