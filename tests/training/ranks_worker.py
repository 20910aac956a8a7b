"""Processes that train together; a module of its own, because spawned processes import it."""

import os
from dataclasses import replace

import torch
from mmada_parallel.mmp_core import load_checkpoint
from mmada_parallel.tests.training.test_sft_run import SETTINGS as TARGETS
from mmada_parallel.tests.training.test_sft_run import with_targets
from mmada_parallel.tests.training.tiny_cases import QUICK, brightness, cases
from mmada_parallel.training.loop.ranks import AcceleratedRanks
from mmada_parallel.training.pararl.run import ParaRLRun
from mmada_parallel.training.sft.run import SFTRun
from mmada_parallel.training.weights.policies import FullWeights, LoRA
from mmada_parallel.training.weights.sharded import ShardedWeights, whole_optimizer

PARARL = replace(QUICK, groups=4, steps=2, learning_rate=1e-3, micro_batch=3)
SFT = replace(TARGETS, steps=2)
JOBS = [(method, policy) for method in ("pararl", "sft") for policy in ("lora", "full")]


class Recording(ParaRLRun):
    """Keeps the advantages of each step's groups."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.kept = {}

    def _batches(self, rolled, advantages):
        for rollouts, (advantage, _) in zip(rolled, advantages, strict=True):
            for group, values in zip(rollouts.groups, advantage, strict=True):
                self.kept[f"{self.step} {group.number}"] = values
        return super()._batches(rolled, advantages)


def some_spread(pairs):
    """Of some cases all rollouts are worth the same, so that processes have unequal work."""
    told = torch.tensor([pair.case.name not in ("case 1", "case 2") for pair in pairs])
    return brightness(pairs) * told


def run_of(checkpoint, method, policy, folder, ranks):
    model = load_checkpoint(checkpoint, dtype=torch.float32)
    if policy == "lora":
        own = LoRA(model.transformer, rank=2, seed=3)
    elif ranks is None:
        own = FullWeights(model.transformer)
    else:
        own = ShardedWeights(model.transformer, torch.device("cpu"))
    common = {"policy": own, "ranks": ranks}
    if method == "sft":
        return SFTRun(model, with_targets(model), SFT, folder, **common)
    return Recording(model, cases(model, 5), some_spread, PARARL, folder, **common)


def work(checkpoint, method, policy, folder, ranks=None):
    """Train, resume what was saved; what was found."""
    run, lines = run_of(checkpoint, method, policy, folder, ranks), []
    run.train(lambda _, line: lines.append(line))
    again = run_of(checkpoint, method, policy, folder, ranks)
    assert again.resume()
    parameters = run.parameters.values()
    return {
        "lines": lines,
        "advantages": getattr(run, "kept", {}),
        "policy": dict(run.policy.state_dict()),
        "resumed": dict(again.policy.state_dict()),
        "resumed optimizer": whole_optimizer(again.optimizers[0])["state"],
        "held": sum((p.to_local() if hasattr(p, "to_local") else p).numel() for p in parameters),
    }


def one_of_two(rank, port, checkpoint, folder):
    """Every job as process ``rank``, with what was found in ``folder``/rank.pt."""
    from accelerate import Accelerator

    torch.set_num_threads(1)
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    os.environ |= {name: str(value) for name, value in (address | own).items()}
    ranks = AcceleratedRanks(Accelerator(cpu=True))
    found = {
        f"{method} {policy}": work(checkpoint, method, policy, folder / f"{method} {policy}", ranks)
        for method, policy in JOBS
    }
    torch.save(found, folder / f"{rank}.pt")
    ranks.close()
