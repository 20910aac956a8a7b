"""What a workflow gives in a running ComfyUI, in a form to keep: see old_workflows/README.md.

`python -m mmada_parallel.tests.comfyui.frozen FOLDER` writes FOLDER/frozen/NAME.json for each
FOLDER/NAME.json that has none yet. In place of a folder, VERSION.json with {NAME: {"inputs": prompt
in API form}} gets what is missing beside the inputs.
"""

import json
import math
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
from mmada_parallel.tests.hosts import PACK_ROOT, ComfyServer, find_host
from mmada_parallel.tests.workflow_api import to_api
from PIL import Image
from safetensors.numpy import load_file

LOADER, SAVE = "MMaDAParallelLoader", "MMaDAParallelSaveTokens"
TRAINING = ("MMaDAParallelParaRLFinetune", "MMaDAParallelSFTFinetune")
TEXTS = ("MMaDAParallelDecodeText", "PreviewAny")
PICTURES = ("SaveImage", "PreviewImage")
OLD_FILES = PACK_ROOT / "tests" / "mmp_core" / "old_files"


def provide(comfy):
    """Put in place the files that the frozen workflows name in their widgets."""
    for name in ("old_sft", "old_pararl"):
        folder = comfy.base / "models" / "loras"
        folder.mkdir(exist_ok=True)
        shutil.copy(OLD_FILES / f"{name}.safetensors", folder)
    shutil.copy(OLD_FILES / "old.tokens.safetensors", comfy.base / "input")
    demo, models = PACK_ROOT / "demo" / "checkpoint", comfy.base / "models"
    shutil.copytree(demo, models / "mmada_parallel" / "my demo", dirs_exist_ok=True)
    shutil.copytree(
        demo / "vqvae", models / "mmada_parallel" / "tokenizers" / "vqvae", dirs_exist_ok=True
    )
    shutil.copytree(demo / "clip", models / "open_clip" / "my clip", dirs_exist_ok=True)
    pairs = comfy.base / "input" / "old pairs"
    pairs.mkdir(exist_ok=True)
    for index, colour in enumerate(("red", "blue")):
        for ending in ("", ".target"):
            Image.new("RGB", (128, 128), colour).save(pairs / f"{index}{ending}.png")
        (pairs / f"{index}.txt").write_text("make the background blue")
        (pairs / f"{index}.think.txt").write_text("the background becomes blue .")
    (pairs / "no picture.txt").write_text("move the circle")


def trains(prompt):
    return any(node["class_type"] in TRAINING for node in prompt.values())


def outcome(comfy, object_info, workflow, name):
    """Run ``workflow``: what its nodes took in as ``inputs``, and what came out of them."""
    return outcome_of(comfy, object_info, to_api(workflow, object_info), name)


def outcome_of(comfy, object_info, prompt, name):
    """:func:`outcome` of a prompt in API form."""
    kept = {"inputs": prompt}
    watched, tokens = _watched(prompt, object_info, name)
    done = comfy.run(watched)
    assert done.status == "success", done.error
    outputs = done.history["outputs"]
    if trains(prompt):
        return kept | {"training": {
            key[len("steps of ") :]: {
                "steps": int(outputs[key]["text"][0]),
                "losses": _losses(outputs[key.replace("steps", "loss", 1)]["text"][0]),
            }
            for key in watched
            if key.startswith("steps of ")
        }}  # fmt: skip
    kept["tokens"] = {}
    for key, prefix in tokens.items():
        kept["tokens"] |= _tokens(comfy, key, prefix)
    kept["texts"] = {
        key: outputs[key]["text"] for key in prompt if prompt[key]["class_type"] in TEXTS
    }
    kept["pictures"] = {
        key: [_thumbnail(comfy.view(item)) for item in outputs[key]["images"]]
        for key in prompt
        if prompt[key]["class_type"] in PICTURES
    }
    return kept


def _watched(prompt, object_info, name):
    """``prompt`` with its tokens saved and its curves shown; file prefixes of the tokens."""
    (loader, *_) = (key for key, node in prompt.items() if node["class_type"] == LOADER)
    watched, prefixes = dict(prompt), {}
    for key, node in prompt.items():
        for slot, kind in enumerate(object_info[node["class_type"]]["output"]):
            if kind == "MMADA_TOKENS":
                prefixes[f"{key}.{slot}"] = prefix = f"frozen/{name}/{key}.{slot}"
                inputs = {"model": [loader, 0], "tokens": [key, slot], "filename_prefix": prefix}
                watched[f"tokens of {key}.{slot}"] = {"class_type": SAVE, "inputs": inputs}
        if node["class_type"] in TRAINING:
            for what, slot in (("loss", 1), ("steps", 2)):
                inputs = {"source": [key, slot]}
                watched[f"{what} of {key}"] = {"class_type": "PreviewAny", "inputs": inputs}
    return watched, prefixes


def _tokens(comfy, key, prefix):
    """By ``key``, or by "key #0", "key #1", … where the node ran for each item of a list."""
    path = comfy.base / "output" / prefix
    files = sorted(path.parent.glob(f"{path.name}_*.tokens.safetensors"))
    names = [key] if len(files) == 1 else [f"{key} #{number}" for number in range(len(files))]
    return {
        name: {each: tensor.tolist() for each, tensor in load_file(file).items()}
        for name, file in zip(names, files, strict=True)
    }


def _losses(text):
    losses = [float(loss) for loss in json.loads(text.replace("'", '"'))["loss"]]
    assert all(map(math.isfinite, losses)), text
    return len(losses)


def _thumbnail(image):
    """Its size and the mean colours of 4x4 parts."""
    small = image.convert("RGB").resize((4, 4), Image.Resampling.BOX)
    return {"size": list(image.size), "colours": np.asarray(small).reshape(-1).tolist()}


def dumped(kept):
    return json.dumps(kept, separators=(",", ":"), ensure_ascii=False)


def freeze_folder(comfy, folder):
    (folder / "frozen").mkdir(exist_ok=True)
    object_info = comfy.object_info()
    for path in sorted(folder.glob("*.json")):
        if (file := folder / "frozen" / path.name).exists():
            continue
        kept = outcome(comfy, object_info, json.loads(path.read_text()), path.stem)
        file.write_text(dumped(kept) + "\n")
        print(path.stem, file.stat().st_size, flush=True)


def freeze_prompts(comfy, file):
    object_info, all_kept = comfy.object_info(), json.loads(file.read_text())
    for name, kept in all_kept.items():
        if kept.keys() == {"inputs"}:
            all_kept[name] = outcome_of(comfy, object_info, kept["inputs"], name)
    lines = [f"{dumped(name)}:{dumped(kept)}" for name, kept in all_kept.items()]
    file.write_text("{" + ",\n".join(lines) + "}\n")


def main(path):
    freeze = freeze_folder if path.is_dir() else freeze_prompts
    with (
        tempfile.TemporaryDirectory() as base,
        ComfyServer(find_host("current"), Path(base) / "comfyui") as comfy,
    ):
        provide(comfy)
        freeze(comfy, path)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
