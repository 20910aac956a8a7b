"""One rank of a distributed run; a module of its own, because spawned processes import it."""

import copy

import torch
import torch.distributed as dist
from mmada_parallel.training.sft.pretrain import SFTRun


def weights(run):
    return {name: p.detach().clone() for name, p in run.model.named_parameters()}


def one_step(rank, rendezvous, shared, layout, dataset, settings, folder, queue):
    """``shared``: the model, whose memory torch shares between the ranks: each trains a copy."""
    model = copy.deepcopy(shared)
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{rendezvous}", rank=rank, world_size=2)
    run = SFTRun(model, layout, dataset, settings, folder)
    run.advance(next(run.batches()))
    run.save()
    queue.put((rank, {name: tensor.numpy() for name, tensor in weights(run).items()}))
    dist.barrier()
    dist.destroy_process_group()
