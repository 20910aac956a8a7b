"""Every reader of the product, with something that it reads and a way to spoil that."""

import argparse
import io
import json
import os
import random
import shutil
from contextlib import suppress
from pathlib import Path

import torch
from mmada_parallel.cli import main as cli_main
from mmada_parallel.cli import training_options
from mmada_parallel.cli.many import instructions_of
from mmada_parallel.cli.run_file import read_run_file
from mmada_parallel.mmp_core import (
    SamplerSettings,
    decode_image,
    decode_text,
    denoise,
    encode_instruction,
    load_checkpoint,
    put_back,
)
from mmada_parallel.mmp_core.checkpoint.adapters import build_adapter, read_adapter
from mmada_parallel.mmp_core.checkpoint.convert import convert
from mmada_parallel.mmp_core.checkpoint.inspect import inspect_checkpoint
from mmada_parallel.mmp_core.checkpoint.load import open_checkpoint
from mmada_parallel.mmp_core.checkpoint.tokens import load_tokens, save_tokens
from mmada_parallel.mmp_core.editing import fixed_text, pattern_selected, words_selected
from mmada_parallel.mmp_core.errors import InputError
from mmada_parallel.mmp_core.files import checked_path, writable_file
from mmada_parallel.mmp_core.image.files import load_image, read_original
from mmada_parallel.mmp_core.image.put_back_settings import PutBackSettings
from mmada_parallel.mmp_core.state import TokenState
from mmada_parallel.mmp_core.variants.strangers import NOTE
from mmada_parallel.tests.mmp_core import tiny
from mmada_parallel.training.data.codes import CodeCache, encode_pictures, key_of
from mmada_parallel.training.data.dataset import open_dataset, tokenised
from mmada_parallel.training.data.items import checked_picture
from mmada_parallel.training.dpo.preferences import open_preferences, save_preference
from mmada_parallel.training.loop.folder import RunFolder
from mmada_parallel.training.loop.run_file import write_run_file
from mmada_parallel.training.pararl.votes import VotingRound
from PIL import Image
from safetensors.torch import save_file

from . import mutations, training_readers

FAST = SamplerSettings(text_steps=1, image_steps=1, joint_guidance=0.0)
RED = Image.new("RGB", (64, 48), "red")


class Place:
    """Files that readers read, written once, and the tiny model that they belong to."""

    def __init__(self, folder):
        self.folder = Path(folder)
        for variant in "AM":
            tiny.write_checkpoint(self.folder / variant, variant)
        tiny.write_checkpoint(self.folder / "sharded", "A", shards=2)
        convert(self.folder / "A", self.folder / "packed" / "a.safetensors", quantize="fp8")
        self.model = load_checkpoint(self.folder / "A")
        self._tokens()
        self._adapters()
        self._data()
        self.pictures = list(_pictures())
        training_readers.write_run(self.model, self.folder / "state")
        training_readers.write_clips(self.folder)
        training_readers.write_codes(self.model, self.folder / "codes")
        training_readers.write_votes(self.model, self.folder / "voted")
        training_readers.write_saved(self.folder / "saved")
        run_checkpoint(self.folder / "A")  # all that is imported late, before there are forks

    def _tokens(self):
        prompt = encode_instruction(self.model, "make it red", RED)
        state = denoise(self.model, prompt, FAST).final
        (self.folder / "tokens").mkdir()
        save_tokens(self.folder / "tokens" / "a.safetensors", state, self.model)
        self.state = state
        answers = TokenState(state.text.repeat(2, 1), state.image.repeat(2, 1, 1))
        answers.image[1] = 0
        path = save_preference(self.folder / "picks", self.model, prompt, answers, 0)
        path.rename(path.with_name("a.preference.safetensors"))

    def _adapters(self):
        layer, width = "model.transformer.blocks.0.q_proj", 16
        pair = {
            f"base_model.model.{layer}.lora_A.weight": torch.ones(2, width),
            f"base_model.model.{layer}.lora_B.weight": torch.ones(width, 2),
        }
        folder = self.folder / "adapter"
        folder.mkdir()
        save_file(pair, folder / "adapter_model.safetensors")
        settings = {"peft_type": "LORA", "lora_alpha": 4, "r": 2, "init_lora_weights": True}
        (folder / "adapter_config.json").write_text(json.dumps(settings))
        kohya = {
            f"diffusion_model.{layer}.lora_down.weight": torch.ones(2, width),
            f"diffusion_model.{layer}.lora_up.weight": torch.ones(width, 2),
            f"diffusion_model.{layer}.alpha": torch.tensor(1.0),
        }
        (self.folder / "kohya").mkdir()
        save_file(kohya, self.folder / "kohya" / "a.safetensors")

    def _data(self):
        folder = self.folder / "data"
        folder.mkdir()
        for name in ("a", "b"):
            RED.save(folder / f"{name}.png")
            RED.save(folder / f"{name}.target.png")
            (folder / f"{name}.txt").write_text("make it red")
            (folder / f"{name}.think.txt").write_text("red")
        lines = [{"image": "a.png", "instruction": "make it red", "think": "a", "target": "b.png"}]
        (folder / "all.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines * 3))
        (self.folder / "run").mkdir()
        RunFolder(self.folder / "run").write({"step": 3, "settings": {"a": 1}, "x": torch.ones(2)})
        RunFolder(self.folder / "run").log({"step": 1, "loss": 0.5})
        item = open_dataset(folder).items[0].image
        store = CodeCache(self.folder / "run" / "codes.safetensors", "f")
        encode_pictures(self.model, {key_of(item, (16, 16)): (item, (16, 16))}, store)
        self.item = item


def _pictures():
    for form in ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"):
        for mode in ("RGB", "L", "P", "RGBA", "I;16", "CMYK"):
            buffer = io.BytesIO()
            try:
                image = RED.convert("L").convert(mode) if mode == "I;16" else RED.convert(mode)
                image.save(buffer, form)
            except (OSError, ValueError):  # a mode that the format does not have
                continue
            yield buffer.getvalue()


def run_checkpoint(path, **options):
    model = load_checkpoint(path, **options)
    inspect_checkpoint(path, **options)
    size = (model.default_image_size,) * 2
    if size[0] > 64 or model.default_text_length > 64:
        return
    for picture in (None, RED):
        prompt = encode_instruction(model, "make it red", picture, text_length=3)
        final = denoise(model, prompt, FAST).final
        decode_text(model, final)
        decode_image(model, final)


class Reader:
    """``copy``: the folder of :class:`Place` that is copied for a case. ``spoil(rng, folder)``
    changes a file in it, ``read(place, folder)`` reads it."""

    def __init__(self, copy, spoil, read):
        self.copy, self.spoil, self.read = copy, spoil, read

    def case(self, place, seed, work):
        """A function that runs case ``seed`` in the folder ``work``, which is there afterwards."""

        def run():
            rng, folder = random.Random(seed), Path(work) / "case"
            if self.copy:
                shutil.copytree(place.folder / self.copy, folder)
            else:
                folder.mkdir()
            os.chdir(folder)
            self.spoil(rng, folder)
            self.read(place, folder, rng)

        return run


def of_json(*names):
    def spoil(rng, folder):
        file = folder / rng.choice(names)
        kind = rng.random()
        if kind < 0.02:
            file.unlink()
            os.mkfifo(file)
        elif kind < 0.04:
            file.unlink()
            file.symlink_to("/dev/zero")
        else:
            file.write_bytes(mutations.json_bytes(rng, json.loads(file.read_text())))

    return spoil


def of_safetensors(*names, strings=()):
    def spoil(rng, folder):
        file = folder / rng.choice(names)
        file.write_bytes(mutations.strange_safetensors(rng, file.read_bytes(), strings))

    return spoil


def of_bytes(*names):
    def spoil(rng, folder):
        file = folder / rng.choice(names)
        file.write_bytes(mutations.strange_bytes(rng, file.read_bytes()))

    return spoil


def nothing(rng, folder):
    pass


def read_folder(place, folder, rng):
    run_checkpoint(folder)


def read_packed(place, folder, rng):
    run_checkpoint(folder / "a.safetensors")


def of_adapter(name):
    def read(place, folder, rng):
        file = folder / name
        state, about = read_adapter(file)
        build_adapter(place.model, state, about, "it").attach(place.model.transformer, 1.0)
        denoise(place.model, encode_instruction(place.model, "make it red", RED), FAST)

    return read


def read_tokens(place, folder, rng):
    state = load_tokens(folder / "a.safetensors", place.model)
    decode_text(place.model, state)
    decode_image(place.model, state)


def read_pattern(place, folder, rng):
    pattern = mutations.strange_pattern(rng)
    pieces = ["red ", "a", "b ", ""] * rng.choice([1, 1000, 25_000])
    pattern_selected(pieces, pattern)


def read_words(place, folder, rng):
    spans = "".join(rng.choices(["1", "-", ",", " ", "99999", "0", "a", "\0", "\ud800"], k=12))
    try:
        words_selected(["a ", "b ", "c"], spans)
    finally:
        fixed_text(place.model, "".join(rng.choices(["red ", "░", "\ud800", "x" * 9000], k=4)), 5)


def read_picture(place, folder, rng):
    content = mutations.strange_bytes(rng, rng.choice(place.pictures))
    Path("a.png").write_bytes(content)
    for read in (load_image, read_original):
        with suppress(InputError):
            read(folder / "a.png")
    checked_picture("it", content, lambda: RED).read()


def read_data(place, folder, rng):
    dataset = open_dataset(folder if rng.random() < 0.3 else folder / "all.jsonl")
    tokenised(dataset, place.model, need_target=rng.random() < 0.5)


def spoil_data(rng, folder):
    file = rng.choice(sorted(folder.iterdir()))
    kind = rng.random()
    if kind < 0.5:
        file = folder / "all.jsonl"
        lines = [mutations.json_bytes(rng, json.loads(x)) for x in file.read_text().splitlines()]
        file.write_bytes(b"\n".join(line.replace(b"\n", b" ") for line in lines))
    elif kind < 0.55:
        file.unlink()
        file.symlink_to(rng.choice(["/dev/zero", "/etc/passwd", "nowhere", file.name]))
    elif kind < 0.6:
        (folder / "c.txt").write_text("word " * 10**6)
    else:
        file.write_bytes(mutations.strange_bytes(rng, file.read_bytes()))


def read_run(place, folder, rng):
    run = RunFolder(folder)
    run.read("cpu")
    run.lines()
    run.forget_after(0)
    store = CodeCache(folder / "codes.safetensors", "f")
    key = key_of(place.item, (16, 16))
    encode_pictures(place.model, {key: (place.item, (16, 16))}, store)
    codes = store.codes[key]
    place.model.layout.encode("a", codes, TokenState.masked(1, 2, (2, 2)))


def read_name(place, folder, rng):
    name = mutations.strange_name(rng)
    try:
        checked_path(name, "it")
        writable_file(folder / name if "\0" not in name else name, "it")
    except InputError:
        pass
    load_image(name)


COMMANDS = [
    ["edit", "IMAGE", "WORDS", "--model", "A"], ["edit", "NAME", "WORDS"], ["check", "NAME"],
    ["generate", "WORDS", "--model", "NAME"], ["edit", "IMAGE", "WORDS", "--out", "NAME"],
    ["edit", "IMAGE", "WORDS", "--lora", "NAME", "--model", "A"], ["convert", "NAME", "NAME"],
    ["train", "sft", "--data", "NAME", "--output", "NAME"], ["train", "sft", "--data", "demo"],
    ["train", "sft", "--resume", "--folder", "NAME"], ["generate", "WORDS", "--text-out", "NAME"],
    ["train", "pararl", "--reward", "NAME", "--output", "NAME"],
    ["evaluate", "--cases", "1", "--clip", "NAME"],
    ["generate", "WORDS", "--seed", "NAME"], ["generate", "WORDS", "--size", "NAME"], ["NAME"],
    ["edit", "IMAGE", "NAME", "--image-tokenizer", "NAME"],
]  # fmt: skip
FAST_ARGS = ["--text-steps", "1", "--image-steps", "1", "--quiet"]


def read_command(place, folder, rng):
    RED.save("red.png")
    values = {"IMAGE": "red.png", "A": str(place.folder / "A")}
    line = [values.get(word, word) for word in rng.choice(COMMANDS)]
    line = [mutations.strange_name(rng) if word == "NAME" else word for word in line]
    line = [rng.choice(["red", "", " ", "\ud800", "x" * 99]) if w == "WORDS" else w for w in line]
    drawing = line[0] in ("edit", "generate")
    if line[0] == "train" and "--output" not in line and "--folder" not in line:
        line += ["--steps", mutations.strange_name(rng)]
    code = cli_main([*line, *(FAST_ARGS if drawing else [])])
    if code not in (0, 2):
        raise RuntimeError(f"exit code {code}")


RUN_FILE = {"method": "sft", "data": ["a", "b"], "steps": 3, "learning_rate": 1e-4, "rslora": True}
VOTES = {
    "answers": "0", "what to do": "", "groups": [
        {"instruction": "make it red", "source": "a.png", "winners": [1],
         "answers": [{"text": "red", "picture": "a.png"}, {"text": "a", "picture": "b.png"}]},
        {"instruction": "a", "source": None, "winners": None,
         "answers": [{"text": "red", "picture": "a.png"}, {"text": "a", "picture": "b.png"}]},
    ],
}  # fmt: skip


def read_the_run_file(place, folder, rng):
    file = folder / "run.toml"
    if rng.random() < 0.5:
        write_run_file(file, "sft", RUN_FILE)
        file.write_bytes(mutations.strange_bytes(rng, file.read_bytes()))
    else:
        values = mutations.strange_json(rng, RUN_FILE)
        values = values if isinstance(values, dict) else {"method": values}
        lines = [f"{key} = {json.dumps(value)}" for key, value in values.items()]
        file.write_bytes("\n".join(lines).encode(errors="surrogatepass"))
    method = argparse.ArgumentParser()
    training_options.add_sft(method)
    read_run_file(file, {"sft": method}, [])


def read_votes(place, folder, rng):
    step = folder / "votes" / "step-00001"
    step.mkdir(parents=True)
    for name in "ab":
        (step / f"{name}.png").write_bytes(rng.choice(place.pictures))
    (step / "votes.json").write_bytes(mutations.json_bytes(rng, VOTES))
    weights = (place.folder / "tokens" / "a.safetensors").read_bytes()
    (step / "rollouts.safetensors").write_bytes(mutations.strange_bytes(rng, weights))
    waiting = VotingRound(folder, 1)
    with suppress(InputError):
        waiting.rollouts(place.model, [])
    with suppress(InputError):
        waiting.vote(rng.choice([1, 2, -1, 2**70]), rng.choice(mutations.STRANGE[-12:]))
    for group in waiting.groups():
        for answer in group.answers:
            load_image(answer.picture)


def read_picks(place, folder, rng):
    open_preferences(folder).cases(place.model)


def read_note(place, folder, rng):
    if folder.is_dir():
        (folder / NOTE).write_bytes(mutations.json_bytes(rng, {"family": "A"}))
    open_checkpoint(folder)


def read_list(place, folder, rng):
    content = "make it red\nmake it blue\n".encode(rng.choice(["utf-8", "utf-16", "latin-1"]))
    (folder / "a.txt").write_bytes(mutations.strange_bytes(rng, content))
    for text in instructions_of("@" + str(folder / "a.txt")):
        encode_instruction(place.model, text, RED)


def read_masks(place, folder, rng):
    """Numbers and pictures that edit and put back take."""
    sides = [1, 2, 7, 64, 3000]
    original = Image.new("RGB", (rng.choice(sides), rng.choice(sides)), "red")
    mask = Image.new("L", (rng.choice(sides), rng.choice(sides)), rng.choice([0, 1, 255]))
    few = [0, 1, 0.5, -1, 7, 10**9, float("nan"), float("inf"), None]
    options = {"coverage": rng.choice(few), "grow": rng.choice(few)}
    region = rng.choice([None, None, tuple(rng.choices([-1, 0, 1, 32, 64, 4000, 10**9], k=4))])
    prompt = encode_instruction(place.model, "red", original, mask=mask, region=region, **options)
    result = decode_image(place.model, denoise(place.model, prompt, FAST).final)[0]
    more = {"threshold": rng.choice(few), "grow": rng.choice(few), "feather": rng.choice(few)}
    mode = rng.choice(["changed", "mask", "all", "x"])
    settings = PutBackSettings(mode=mode, **more)
    put_back(place.model, prompt, original, result, mask=mask, settings=settings)


STRINGS = (
    "mmada_parallel",
    "config.json",
    "image_tokenizer/config.json",
    "tokenizer/tokenizer.json",
)
PREPARING = ("preprocessor_config.json", "tokenizer_config.json")
ROLLOUTS = "votes/step-00000/rollouts.safetensors"
VQ = "vqvae/diffusion_pytorch_model.safetensors"
READERS = {
    "config.json": Reader("A", of_json("config.json"), read_folder),
    "config.json of M": Reader("M", of_json("config.json", "magvitv2/config.json"), read_folder),
    "image tokenizer": Reader("A", of_json("vqvae/config.json"), read_folder),
    "index of shards": Reader("sharded", of_json("model.safetensors.index.json"), read_folder),
    "weights": Reader("A", of_safetensors("model.safetensors", VQ), read_folder),
    "tokenizer.json": Reader("A", of_json("tokenizer.json", "tokenizer_config.json"), read_folder),
    "packed file": Reader("packed", of_safetensors("a.safetensors", strings=STRINGS), read_packed),
    "adapter": Reader(
        "adapter", of_json("adapter_config.json"), of_adapter("adapter_model.safetensors")
    ),
    "adapter's tensors": Reader(
        "kohya", of_safetensors("a.safetensors"), of_adapter("a.safetensors")
    ),
    "saved tokens": Reader(
        "tokens", of_safetensors("a.safetensors", strings=("placement",)), read_tokens
    ),
    "pattern": Reader(None, nothing, read_pattern),
    "words": Reader(None, nothing, read_words),
    "picture": Reader(None, nothing, read_picture),
    "dataset": Reader("data", spoil_data, read_data),
    "run folder": Reader("run", of_bytes("run.pt", "log.jsonl", "codes.safetensors"), read_run),
    "state of a run": Reader("state", training_readers.spoil_state, training_readers.read_state),
    "name": Reader(None, nothing, read_name),
    "command line": Reader(None, nothing, read_command),
    "clip": Reader("clip", training_readers.spoil_clip, training_readers.read_clip),
    "clip of transformers": Reader(
        "transformers", of_json("config.json", *PREPARING), training_readers.read_words
    ),
    "codes": Reader("codes", training_readers.spoil_codes, training_readers.read_codes),
    "table": Reader(None, nothing, training_readers.read_table),
    "saved dataset": Reader("saved", training_readers.spoil_saved, training_readers.read_saved),
    "rollouts": Reader(
        "voted", of_safetensors(ROLLOUTS, strings=("total_steps",)), training_readers.read_rollouts
    ),
    "log": Reader(None, training_readers.spoil_log, training_readers.read_log),
    "pickled weights": Reader("M", training_readers.spoil_pickled, read_folder),
    "words of a clip": Reader(
        "clip", of_json("tokenizer.json", "tokenizer_config.json"), training_readers.read_words
    ),
    "run.toml": Reader(None, nothing, read_the_run_file),
    "votes": Reader(None, nothing, read_votes),
    "picks": Reader("picks", of_safetensors("a.preference.safetensors"), read_picks),
    "family": Reader("A", nothing, read_note),
    "instructions": Reader(None, nothing, read_list),
    "masks": Reader(None, nothing, read_masks),
}
