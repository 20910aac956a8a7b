"""What quantising costs the demo checkpoint: agreement on the same held-out tasks.

``python -m mmada_parallel.benchmarks.quantised [--cases 250] [--only VARIANT …]`` prints JSON, with
the 95 % interval of the difference to the checkpoint as it is. Weights are quantised and
dequantised again, which is what is computed with, but for *multiplied*, where inputs are rounded to
int8, too; 4-bit layouts are those of ``comfy_kitchen``, which comes with ComfyUI.
``--block`` prints instead what a block of the released widths takes in each way, on one CPU thread.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable

import torch
from mmada_parallel.benchmarks.gpu import quantise_linears
from mmada_parallel.benchmarks.measure import parser_of, seconds
from mmada_parallel.benchmarks.shapes import RELEASED
from mmada_parallel.demo.evaluate import answer, held_out
from mmada_parallel.mmp_core import Model, SamplerSettings, load_checkpoint
from mmada_parallel.mmp_core.checkpoint.load import multiply_as_int8
from mmada_parallel.mmp_core.model.config import ModelConfig
from mmada_parallel.mmp_core.model.formats import FORMATS
from mmada_parallel.mmp_core.model.lora import adaptable_layers
from mmada_parallel.mmp_core.model.quantised import WeightOnlyLinear
from mmada_parallel.mmp_core.model.rotary import rotary_table
from mmada_parallel.mmp_core.model.transformer import Block, TorchOperations, sdpa_attention
from torch import Tensor

ENDS = {"embedding": "model.transformer.wte", "head": "model.transformer.ff_out"}
LAYOUTS = {
    "convrot_w4a4": "TensorCoreConvRotW4A4Layout",
    "asym_w4a8_int8": "AsymW4A8Int8Layout",
}
MULTIPLIED = "int8, multiplied as int8"
TOKENS = 2434
VARIANTS = {
    "as stored": (None, ()),
    MULTIPLIED: (MULTIPLIED, ()),
    "int8": ("int8", ()),
    "int8, embedding and head": ("int8", ("embedding", "head")),
    "nvfp4": ("nvfp4", ()),
    **{name: (name, ()) for name in LAYOUTS},
    "fp8": ("fp8", ()),
    "fp8, embedding and head": ("fp8", ("embedding", "head")),
    "int8, embedding": ("int8", ("embedding",)),
}


def by_format(name: str) -> Callable[[Tensor], Tensor]:
    """A weight as it is computed with when stored in the format called ``name``."""
    if name in FORMATS:
        return lambda weight: WeightOnlyLinear.of(weight, FORMATS[name]).dequantised(weight.dtype)
    from comfy_kitchen.tensor import QuantizedTensor

    layout = LAYOUTS[name]
    return lambda weight: QuantizedTensor.from_float(weight.bfloat16(), layout).dequantize().float()


def quantised(form: str | None, ends: tuple[str, ...]) -> Model:
    model = load_checkpoint("demo", dtype=torch.float32)
    if form == MULTIPLIED:
        quantise_linears(model.transformer.layers["blocks"], FORMATS["int8"])
        multiply_as_int8(model.transformer, "the demo")
    if form in (None, MULTIPLIED):
        return model
    layers = dict(adaptable_layers(model.transformer))
    layers |= {ENDS[end]: model.transformer.get_submodule(ENDS[end]) for end in ends}
    for layer in layers.values():
        layer.weight.data.copy_(by_format(form)(layer.weight.data))
    return model


@torch.inference_mode()
def block_seconds(repeats: int = 3) -> dict[str, float]:
    """CPU seconds of a block of the released widths on the tokens of a 512×512 edit, by dtype and
    by how its linear layers are stored and multiplied."""
    config = ModelConfig.from_dict(RELEASED)
    table = rotary_table(TOKENS, config.head_dim, config.rope_theta, torch.device("cpu"))
    taken = {}
    for dtype in (torch.float32, torch.bfloat16):
        block = Block(config, TorchOperations, sdpa_attention, dtype=dtype)
        x = torch.randn(1, TOKENS, config.d_model).to(dtype)
        name = str(dtype).removeprefix("torch.")

        def run(block: Block = block, x: Tensor = x) -> Tensor:
            return block(x.clone(), table)

        taken[name] = seconds(run, repeats, time.process_time)
        quantise_linears(block, FORMATS["int8"])
        taken[f"{name}, int8 dequantised"] = seconds(run, repeats, time.process_time)
        multiply_as_int8(block, "the block")
        taken[f"{name}, {MULTIPLIED}"] = seconds(run, repeats, time.process_time)
    return taken


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--cases", type=int, default=250)
    parser.add_argument("--guidance", type=float, default=0.0, help="0 takes half the time")
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--block", action="store_true", help="time a block instead")
    args = parser.parse_args()
    if args.block:
        torch.set_num_threads(1)
        print(json.dumps(block_seconds()))
        return
    tasks, plain = held_out(args.cases), None
    settings = SamplerSettings(joint_guidance=args.guidance)
    for name in ("as stored", *(name for name in args.only if name != "as stored")):
        form, ends = VARIANTS[name]
        try:
            model = quantised(form, ends)
        except Exception as error:  # a layout that the installed comfy_kitchen lacks, or a shape
            print(json.dumps({"variant": name, "fails": str(error)[:200]}), flush=True)
            continue
        answers = answer(model, tasks, settings, seed=0, batch=25)
        agree = {one.number: float(one.verdict.agree and one.verdict.picture) for one in answers}
        values = torch.tensor([agree[i] for i in range(args.cases)])
        plain = values if plain is None else plain
        change = values - plain
        print(
            json.dumps(
                {
                    "variant": name,
                    "cases": args.cases,
                    "right_and_agreeing": round(values.mean().item(), 4),
                    "change": round(change.mean().item(), 4),
                    "interval": round(1.96 * change.std().item() / math.sqrt(args.cases), 4),
                }
            ),
            flush=True,
        )


if __name__ == "__main__":
    main()
