"""The work on datasets and in training that ``interrupts.py`` measures, see ``interrupts_work``."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from typing import Any

from mmada_parallel.benchmarks.interrupts_work import Place, Work, work
from mmada_parallel.training.data.dataset import EditDataset, tokenised
from mmada_parallel.training.data.items import Item, Picture
from mmada_parallel.training.sft.run import SFTRun
from mmada_parallel.training.sft.settings import SFTSettings
from mmada_parallel.training.weights.policies import LoRA
from PIL import Image

ITEMS, TASKS, FILES = 1_000_000, 100_000, 100_000
TRAINING = {
    "batch_size": 8,
    "micro_batch": 0,
    "steps": 2,
    "learning_rate": 1e-4,
    "rank": 16,
    "seed": 0,
    "gradient_checkpointing": True,
    "existing_lora": "none",
    "run_name": "run",
    "resume": False,
    "preview_every": 1,
    "layers": "all",
    "schedule": "constant",
    "checkpoint_every": 1,
    "text_length": 0,
    "warmup_steps": 0,
    "keep_every": 1,
    "evaluate_every": 1,
    "held_out": 0.1,
}
PARARL = {
    "reward": "checker (toy world)",
    "group_size": 16,
    "scored_steps": 8,
    "kl": 1e-4,
    "reward_at": "trajectory",
    "text_steps": 8,
    "image_steps": 8,
    "text_temperature": 2.0,
    "image_temperature": 1.0,
    "inner_epochs": 1,
    "clip_range": 0.2,
    "kl_reference": "base",
}


def _dataset(place: Place, name: str) -> Work:
    return lambda: place.node("LoadEditDataset", dataset=name, bad_items="skip", limit=0, repeats=1)


def _toy_name(place: Place) -> str:
    return next(iter(place.nodes.dataset.training_folders.generated_datasets()))


def _lines() -> list[dict[str, str]]:
    return [{"instruction": f"draw the red star number {n}"} for n in range(ITEMS)]


@work("a manifest of 1,000,000 lines")
def load_manifest(place: Place) -> Work:
    text = "\n".join(map(json.dumps, _lines()))
    (place.folder / "input" / "m.jsonl").write_text(text)
    return _dataset(place, "m.jsonl")


@work("a manifest of 1,000,000 lines, none of which can be used")
def refuse_manifest(place: Place) -> Work:
    text = "\n".join(json.dumps({"image": f"{n}.png", "instruction": "a"}) for n in range(ITEMS))
    (place.folder / "input" / "m.jsonl").write_text(text)

    def refuse() -> None:
        try:
            _dataset(place, "m.jsonl")()
        except ValueError as refused:
            print(refused, file=sys.stderr)

    return refuse


@work("a manifest of 1,000,000 lines, before it is queued again")
def fingerprint_manifest(place: Place) -> Work:
    text = "\n".join(json.dumps({"image": f"{n}.png", "instruction": "a"}) for n in range(ITEMS))
    (place.folder / "input" / "m.jsonl").write_text(text)
    node = place.nodes.dataset.LoadEditDataset
    return lambda: node.fingerprint_inputs(dataset="m.jsonl")


@work("parquet, 1,000,000 rows")
def load_parquet(place: Place) -> Work:
    import pyarrow
    from pyarrow import parquet

    (place.folder / "input" / "p").mkdir()
    table = pyarrow.Table.from_pylist(_lines())
    parquet.write_table(table, place.folder / "input" / "p" / "a.parquet")
    return _dataset(place, "p")


@work("a folder of 100,000 texts")
def load_folder(place: Place) -> Work:
    folder = place.folder / "input" / "f"
    folder.mkdir()
    for number in range(FILES):
        (folder / f"{number}.txt").write_text(f"draw the red star number {number}")
    return _dataset(place, "f")


def _million() -> Any:
    """A million items in memory, which take up to half a kilobyte each."""

    def item(number: int) -> Item:
        image = Picture(f"{number:064x}", (640, 480), lambda: Image.new("RGB", (640, 480)))
        return Item(f"item {number}", f"draw the red star number {number}", image=image)

    return EditDataset("many", tuple(map(item, range(ITEMS))))


@work("1,000,000 items beside 256 others")
def join_datasets(place: Place) -> Work:
    given = {
        "dataset": _toy_name(place),
        "more": _million(),
        "bad_items": "skip",
        "limit": 0,
        "repeats": 1,
    }
    return lambda: place.node("LoadEditDataset", **given)


@work("100,000 tasks of the toy world, 10 forms of each")
def make_toy_items(place: Place) -> Work:
    toy = _toy_name(place)
    given = {"dataset": toy, "bad_items": "skip", "limit": TASKS, "repeats": 10}
    return lambda: place.node("LoadEditDataset", **given)


# training


def _toy(place: Place, count: int) -> Any:
    toy = _toy_name(place)
    given = {"dataset": toy, "bad_items": "skip", "limit": count, "repeats": 1}
    return place.node("LoadEditDataset", **given)[0]


@work("1,000,000 cases, a tenth held out")
def begin_a_run(place: Place) -> Work:

    model = place.model.model
    (case,) = tokenised(_toy(place, 1), model, need_target=True).cases
    cases = [replace(case, name=f"item {n}", origin=f"{n:064x}") for n in range(ITEMS)]
    settings, ask = SFTSettings(held_out=0.1), lambda *_: place.host.stop_if_interrupted()

    def begin() -> None:
        with LoRA(model.transformer, rank=1) as policy:
            run = SFTRun(model, cases, settings, place.folder / "run", policy=policy, callback=ask)
            print(run.data, file=sys.stderr)

    return begin


@work("1 step of SFT, batch of 2,000")
def train_a_large_batch(place: Place) -> Work:
    dataset, own = _toy(place, 1000), {"batch_size": 2000, "steps": 1}
    given = TRAINING | own
    return lambda: place.node("SFTFinetune", model=place.model, dataset=dataset, **given)


@work("1 step of ParaRL, 8 groups of 16 answers")
def train_by_rewards(place: Place) -> Work:
    dataset, given = _toy(place, 256), TRAINING | PARARL | {"batch_size": 8, "steps": 1}
    del given["held_out"]
    return lambda: place.node("ParaRLFinetune", model=place.model, dataset=dataset, **given)


@work("a run whose log has 1,000,000 lines, resumed")
def resume_a_long_log(place: Place) -> Work:
    dataset = _toy(place, 64)
    place.node("SFTFinetune", model=place.model, dataset=dataset, **TRAINING)
    (log,) = (place.folder / "output").glob("**/log.jsonl")
    line = json.loads(log.read_text().splitlines()[0])
    log.write_text("".join(json.dumps({**line, "step": 1}) + "\n" for _ in range(ITEMS)))
    given = TRAINING | {"resume": True, "steps": 4}
    return lambda: place.node("SFTFinetune", model=place.model, dataset=dataset, **given)
