"""Bytes that a forward of the 8B model reads and writes, counted from the shapes of its operations.

``python -m mmada_parallel.benchmarks.traffic`` prints JSON, in GB per forward of one edit in
bfloat16. Nothing is computed: the tensors have shapes only. Attention itself is not counted; a norm
is counted by its parts, which newer PyTorch fuses on NVIDIA cards.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from mmada_parallel.benchmarks.shapes import RELEASED
from mmada_parallel.mmp_core.model.config import ModelConfig
from mmada_parallel.mmp_core.model.kernels.rotary import HEADS
from mmada_parallel.mmp_core.model.rotary import rotary_table, rotate
from mmada_parallel.mmp_core.model.transformer import Block, TorchOperations
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

LENGTH = 2434
"""Tokens of an edit at 512x512 with the released script's settings."""
_VIEWS = (
    "view",
    "transpose",
    "slice",
    "unsqueeze",
    "split",
    "select",
    "expand",
    "alias",
    "permute",
)
_META = torch.device("meta")


class Traffic(TorchDispatchMode):
    """Counts what each operation reads and writes: its arguments and its results, once each."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes: Counter[str] = Counter()

    def __torch_dispatch__(
        self, operation: Any, types: Any, arguments: tuple = (), options: dict | None = None
    ) -> Any:
        result = operation(*arguments, **(options or {}))
        name = str(operation).removeprefix("aten.").partition(".")[0]
        if name != "t" and not any(view in name for view in _VIEWS):
            tensors = tree_leaves((arguments, options, result))
            self.bytes[name] += sum(
                t.numel() * t.element_size() for t in tensors if isinstance(t, Tensor)
            )
        return result


def counted(run: Callable[[], Any]) -> Counter[str]:
    with Traffic() as traffic:
        run()
    return traffic.bytes


def rotation_by_kernel(config: ModelConfig, length: int, itemsize: int) -> int:
    """Bytes of the Triton kernel for queries and keys: each number read and written once, and the
    angles of a position once for so many heads."""
    heads = config.n_heads + config.n_kv_heads
    angles = -(-config.n_heads // HEADS) + -(-config.n_kv_heads // HEADS)
    return length * config.head_dim * (2 * itemsize * heads + 4 * angles)


def measure(config: ModelConfig, length: int) -> dict[str, Any]:
    """GB per forward: of matrix products, of all else, and of the rotation by how it is done."""

    def nothing(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return v.transpose(1, 2).flatten(2)

    dtype = torch.bfloat16
    block = Block(config, TorchOperations, nothing, dtype=dtype, device=_META)
    x = torch.empty(1, length, config.d_model, dtype=dtype, device=_META)
    table = rotary_table(length, config.head_dim, config.rope_theta, _META)
    queries = torch.empty(1, config.n_heads, length, config.head_dim, dtype=dtype, device=_META)
    keys = queries[:, : config.n_kv_heads]

    def total(bytes_per_block: float) -> float:
        return round(config.n_layers * bytes_per_block / 1e9, 1)

    with torch.no_grad():
        forward = counted(lambda: block(x, table))
        rotation = counted(lambda: (rotate(queries, table), rotate(keys, table)))
    with torch.enable_grad():
        before = counted(lambda: (rotate(queries, table), rotate(keys, table)))
    products = sum(size for name, size in forward.items() if name in ("mm", "bmm", "addmm"))
    kernel = rotation_by_kernel(config, length, dtype.itemsize)
    whole, by_torch = forward.total(), rotation.total()
    return {
        "tokens": length,
        "forward": {
            "torch": total(whole),
            "with the kernel": total(whole - by_torch + kernel),
            "torch, rotated as with gradients": total(whole - by_torch + before.total()),
        },
        "matrix products": total(products),
        "rotation": {
            "torch": total(by_torch),
            "kernel": total(kernel),
            "torch, with gradients": total(before.total()),
        },
        "by operation": {name: total(size) for name, size in forward.most_common()},
    }


def main() -> None:
    argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0]).parse_args()
    print(json.dumps(measure(ModelConfig(**RELEASED), LENGTH), indent=1))


if __name__ == "__main__":
    main()
