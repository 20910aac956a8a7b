"""A run with all options on as a process of its own, to be killed: ``python -m …everything_worker
sft|votes CHECKPOINT DATA FOLDER``, resumed if it has begun. With votes it votes for itself.
"""

import sys
from dataclasses import replace
from pathlib import Path

import torch
from mmada_parallel.mmp_core import load_checkpoint
from mmada_parallel.tests.training.edit_folders import write_item
from mmada_parallel.tests.training.tiny_cases import QUICK
from mmada_parallel.training.data.dataset import joined, open_dataset, tokenised
from mmada_parallel.training.data.settings import DataSettings
from mmada_parallel.training.loop.run import Waiting
from mmada_parallel.training.loop.watch import Watched
from mmada_parallel.training.pararl.run import ParaRLRun
from mmada_parallel.training.pararl.votes import Votes, waiting_round
from mmada_parallel.training.sft.run import SFTRun
from mmada_parallel.training.sft.settings import SFTSettings
from mmada_parallel.training.weights.policies import LoRA
from mmada_parallel.views.strip import samples_strip
from PIL import Image

EVERYTHING = {
    "steps": 6,
    "ema": 0.5,
    "optimizer": "adamw8bit",
    "schedule": "cosine",
    "evaluate_every": 2,
    "keep_every": 2,
    "keep_last": 2,
    "guard_rise": 10.0,
    "checkpoint_every": 2,
    "gradient_checkpointing": True,
    "warmup_steps": 2,
    "learning_rate": 1e-2,
}
SFT = SFTSettings(batch_size=4, micro_batch=3, held_out=0.2, rehearsal=0.25, **EVERYTHING)
VOTES = replace(QUICK, inner_epochs=2, **EVERYTHING)


def write_data(folder):
    """Two datasets to train on, and what is held out, guarded and sampled."""
    for number in range(4):
        target = {"think": "the circle", "target": (64, 48)}
        write_item(folder / "one", f"a{number}", **target)
        write_item(folder / "two", f"b{number}", instruction="make it blue", **target)
        write_item(folder / "guard", f"c{number}", **target)
    write_item(folder / "held_out", "d", **target)
    for file in folder.glob("*/*.target.png"):
        with Image.open(file) as picture:
            edited = picture.copy()
        edited.paste((200, 30, 30), (16, 16, 40, 40))
        edited.save(file)
    write_item(folder / "samples", "e", instruction="a red circle", size=None)
    return folder


def new_run(kind, checkpoint, data, folder):
    model = load_checkpoint(checkpoint, dtype=torch.float32)

    def cases(*names, need_target=True, settings=None, repeats=1):
        opened = [
            open_dataset(data / name, settings=settings, repeats=repeats + (name == "two"))
            for name in names
        ]
        cache = folder.with_name(f"{folder.name}-codes.safetensors")
        return tokenised(joined(opened), model, cache=cache, need_target=need_target).cases

    words = DataSettings(trigger_word="sks", mirrored=True, outside_weight=0.5)
    own = cases("one", "two", settings=words)
    watched = Watched(
        held_out=cases("held_out") if kind == "votes" else (),
        guard=cases("guard"),
        samples=cases("samples", need_target=False),
        strip=samples_strip,
    )
    policy = LoRA(model.transformer, rank=2, seed=3, dora=True)
    if kind == "sft":
        return SFTRun(model, own, SFT, folder, policy=policy, watched=watched)
    return ParaRLRun(model, own, Votes(), VOTES, folder, policy=policy, watched=watched)


def vote(folder):
    waiting = waiting_round(folder)
    assert waiting is not None
    for number, group in enumerate(waiting.groups(), start=1):
        lengths = [len(answer.text) for answer in group.answers]
        waiting.vote(number, [n for n, x in enumerate(lengths, start=1) if x == max(lengths)])


def train(run, callback):
    """To the end, voting meanwhile."""
    while True:
        try:
            return run.train(callback)
        except Waiting:
            vote(run.folder.path)


def main(kind, checkpoint, data, folder):
    torch.set_num_threads(1)
    run = new_run(kind, checkpoint, Path(data), Path(folder))
    print("resumed" if run.resume() else "begun", run.step, flush=True)
    train(run, lambda step, _: print("step", step, flush=True))


if __name__ == "__main__":
    main(*sys.argv[1:])
