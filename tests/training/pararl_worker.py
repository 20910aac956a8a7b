"""A ParaRL run as a process of its own: ``python -m …pararl_worker MODEL FOLDER``, resumed if it
has begun. Prints each step it has done."""

import sys
from dataclasses import replace

import torch
from mmada_parallel.mmp_core import load_checkpoint
from mmada_parallel.tests.training.tiny_cases import QUICK, new_run

SETTINGS = replace(QUICK, steps=9, checkpoint_every=2, inner_epochs=2)


def main(model, folder):
    torch.set_num_threads(1)
    run = new_run(load_checkpoint(model, dtype=torch.float32), folder, SETTINGS)
    print("resumed" if run.resume() else "begun", run.step, flush=True)
    run.train(lambda step, _: print("step", step, flush=True))


if __name__ == "__main__":
    main(*sys.argv[1:])
