from dataclasses import replace

import pytest
import torch
from mmada_parallel.training.sft.batches import Windows
from mmada_parallel.training.sft.pretrain import SFTRun, SFTSettings
from torch.utils.data import DataLoader

SETTINGS = SFTSettings(steps=8, batch_size=16, window=4, micro_batch=5)


def codes(batches):
    return torch.cat([stacked.target.image.flatten() for batch in batches for stacked, _ in batch])


def test_a_window_holds_each_of_its_examples_once(dataset):
    batches = Windows(dataset, SETTINGS, rank=0, ranks=1)[1]
    wanted = torch.cat([dataset[i].target.image.flatten() for i in range(64, 128)])
    assert len(batches) == 4 and all(batches)
    assert torch.equal(codes(batches).sort().values, wanted.sort().values)
    assert max(stacked.target.batch for batch in batches for stacked, _ in batch) <= 5
    sizes = [sum(stacked.target.batch for stacked, _ in batch) for batch in batches]
    assert all(abs(size - 16) <= 5 for size in sizes)


def test_ranks_share_a_window_without_overlap(dataset):
    parts = [codes(Windows(dataset, SETTINGS, rank, 3)[0]) for rank in range(3)]
    whole = codes(Windows(dataset, SETTINGS, 0, 1)[0])
    assert torch.equal(torch.cat(parts).sort().values, whole.sort().values)


def test_worker_processes_prepare_the_same_batches(dataset):
    windows = Windows(dataset, SETTINGS, 0, 1)
    made = DataLoader(windows, batch_size=None, sampler=range(2), num_workers=2)
    for number, batches in enumerate(made):
        assert torch.equal(codes(batches), codes(windows[number]))


@pytest.mark.parametrize("step", [0, 1, 4, 7])
def test_a_run_goes_on_within_a_window(step, model, layout, dataset, tmp_path):
    def first(at):
        run = SFTRun(model, layout, dataset, replace(SETTINGS, seed=3), tmp_path)
        run.step = at
        return list(run.batches())

    assert torch.equal(codes(first(step)), codes(first(0)[step:]))
