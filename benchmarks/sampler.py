"""Our sampler against the reference implementation: same weights, same inputs, same seed.

``python -m mmada_parallel.benchmarks.sampler --reference PATH [--preset small|mid] [--repeats 3]``
prints JSON: both medians, their ratio, and whether the tokens agree. ``PATH``: a checkout of
tyfeld/MMaDA-Parallel (its variant A is run as it is, with random weights of the preset's size).
``--parts`` times under PyTorch's profiler and adds the seconds of parts, and as *bound* the ratio
if of our run nothing but matrix products and attention took time, which the same tokens need.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import torch
from mmada_parallel.benchmarks.measure import name_of, parser_of, synchronise
from mmada_parallel.benchmarks.shapes import RandomModel
from mmada_parallel.mmp_core import SamplerSettings, denoise
from mmada_parallel.mmp_core.state import Prompt, Trajectory
from mmada_parallel.mmp_core.variants.mmada_parallel_a import LayoutA
from torch.profiler import ProfilerActivity, profile

PRESETS = {
    "small": {
        "d_model": 128,
        "n_layers": 2,
        "n_heads": 4,
        "mlp_hidden_size": 384,
        "grid": 8,
        "text": 32,
        "steps": 8,
    },
    "mid": {
        "d_model": 512,
        "n_layers": 8,
        "n_heads": 8,
        "mlp_hidden_size": 1536,
        "grid": 32,
        "text": 256,
        "steps": 16,
    },
}
GUIDANCE = {
    "cfg 0/4": {"text_guidance": 0.0, "image_guidance": 4.0, "text_temperature": 0.0},
    "cfg 2.5/4, text temperature 0.7": {
        "text_guidance": 2.5,
        "image_guidance": 4.0,
        "text_temperature": 0.7,
    },
}
PARTS = {
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm"),
    "attention": ("aten::_scaled_dot_product_flash_attention_for_cpu",),
}
"""Operations of PyTorch that are the parts of a run."""
Result = TypeVar("Result")


def reference_modules(path: Path) -> SimpleNamespace:
    """The released variant A, imported from a checkout."""
    folder = path / "MMaDA-Parallel-A"
    if not (folder / "generators" / "parallel_generator.py").is_file():
        raise SystemExit(f"{path} is no checkout of MMaDA-Parallel: it has no MMaDA-Parallel-A.")
    sys.path.insert(0, str(folder))
    with contextlib.redirect_stdout(io.StringIO()):
        model = importlib.import_module("model")
        config = importlib.import_module("model.configuration_llada").LLaDAConfig
        generator = importlib.import_module("generators.parallel_generator")
        backbone = importlib.import_module("model.modeling_llada")
    return SimpleNamespace(
        model=model.LLaDAForMultiModalGeneration,
        config=config,
        generate=generator.generate_ti2ti,
        backbone=backbone.LLaDAModel,
        backbone_config=backbone.create_model_config_from_pretrained_config,
    )


def ours(preset: dict[str, Any], device: torch.device) -> RandomModel:
    sizes = {name: preset[name] for name in ("d_model", "n_layers", "n_heads", "mlp_hidden_size")}
    sizes["n_kv_heads"] = sizes["n_heads"]
    return RandomModel.of(sizes, device, torch.float32, std=0.05)


def theirs(reference: SimpleNamespace, model: RandomModel) -> torch.nn.Module:
    """The reference model with our weights, which the two share."""
    c = model.transformer.config
    config = reference.config(
        d_model=c.d_model,
        n_layers=c.n_layers,
        n_heads=c.n_heads,
        n_kv_heads=c.n_kv_heads,
        mlp_hidden_size=c.mlp_hidden_size,
        vocab_size=c.embedding_size,
        embedding_size=c.embedding_size,
        rope_theta=c.rope_theta,
        rms_norm_eps=c.rms_norm_eps,
        activation_type="silu",
        block_type="llama",
        layer_norm_type="rms",
        rope=True,
        include_bias=False,
        include_qkv_bias=False,
        weight_tying=False,
        alibi=False,
        attention_layer_norm=False,
        input_emb_norm=False,
        scale_logits=False,
        rope_full_precision=True,
        max_sequence_length=4096,
        mask_token_id=c.mask_token_id,
        attention_dropout=0.0,
        embedding_dropout=0.0,
        residual_dropout=0.0,
        init_device="meta",
    )
    with contextlib.redirect_stdout(io.StringIO()):
        backbone = reference.backbone(reference.backbone_config(config), init_params=False)
        built = reference.model(config, model=backbone)
    built.load_state_dict(model.transformer.state_dict(), assign=True)
    return built.eval()


def run_reference(
    reference: SimpleNamespace,
    model: torch.nn.Module,
    layout: LayoutA,
    prompt: Prompt,
    settings: SamplerSettings,
) -> tuple[list[int], list[int]]:
    """Image tokens and text tokens."""
    sequence = layout.model_input(prompt, prompt.initial)
    start, (side, _) = int(sequence.image_positions[0]), prompt.initial.grid
    text_start, text = int(sequence.text_positions[0]), prompt.initial.text.shape[1]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        return reference.generate(
            model,
            sequence.ids,
            text_start,
            text_start + text,
            start,
            side * side,
            side,
            text_steps=settings.text_steps,
            text_gen_length=text,
            timesteps=settings.image_steps,
            temperature=settings.image_temperature,
            text_temperature=settings.text_temperature,
            cfg_scale=settings.text_guidance,
            cfg_img=settings.image_guidance,
            uncon_text=layout.prefix(prompt, drop_text=True, drop_image=False),
            uncon_image=layout.prefix(prompt, drop_text=False, drop_image=True),
            generator=torch.Generator(sequence.ids.device).manual_seed(settings.seed),
        )


def timed(run: Callable[[], Result]) -> tuple[float, Result]:
    torch.manual_seed(0)  # the reference fills its last code from the global generator
    synchronise()
    began = time.perf_counter()
    results = run()
    synchronise()
    return time.perf_counter() - began, results


def timed_in_parts(run: Callable[[], Result]) -> tuple[dict[str, float], float, Result]:
    """As :func:`timed`, with the seconds inside operations of each of :data:`PARTS`, inside others,
    and outside of operations."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        seconds, results = timed(run)
    inside = dict.fromkeys((*PARTS, "other operations"), 0.0)
    for event in profiler.key_averages():
        part = next((p for p, names in PARTS.items() if event.key in names), "other operations")
        inside[part] += event.self_cpu_time_total / 1e6
    return inside | {"outside of operations": seconds - sum(inside.values())}, seconds, results


def compare(
    reference: SimpleNamespace,
    preset: dict[str, Any],
    guidance: dict[str, float],
    device: torch.device,
    *,
    repeats: int,
    in_parts: bool,
) -> dict[str, Any]:
    model = ours(preset, device)
    prompt = model.prompt(preset["grid"], preset["text"])
    other = theirs(reference, model)
    settings = SamplerSettings.upstream(
        "A", text_steps=preset["steps"], image_steps=preset["steps"] // 2, seed=42, **guidance
    )

    def run_theirs() -> tuple[list[int], list[int]]:
        return run_reference(reference, other, model.layout, prompt, settings)

    def run_ours() -> Trajectory:
        return denoise(model, prompt, settings, record=0)

    times: dict[str, list[float]] = {"reference": [], "ours": []}
    parts: dict[str, dict[str, float]] = {}
    agree = True
    for _ in range(repeats):
        if in_parts:
            parts["reference"], seconds, (image, text) = timed_in_parts(run_theirs)
            times["reference"].append(seconds)
            parts["ours"], seconds, run = timed_in_parts(run_ours)
        else:
            seconds, (image, text) = timed(run_theirs)
            times["reference"].append(seconds)
            seconds, run = timed(run_ours)
        times["ours"].append(seconds)
        words = [token for token in run.final.text[0].tolist() if token >= 0]
        agree &= run.final.image.flatten().tolist() == image and words == list(text)
    medians = {name: statistics.median(taken) for name, taken in times.items()}
    results = {
        "reference_seconds": medians["reference"],
        "ours_seconds": medians["ours"],
        "ratio": medians["reference"] / medians["ours"],
        "tokens_agree": agree,
        "seconds": times,
    }
    if parts:
        results["parts_of_last"] = parts
        results["bound"] = times["reference"][-1] / sum(parts["ours"][part] for part in PARTS)
    return results


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--reference", type=Path, required=True, metavar="PATH")
    parser.add_argument("--preset", choices=tuple(PRESETS), default="mid")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--parts", action="store_true", help="time under the profiler")
    args = parser.parse_args()
    device, preset = torch.device(args.device), PRESETS[args.preset]
    reference = reference_modules(args.reference.expanduser().resolve())
    results = {
        "preset": {args.preset: preset},
        "device": name_of(device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "settings": {
            name: compare(
                reference, preset, guidance, device, repeats=args.repeats, in_parts=args.parts
            )
            for name, guidance in GUIDANCE.items()
        },
    }
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
