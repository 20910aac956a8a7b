"""Many runs of mixed workflows in one ComfyUI process: what is left behind after each.

``python -m mmada_parallel.benchmarks.soak FILE --runs 300`` queues edits, inpainting, best of
four, two steps of ParaRL and of SFT, and a conversion, in turn, on the demo checkpoint, and writes
to FILE after each round: resident memory and where it lies, threads and their names, open files,
temporary files, what the allocators hold (see ``soak_observer``), and whether each result is the
first one's. At the end, what is free is given back to the system. ``--plot PICTURE`` draws a file
that is there, or one of tests/comfyui/dynamic_soak.py.
"""

import argparse
import hashlib
import json
import os
import statistics
import tempfile
from pathlib import Path

import torch
from mmada_parallel.tests.hosts import PACK_FOLDER, PACK_ROOT, ComfyServer, find_host
from mmada_parallel.tests.workflow_api import WORKFLOWS, to_api
from safetensors.torch import load_file

OBSERVER = Path(__file__).parent / "soak_observer"
TICKS = os.sysconf("SC_CLK_TCK")
WARM_UP = 5
"""Rounds after which memory is expected to stay."""
RUN_AGAIN = ("--cache-classic",)
"""Results of another workflow are dropped, so that each is computed anew."""
GROWING = ("rss", "private", "in_use", "blocks", "threads", "files", "temporary")
TEXT = "MMaDAParallelDecodeText"
FEW = {"text_steps": 4, "image_steps": 4, "profile": "own values"}
TRAINING = {
    "steps": 2,
    "rank": 4,
    "batch_size": 1,
    "group_size": 2,
    "held_out": 0.0,
    "rehearsal": 0.0,
}


def prompts(object_info):
    """API prompts by name, short enough for hundreds of runs."""
    read = {path.stem: json.loads(path.read_text()) for path in WORKFLOWS}
    edit = to_api(read["Edit an image"], object_info)
    inpaint = to_api(read["Inpaint"], object_info)
    best = to_api(read["Best of N"], object_info)
    pararl = to_api(read["Finetune by ParaRL on a folder"], object_info)
    sft = to_api(read["Teach it something new"], object_info)
    trainer = next(key for key in sft if sft[key]["class_type"] == "MMaDAParallelSFTFinetune")
    sft = {key: sft[key] for key in needed(sft, trainer)}
    save = {"prefix": "loras/sft", "lora": [trainer, 0], "steps": [trainer, 2]}
    sft["save"] = {"class_type": "SaveLoRA", "inputs": save}
    for prompt in (edit, inpaint, pararl, sft):
        for node in prompt.values():
            changes = TRAINING if node["class_type"].endswith("Finetune") else FEW
            if node["class_type"] == "MMaDAParallelLoadEditDataset":
                node["inputs"] |= {"dataset": "demo (toy world)", "limit": 8}
            if node["class_type"].endswith(("Finetune", "Denoise")):
                node["inputs"] |= {k: v for k, v in changes.items() if k in node["inputs"]}
    inputs = {"checkpoint": "demo", "quantize": "int8", "name": "soak", "lora": "none"}
    inputs |= {"strength": 1.0, "image_tokenizer": "auto"}
    convert = {"1": {"class_type": "MMaDAParallelConvertCheckpoint", "inputs": inputs}}
    return {"edit": edit, "inpaint": inpaint, "best of N": best, "ParaRL": pararl, "SFT": sft,
            "convert": convert}  # fmt: skip


def needed(prompt, key):
    keys = {key}
    for value in prompt[key]["inputs"].values():
        if isinstance(value, list) and value[0] in prompt:
            keys |= needed(prompt, value[0])
    return keys


def run(comfy, prompt):
    """A digest of all that a run gave: pictures, texts, files. The files are removed."""
    done = comfy.run(prompt)
    if done.status != "success":
        raise RuntimeError(done.error)
    digest = hashlib.sha256()
    for picture in done.images:
        digest.update(picture.convert("RGB").tobytes())
    for key, node in sorted(prompt.items()):
        if node["class_type"] == TEXT:
            digest.update(json.dumps(done.history["outputs"][key]["text"]).encode())
    for folder in ("output", "models/mmada_parallel", "temp"):
        for file in sorted((comfy.base / folder).rglob("*.safetensors")):
            for name, tensor in sorted(load_file(file).items()):  # the header names the run
                digest.update(
                    name.encode() + tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
                )
            file.unlink()
    comfy.post("/history", {"clear": True})
    return digest.hexdigest()[:16]


def where(process):
    """Resident megabytes: of the heap, of anonymous mappings, of files."""
    sizes = {"heap": 0, "anonymous": 0, "mapped": 0}
    for line in (process / "smaps").read_text().splitlines():
        fields = line.split()
        if "-" in fields[0] and not fields[0].endswith(":"):
            name = fields[5] if len(fields) > 5 else ""
            kind = "heap" if name == "[heap]" else "mapped" if name[:1] == "/" else "anonymous"
        elif fields[0] == "Rss:":
            sizes[kind] += int(fields[1])
    return {kind: round(size / 1024, 1) for kind, size in sizes.items()}


def state(comfy, temporary, ask="/soak?types"):
    """Of the process: resident and private megabytes, threads, open files, temporary files,
    seconds of a processor so far, and what it says itself."""
    inside, process = comfy.get(ask), Path("/proc") / str(comfy.pid)
    lines = (process / "smaps_rollup").read_text().splitlines()
    sizes = {line.split(":")[0]: int(line.split()[1]) for line in lines[1:]}
    return {
        "rss": round(sizes["Rss"] / 1024, 1),
        "private": round((sizes["Private_Dirty"] + sizes["Private_Clean"]) / 1024, 1),
        "threads": len(list((process / "task").iterdir())),
        "files": len(list((process / "fd").iterdir())),
        "temporary": sum(1 for path in temporary.rglob("*") if path.is_file()),
        "processor": round(sum(map(int, (process / "stat").read_text().split()[13:15])) / TICKS, 1),
        **where(process),
        **inside,
    }


def soak(file, runs):
    with tempfile.TemporaryDirectory() as folder:
        temporary = Path(folder) / "tmp"
        temporary.mkdir()
        place = {"base": Path(folder) / "comfy", "temporary": temporary, "options": RUN_AGAIN}
        place["packs"] = {PACK_FOLDER: PACK_ROOT, "soak_observer": OBSERVER}
        with ComfyServer(find_host("current"), **place) as comfy:
            queue = prompts(comfy.object_info())
            rounds, first, different = [], {}, []
            for number in range(-(-runs // len(queue))):
                for name, prompt in queue.items():
                    digest = run(comfy, prompt)
                    if first.setdefault(name, digest) != digest:
                        different.append([number, name])
                comfy.forget()
                rounds.append(state(comfy, temporary))
                report = summary(rounds, len(queue)) | {
                    "different": different,
                    "host": str(comfy.host),
                }
                file.write_text(json.dumps(report | {"rounds": rounds}, indent=1))
                print(number, rounds[-1], different, flush=True)
            report["trimmed"] = state(comfy, temporary, "/soak?trim")
            file.write_text(json.dumps(report | {"rounds": rounds}, indent=1))


def summary(rounds, each):
    """Growth between the means of the first and last five rounds after the warm-up, in %."""
    after = rounds[WARM_UP:]
    few = max(1, min(5, len(after) // 2))
    growth = {}
    for name in GROWING if after else ():
        begin = statistics.mean(r[name] for r in after[:few])
        end = statistics.mean(r[name] for r in after[-few:])
        growth[name] = round(100 * (end - begin) / begin, 2) if begin else end
    return {"runs": len(rounds) * each, "growth_percent": growth}


def plot(file, picture):
    import matplotlib.pyplot as plt

    report = json.loads(file.read_text())
    rounds, label = report["rounds"], f"round of {report['runs'] // len(report['rounds'])} runs"
    megabytes = {"rss": "resident", "private": "private", "in_use": "malloc, in use",
                 "free": "malloc, free"}  # fmt: skip
    counts = {"threads": "threads", "files": "files", "temporary": "temporary",
              "card": "bytes on the card"}  # fmt: skip
    figure, axes = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
    for axis, names, what in zip(axes, (megabytes, counts), ("MB", None), strict=True):
        for name in (name for name in names if name in rounds[0]):
            axis.plot([r[name] for r in rounds], label=names[name])
        axis.set(xlabel=label, ylabel=what, ylim=0)
        axis.legend(loc="center", ncols=2, frameon=False)
    figure.savefig(picture, dpi=90)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--runs", type=int, default=300)
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args()
    if args.plot:
        plot(args.file, args.plot)
    else:
        soak(args.file, args.runs)


if __name__ == "__main__":
    main()
