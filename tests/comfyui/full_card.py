"""Run as ``python -m mmada_parallel.tests.comfyui.full_card COMFYUI FOLDER WORKS FILE NUMBER``.

On a card in Python (card.py) an allocation fails, one of all that the nodes of an edit ("edit") or
SFT Finetune ("training") make there: NUMBER of them, drawn at random, or each where it is 0. At
numbers that five divides, all that follow fail, too. Writes a line to FILE for each: what came of
it, and of the run after it, which goes on with the training. Goes on where FILE ends.
"""

import asyncio
import gc
import json
import random
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import torch
from PIL import Image

from ...mmp_core.memory import OutOfMemory
from ..hostile.limits import one_sentence
from ..nodes.untrained import write_untrained
from .card import LIVE, Card
from .streaming import FOLDER, Situation, folder_paths, fused_attention, management

NAME = "untrained"
DENOISE = {
    "text_steps": 2, "image_steps": 2, "joint_guidance": 2.0, "text_guidance": 0.0,
    "image_guidance": 0.0, "reasoning_guidance": 0.0, "batch_size": 2, "seed": 3,
    "preset": "corrected", "preview_every": 1, "text_temperature": 0.0, "order": "parallel",
    "image_temperature": 0.0, "remasking": "low_confidence", "record_steps": 2, "speed": "exact",
    "block_length": -1,
}  # fmt: skip
SFT = {
    "batch_size": 2, "micro_batch": 2, "steps": 2, "learning_rate": 1e-2, "rank": 2, "seed": 0,
    "gradient_checkpointing": False, "existing_lora": "none", "preview_every": 0, "layers": "mlp",
    "schedule": "constant", "checkpoint_every": 10, "text_length": 6, "warmup_steps": 0,
}  # fmt: skip


class Nodes:
    """The nodes on the card, as ComfyUI's executor calls them."""

    def __init__(self, host, classes):
        self.classes, self.runs = classes, 0
        self.hosted = host.load(NAME, "fp32", "auto")

    def run(self, name, **inputs):
        node = self.classes[f"MMaDAParallel{name}"].PREPARE_CLASS_CLONE(None)
        node.hidden = SimpleNamespace(unique_id="1", prompt=None, extra_pnginfo=None)
        return node.execute(**inputs).result

    def edit(self):
        """Tokens and pixels."""
        model, picture = self.hosted, torch.linspace(0, 1, 32 * 32 * 3).view(1, 32, 32, 3)
        (prompt,) = self.run("EncodeInstruction", model=model, image=picture, width=0, height=0,
                             instruction="remove the red star", text_length=4)  # fmt: skip
        tokens, _ = self.run("Denoise", model=model, prompt=prompt, **DENOISE)
        (pixels,) = self.run("DecodeImage", model=model, tokens=tokens, fill="grey")[:1]
        return [tokens.text.tolist(), tokens.image.tolist(), pixels.flatten()[::7].tolist()]

    def training(self, name=None):
        """The adapter after two steps, of a new run or of the one called ``name``."""
        self.runs += not name
        name = name or f"run-{self.runs}"
        folder = FOLDER / "output" / "mmada_parallel" / "training" / name
        resume = (folder / "run.pt").exists()
        (dataset,) = self.run("LoadEditDataset", dataset="pairs", bad_items="skip", limit=0)[:1]
        (lora,) = self.run("SFTFinetune", model=self.hosted, dataset=dataset, run_name=name,
                           resume=resume, **SFT)[:1]  # fmt: skip
        return {name: tensor.tolist() for name, tensor in lora.items()}

    def edit_again(self):
        return self.edit()

    def training_again(self):
        """Of the last run, gone on with, or begun anew if nothing was saved."""
        return self.training(f"run-{self.runs}")


def freed():
    """As ComfyUI does where memory ran out, and after each run of the tests: the bytes that stay on
    the card."""
    management.unload_all_models()
    gc.collect()
    return LIVE.now


def attempt(work, fails):
    """What ``work`` gives where the allocations ``fails`` fail, and what came of it."""
    LIVE.made, LIVE.fails = 0, fails
    try:
        result, verdict = work(), "as usual"
    except OutOfMemory as error:
        said = str(error)
        result, verdict = None, "sentence" if one_sentence(error) else f"long: {said}"
        if not isinstance(error, management.OOM_EXCEPTION):
            verdict = f"not ComfyUI's: {said}"
    except Exception as error:
        result, verdict = None, f"raw: {type(error).__name__}: {error}"[:500]
    LIVE.fails = ()
    left = freed()
    return result, verdict if not left else f"{verdict}; {left} bytes stay on the card"


def sweep(work, after, file, kind, number):
    """``after``: what to run when ``work`` has failed, and what it must give."""
    work(), freed()
    LIVE.made = 0
    usual = work()
    count = LIVE.made
    freed()
    places = random.Random(kind).sample(range(count), min(number or count, count))
    done = {(line["kind"], line["ever"], line["at"]) for line in lines_of(file)}
    for at in places:
        ever = at % 5 == 0
        if (kind, ever, at) in done:
            continue
        result, verdict = attempt(work, range(at, 10**9) if ever else {at})
        if result is not None and result != usual:
            verdict += ", but another result"
        later = "equal"
        try:
            if after() != usual:
                later = "another result"
        except Exception as error:
            later = f"{type(error).__name__}: {error}"[:500]
        if left := freed():
            later += f"; {left} bytes stay on the card"
        line = {"kind": kind, "of": count, "ever": ever, "at": at, "verdict": verdict}
        with file.open("a") as stream:
            stream.write(json.dumps(line | {"after": later}) + "\n")


def lines_of(file):
    return list(map(json.loads, file.read_text().splitlines())) if file.exists() else []


def write_pairs(folder):
    folder.mkdir(parents=True)
    for index, colour in enumerate(("red", "blue")):
        for ending in ("", ".target"):
            Image.new("RGB", (32, 32), colour).save(folder / f"{index}{ending}.png")
        (folder / f"{index}.txt").write_text("make the background blue")
        (folder / f"{index}.think.txt").write_text("the background becomes blue .")


def main():
    works, file, number = sys.argv[3].split(","), Path(sys.argv[4]), int(sys.argv[5])
    folder_paths.add_model_folder_path("mmada_parallel", str(FOLDER))
    for name in ("output", "temp", "input"):
        (FOLDER / name).mkdir(parents=True)
        getattr(folder_paths, f"set_{name}_directory")(str(FOLDER / name))
    write_pairs(FOLDER / "input" / "pairs")
    write_untrained(FOLDER / NAME, default_image_size=32)
    from ... import nodes

    torch.get_device_module("card").get_amp_supported_dtype = lambda: [torch.bfloat16]
    Situation().pretend()
    nodes.load.host.models.attention = lambda device: fused_attention
    listed = asyncio.run(nodes.MMaDAParallelExtension().get_node_list())
    classes = {node.define_schema().node_id: node for node in listed}
    with torch.inference_mode(), Card():  # as ComfyUI runs nodes
        all_nodes = Nodes(nodes.load.host, classes)
        gc.collect(), gc.freeze()  # so that what was imported is not looked through each time
        for work in works:
            run, again = getattr(all_nodes, work), getattr(all_nodes, f"{work}_again")
            sweep(run, again, file, work, number)
    gc.unfreeze()
    ends = Counter((line["kind"], line["verdict"], line["after"]) for line in lines_of(file))
    print(json.dumps(ends.most_common()))


if __name__ == "__main__":
    main()
