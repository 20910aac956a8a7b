"""What quantising costs the demo checkpoint: agreement on the same held-out tasks.

``python -m mmada_parallel.benchmarks.quantised [--cases 250]`` prints JSON, with the 95 % interval
of the difference to the checkpoint as it is. Weights are quantised and dequantised again, which is
what is computed with; 4-bit layouts are those of ``comfy_kitchen``, which comes with ComfyUI.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable

import torch
from mmada_parallel.benchmarks.measure import parser_of
from mmada_parallel.demo.evaluate import answer, held_out
from mmada_parallel.mmp_core import Model, SamplerSettings, load_checkpoint
from mmada_parallel.mmp_core.model.formats import FORMATS
from mmada_parallel.mmp_core.model.lora import adaptable_layers
from mmada_parallel.mmp_core.model.quantised import WeightOnlyLinear
from torch import Tensor

ENDS = {"embedding": "model.transformer.wte", "head": "model.transformer.ff_out"}
LAYOUTS = {
    "convrot_w4a4": "TensorCoreConvRotW4A4Layout",
    "asym_w4a8_int8": "AsymW4A8Int8Layout",
}
VARIANTS = {
    "as stored": (None, ()),
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
    if form is None:
        return model
    layers = dict(adaptable_layers(model.transformer))
    layers |= {ENDS[end]: model.transformer.get_submodule(ENDS[end]) for end in ends}
    for layer in layers.values():
        layer.weight.data.copy_(by_format(form)(layer.weight.data))
    return model


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--cases", type=int, default=250)
    parser.add_argument("--guidance", type=float, default=0.0, help="0 takes half the time")
    args = parser.parse_args()
    tasks, plain = held_out(args.cases), None
    settings = SamplerSettings(joint_guidance=args.guidance)
    for name, (form, ends) in VARIANTS.items():
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
