"""What can only be known on a card, in pieces of less than nine minutes each.

``python -m mmada_parallel.benchmarks.card PIECE [--comfyui PATH] [--out FILE]``, PIECE being

core      benchmarks/gpu.py: kernels, graphs and every speed level in bf16, fp8 and int8
training  one LoRA step of SFT and of ParaRL, on bf16 and on int8
comfyui   an edit through the real ComfyUI at PATH, which needs no page: DynamicVRAM and the classic
          path, on the whole card and on one capped to ``--budget`` GB, in bf16 and int8

Prints JSON. The weights are random, of the released widths and depth, in the demo's layout (so
without the embedding's 1.1 GB). ``--tiny`` runs all of it on a model of no size, on a CPU.
"""

from __future__ import annotations

import json
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from mmada_parallel.benchmarks import gpu
from mmada_parallel.benchmarks.measure import Report, name_of, once, parser_of
from mmada_parallel.demo import world
from mmada_parallel.demo.dataset import cases_of
from mmada_parallel.demo.tokenizer import model_config, write_tokenizer
from mmada_parallel.demo.vq import vq_config
from mmada_parallel.mmp_core import SamplerSettings, load_checkpoint
from mmada_parallel.mmp_core.checkpoint.convert import convert
from mmada_parallel.mmp_core.image.amused import AmusedVQ
from mmada_parallel.mmp_core.model.config import ModelConfig
from mmada_parallel.mmp_core.model.transformer import MaskedDiffusionTransformer
from mmada_parallel.tests.hosts import ComfyServer, Host
from mmada_parallel.tests.workflow_api import WORKFLOWS, to_api
from mmada_parallel.training.loop.run import TrainingRun
from mmada_parallel.training.pararl.run import ParaRLRun
from mmada_parallel.training.pararl.settings import ParaRLSettings
from mmada_parallel.training.sft.run import SFTRun
from mmada_parallel.training.sft.settings import SFTSettings
from mmada_parallel.training.weights.policies import LoRA
from safetensors.torch import save_file
from torch import Tensor

SIZES = {"d_model": 4096, "n_layers": 32, "n_heads": 32, "mlp_hidden_size": 12288}
TINY = {"d_model": 64, "n_layers": 2, "n_heads": 2, "mlp_hidden_size": 128}
WORKFLOW = "Generate with thinking"
STEPS = 16
"""Of an edit through ComfyUI: enough to tell a step's time."""


def write_random(folder: Path, sizes: dict[str, int], device: torch.device) -> Path:
    """A checkpoint folder with random bf16 weights, made on ``device``."""
    folder.mkdir(parents=True)
    config = model_config(**sizes)
    (folder / "config.json").write_text(json.dumps(config))
    write_tokenizer(folder)
    outline = MaskedDiffusionTransformer(ModelConfig.from_dict(config), device="meta").state_dict()
    generator = torch.Generator(device).manual_seed(0)

    def weight(like: Tensor) -> Tensor:
        made = torch.ones(like.shape, device=device, dtype=torch.bfloat16)
        return (made.normal_(std=0.02, generator=generator) if like.ndim > 1 else made).cpu()

    save_file({name: weight(like) for name, like in outline.items()}, folder / "model.safetensors")
    (folder / "vqvae").mkdir()
    (folder / "vqvae" / "config.json").write_text(json.dumps(vq_config()))
    image_weights = folder / "vqvae" / "diffusion_pytorch_model.safetensors"
    save_file(AmusedVQ(vq_config()).state_dict(), image_weights)
    return folder


def rising(pairs: list[Any]) -> Tensor:
    """A reward that tells answers and their gains apart, whatever they are."""
    return torch.arange(float(len(pairs))) ** 2


def measure_training(report: Report, checkpoints: dict[str, Path], device: torch.device) -> None:
    for kind, path in checkpoints.items():
        report.part(f"training, {kind}", 60, partial(training_steps, path, device))


def training_steps(path: Path, device: torch.device) -> dict[str, dict[str, float]]:
    """Seconds and peak memory of one step of each, adapters of rank 16."""
    model = load_checkpoint(path, device=device, dtype=torch.bfloat16)
    cases = cases_of(model, [world.task(i) for i in range(4)])
    sampler = SamplerSettings(text_steps=32, image_steps=16, text_temperature=1.0)
    sampler = replace(sampler, joint_guidance=0.0)
    pararl = ParaRLSettings(steps=1, groups=2, group_size=8, micro_batch=2, sampler=sampler)
    sft = SFTSettings(steps=1, batch_size=4, micro_batch=1, gradient_checkpointing=True)
    results = {}

    def step(make: Callable[[Path, LoRA], TrainingRun]) -> dict[str, float]:
        with (
            tempfile.TemporaryDirectory() as folder,
            LoRA(model.transformer, rank=16, device=device) as lora,
        ):
            return once(make(Path(folder, "run"), lora).train)

    results["sft"] = step(lambda folder, lora: SFTRun(model, cases, sft, folder, policy=lora))
    results["pararl"] = step(
        lambda folder, lora: ParaRLRun(model, cases, rising, pararl, folder, policy=lora)
    )
    return results


class Server(ComfyServer):
    """ComfyUI with start options of our own."""

    options: tuple[str, ...] = ()

    def _command(self) -> list[str]:
        plain = [part for part in super()._command() if part != "--cpu"]
        return [*plain, *self.options]


def edit(host: Host, options: tuple[str, ...], checkpoint: Path) -> dict[str, Any]:
    """Seconds of a first and a second run of a workflow, and what ComfyUI says of its memory."""
    (source,) = (file for file in WORKFLOWS if file.stem == WORKFLOW)
    with tempfile.TemporaryDirectory() as base:
        server = Server(host, Path(base, "comfyui"))
        server.options = options
        with server:
            folder = server.base / "models" / "mmada_parallel"
            folder.mkdir(parents=True)
            (folder / checkpoint.name).symlink_to(checkpoint)
            prompt = to_api(json.loads(source.read_text()), server.object_info())
            taken = [_run(server, prompt, checkpoint.name, seed) for seed in (1, 2)]
            device = server.get("/system_stats")["devices"][0]
    memory = {name: device[name] for name in ("name", "vram_total", "vram_free")}
    return {"seconds": taken, "device": memory}


def _run(server: Server, prompt: dict[str, Any], checkpoint: str, seed: int) -> float:
    for node in prompt.values():
        given = node["inputs"]
        if node["class_type"] == "MMaDAParallelLoader":
            given["checkpoint"] = checkpoint
        if node["class_type"] == "MMaDAParallelDenoise":
            given |= {"seed": seed, "text_steps": STEPS, "image_steps": STEPS // 2}
    began = time.perf_counter()
    result = server.run(prompt, timeout=500)
    status = result.history["status"]
    if status["status_str"] != "success":
        raise RuntimeError(str(status["messages"][-1])[:500])
    return time.perf_counter() - began


def measure_comfyui(report: Report, checkpoints: dict[str, Path], args: Namespace) -> None:
    host, cpu = Host("current", args.comfyui.expanduser().resolve()), ("--cpu",)
    reserved = "0"
    if not args.tiny:
        total = torch.cuda.get_device_properties(0).total_memory / 2**30
        reserved = f"{max(0.0, total - args.budget):.1f}"
    capped, classic = ("--reserve-vram", reserved), ("--disable-dynamic-vram",)
    situations = {"whole": (), "capped": capped, "classic, capped": (*capped, *classic)}
    for kind, path in checkpoints.items():
        for name, options in situations.items():
            given = (*options, *(cpu if args.tiny else ()))
            report.part(f"comfyui, {kind}, {name}", 60, partial(edit, host, given, path))


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("piece", choices=["core", "training", "comfyui"])
    parser.add_argument("--comfyui", type=Path, default=Path("~/comfy/ComfyUI"))
    parser.add_argument("--budget", type=float, default=12.0, help="GB of a capped card")
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args()
    device = torch.device("cpu" if args.tiny else "cuda:0")
    report = Report(args.out, time.monotonic() + 60 * args.minutes)
    report.results |= {"device": name_of(device), "torch": torch.__version__}
    if args.piece == "core":
        gpu.measure_all(report, gpu.SMALL if args.tiny else gpu.FULL, device, None)
    else:
        with tempfile.TemporaryDirectory() as place:
            made = write_random(Path(place, "bf16"), TINY if args.tiny else SIZES, device)
            packed = Path(place, "int8.safetensors")
            convert(made, packed, quantize="int8")
            checkpoints = {"bf16": made, "int8": packed}
            if args.piece == "training":
                measure_training(report, checkpoints, device)
            else:
                measure_comfyui(report, checkpoints, args)
    report.save()
    print(json.dumps(report.results, indent=1))


if __name__ == "__main__":
    main()
