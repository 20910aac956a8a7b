"""CUDA graphs: a small model's forward as one launch instead of hundreds.

A forward of the 8B model keeps the GPU busy for longer than its launches take, and gains nothing;
a small one waits for them. ``torch.compile`` is not used: its fused norms and rotations round once
where eager ones round twice, so that bfloat16 tokens come out different, and it compiles for
minutes per length of prompt.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor, nn

from .quantised import WeightOnlyLinear
from .transformer import Block, MaskedDiffusionTransformer, RMSNorm, sdpa_attention

BUSY = 40e9
"""FLOP per block from which on launches are hidden: some 40 kernels of 1 GFLOP, 10 µs each."""

_PLAIN = (
    nn.Embedding,
    nn.Linear,
    nn.ModuleDict,
    nn.ModuleList,
    Block,
    MaskedDiffusionTransformer,
    RMSNorm,
    WeightOnlyLinear,
)
_log = logging.getLogger(__name__)

Run = Callable[[], Tensor]
Forward = Callable[[Tensor], Tensor]


def forward_of(transformer: MaskedDiffusionTransformer) -> Forward:
    """``transformer``, as graphs where nothing about it changes between calls: resident plain
    weights on a CUDA device, no hooks. For one run: weights may be moved after it."""
    return GraphedForward(transformer, capture) if is_static(transformer) else transformer


def is_static(transformer: MaskedDiffusionTransformer) -> bool:
    """Whether each call does the same with the same weights."""
    return is_resident(transformer) and all(
        type(module) in _PLAIN
        and not (module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))
        and getattr(module, "attention", sdpa_attention) is sdpa_attention
        for module in transformer.modules()
    )


def is_resident(transformer: MaskedDiffusionTransformer) -> bool:
    """Whether all weights are on one device of NVIDIA's: AMD's are called cuda, too, but capturing
    on them crashes some drivers."""
    first = transformer.layers["wte"].weight.device
    captures = first.type == "cuda" and torch.version.hip is None
    return captures and all(w.device == first for w in transformer.state_dict().values())


def capture(run: Run) -> Run:
    """``run`` recorded once. What is returned repeats it and returns the same tensor each time."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        output = run()

    def replay() -> Tensor:
        graph.replay()
        return output

    return replay


class GraphedForward:
    """Normed hidden states of ids (B, L), by one graph per shape from its second call on.
    ``capture`` makes a graph, see :func:`capture`. Shapes that keep the GPU busy, and those whose
    capture fails, run without."""

    def __init__(self, transformer: MaskedDiffusionTransformer, capture: Callable[[Run], Run]):
        self.transformer, self.capture = transformer, capture
        self._graphs: dict[torch.Size, tuple[Tensor, Run] | None] = {}
        self._warm: set[torch.Size] = set()

    def __call__(self, ids: Tensor) -> Tensor:
        shape = ids.shape
        busy = self.transformer.config.linear_flop(ids.numel()) >= BUSY
        if shape in self._warm and not busy and not torch.is_grad_enabled():
            if shape not in self._graphs:
                self._graphs[shape] = self._captured(ids.clone())
            if graph := self._graphs[shape]:
                static, replay = graph
                static.copy_(ids)
                return replay().clone()
        self._warm.add(shape)
        return self.transformer(ids)

    def _captured(self, static: Tensor) -> tuple[Tensor, Run] | None:
        try:
            return static, self.capture(lambda: self.transformer(static))
        except RuntimeError as problem:  # out of memory, too: without a graph it may fit
            _log.info("Forwards run without CUDA graphs (%s).", str(problem).partition("\n")[0])
            return None
