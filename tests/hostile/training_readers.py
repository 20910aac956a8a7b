"""Readers of what training keeps, with something that each reads and a way to spoil that."""

import importlib
import json
import shutil
from contextlib import suppress
from dataclasses import replace

import torch
from mmada_parallel.tests.training.tiny_cases import QUICK, new_run
from mmada_parallel.tests.training.tiny_clip import write_clip
from mmada_parallel.training.data.dataset import open_dataset, tokenised
from mmada_parallel.training.loop.folder import RunFolder
from mmada_parallel.training.loop.run import Waiting
from mmada_parallel.training.pararl.votes import Votes, VotingRound
from mmada_parallel.training.rewards.clip import DEMO_CLIP
from mmada_parallel.training.rewards.clip_files import CONFIG, check_clip, read_towers
from mmada_parallel.views.plot import line_plot
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from . import mutations

VOTED = replace(QUICK, steps=1)

for name in ("open_clip", "transformers", "pyarrow.parquet", "datasets"):  # before there are forks
    with suppress(ImportError):
        importlib.import_module(name)


def write_run(model, folder):
    """The state of a ParaRL run after a step."""
    run = new_run(model, folder, replace(QUICK, steps=1, ema=0.9))
    with run.policy:
        run.train()


def spoil_state(rng, folder):
    state = torch.load(folder / "run.pt", weights_only=True)
    for _ in range(rng.randint(1, 2)):
        state = changed(rng, state)
    torch.save(state, folder / "run.pt")


def changed(rng, value):
    """``value`` with one of its parts replaced or removed."""
    if isinstance(value, dict) and value and rng.random() < 0.95:
        key = rng.choice(list(value))
        if rng.random() < 0.15:
            return {k: v for k, v in value.items() if k != key}
        return {**value, key: changed(rng, value[key])}
    if isinstance(value, list) and value and rng.random() < 0.9:
        place = rng.randrange(len(value))
        return [*value[:place], changed(rng, value[place]), *value[place + 1 :]]
    return rng.choice([*mutations.STRANGE, *TENSORS])


TENSORS = [
    torch.zeros(()), torch.ones(3), torch.ones(2, 16), torch.ones(0), torch.ones(16, 2).to_sparse(),
    torch.ones(2, 16, dtype=torch.int64), torch.full((2, 16), float("nan")),
    torch.ones(2, 16, dtype=torch.complex64), torch.tensor(-1.0), torch.ones(2, 16).bool(),
    torch.ones(2, 16, device="meta"),
]  # fmt: skip
"""Two by sixteen is the shape of an adapter's A in the tiny models."""


def read_state(place, folder, rng):
    run = new_run(place.model, folder, replace(QUICK, steps=2, ema=0.9))
    assert run.resume()
    run.train()


def write_clips(folder):
    """The demo's CLIP for open_clip, and one of transformers."""
    shutil.copytree(DEMO_CLIP, folder / "clip")
    write_clip(folder / "transformers")


def read_clip(place, folder, rng):
    check_clip(folder)
    read_towers(folder, "cpu")


def read_words(place, folder, rng):
    check_clip(folder)
    towers = read_towers(folder, "cpu")
    towers.fits("make it red")
    towers.texts(["make it red", ""], "cpu")
    towers.images([Image.new("RGB", (40, 30), "red")], "cpu")


def spoil_clip(rng, folder):
    """Its config, of which the towers are built."""
    file = folder / CONFIG
    whole = json.loads(file.read_text())
    if rng.random() < 0.8:
        whole["model_cfg"] = mutations.strange_json(rng, whole["model_cfg"])
        file.write_bytes(json.dumps(whole).encode(errors="surrogatepass"))
    else:
        file.write_bytes(mutations.json_bytes(rng, whole))


def write_codes(model, folder):
    """A dataset with the codes of its picture."""
    folder.mkdir()
    Image.new("RGB", (64, 48), "red").save(folder / "a.png")
    (folder / "a.txt").write_text("make it red")
    tokenised(open_dataset(folder), model, cache=folder / "codes.safetensors")


def spoil_codes(rng, folder):
    file = folder / "codes.safetensors"
    with safe_open(file, framework="pt") as opened:
        about = opened.metadata()
    codes = load_file(file)
    for name, value in codes.items():
        for _ in range(rng.randint(0, 3)):
            at = rng.randrange(value.numel())
            value.view(-1)[at] = rng.choice([-1, 0, 1, 7, 2**16, 2**31 - 1, -(2**31)])
        shape = rng.choice([value.shape, (1, 1, value.numel()), (1, value.numel(), 1), (-1,)])
        codes[name] = value.reshape(shape)[: rng.choice([1, 1, 1, 0])]
    save_file(codes, file, about)


def read_codes(place, folder, rng):
    cases = tokenised(open_dataset(folder), place.model, cache=folder / "codes.safetensors")
    run = new_run(place.model, folder / "run", replace(QUICK, steps=1), own=list(cases))
    run.train()


def read_table(place, folder, rng):
    pa, parquet = importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    texts = [rng.choice([b"red", b"", b"a\xff", b"\xed\xa0\x80", b"x" * 30_000]) for _ in range(3)]
    texts = pa.StringArray.from_buffers(3, *pa.array(texts).buffers()[1:])
    cell = rng.choice(place.pictures)
    strange = rng.choice([mutations.strange_bytes(rng, cell), b"", None, "abc", [1], {"a": b""}, 7])
    cells = rng.choice([[strange] * 3, [{"bytes": strange, "path": "/etc/passwd"}] * 3])
    names = rng.choices(["instruction", "image", "think", "target", "mask"], k=2)
    names = names if rng.random() < 0.3 else ["instruction", names[1]]
    table = pa.table([texts, pa.array(cells)], names)
    parquet.write_table(table, folder / "a.parquet")
    if rng.random() < 0.3:
        content = (folder / "a.parquet").read_bytes()
        (folder / "a.parquet").write_bytes(mutations.strange_bytes(rng, content))
    tokenised(open_dataset(folder / "a.parquet"), place.model)


def write_votes(model, folder):
    """A run that waited for votes, which are in."""
    run = new_run(model, folder, VOTED, reward=Votes())
    with run.policy, suppress(Waiting):
        run.train()
    waiting = VotingRound(folder, 0)
    for number in range(len(waiting.groups())):
        waiting.vote(number + 1, [1])


def read_rollouts(place, folder, rng):
    run = new_run(place.model, folder, VOTED, reward=Votes())
    assert run.resume()
    run.train()


def spoil_log(rng, folder):
    lines = [{"step": step, "loss": 0.5, "guard_loss": None} for step in range(3)]
    lines = [mutations.json_bytes(rng, line).replace(b"\n", b" ") for line in lines]
    (folder / "log.jsonl").write_bytes(b"\n".join([b'{"step": 0, "loss": 1.5}', *lines]))


def read_log(place, folder, rng):
    run = RunFolder(folder)
    lines = run.lines()
    run.forget_after(10**9)
    assert run.lines() == lines or any("NaN" in json.dumps(line) for line in lines)
    values = torch.tensor([[line.get("loss", 0.0)] for line in lines])
    line_plot(values, [line["step"] for line in lines], x_label="step", y_label="loss")


def write_saved(folder):
    """A dataset that Hugging Face's library saved; an empty folder without it."""
    folder.mkdir()
    with suppress(ImportError):
        datasets = importlib.import_module("datasets")
        rows = {"instruction": ["red", "blue"], "image": [Image.new("RGB", (64, 48), "red")] * 2}
        rows = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
        rows.save_to_disk(str(folder))


def spoil_saved(rng, folder):
    for file in folder.glob(rng.choice(["state.json", "dataset_info.json"])):
        file.write_bytes(mutations.json_bytes(rng, json.loads(file.read_text())))


def read_saved(place, folder, rng):
    tokenised(open_dataset(folder), place.model)


def spoil_pickled(rng, folder):
    """The image tokenizer's weights, as PyTorch stores them."""
    (file,) = (folder / "magvitv2").glob("*.safetensors")
    tensors = changed(rng, load_file(file))
    torch.save(tensors, file.with_name("pytorch_model.bin"))
    file.unlink()
