"""Published accelerations of masked diffusion, as policies of this sampler.

Written from the papers for text and picture in one sequence, one sample at a time: ML-Cache
(Lumina-DiMOO, arXiv 2510.06308), dLLM-Cache (2506.06295), Fast-dLLM (2505.22618) and the acceptance
rule of SPRINT (LLaDA2.0-Uni, 2604.20796). ``benchmarks/peers.py`` runs them.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from mmada_parallel.mmp_core import SamplerSettings
from mmada_parallel.mmp_core.model.rotary import rotary_table, rotate
from mmada_parallel.mmp_core.model.transformer import Block, KeyValueCache
from mmada_parallel.mmp_core.model.transformer import MaskedDiffusionTransformer as Transformer
from mmada_parallel.mmp_core.sampler.cache import BranchCache, as_positions, prompt_length
from mmada_parallel.mmp_core.sampler.ml_cache import MLCache
from mmada_parallel.mmp_core.sampler.plan import Plan, StepTargets, Targets
from mmada_parallel.mmp_core.sampler.positions import Generators, MaskedPositions
from mmada_parallel.mmp_core.sampler.schedule import PlannedStep
from mmada_parallel.mmp_core.sampler.selection import CorrectedSelection
from mmada_parallel.mmp_core.state import MASKED, Step
from mmada_parallel.mmp_core.variants.base import ModelInput
from torch import Tensor


def answer_positions(model_input: ModelInput) -> Tensor:
    """(n,) positions from the first text or image token of the answer to the end."""
    ids = model_input.ids
    return torch.arange(prompt_length(model_input), ids.shape[1], device=ids.device)


class PrefixCache:
    """Keys and values of everything before the answer are computed once (prefix cache of Fast-dLLM
    with the whole answer as one block; prefix reuse of SPRINT, without its pruning)."""

    def positions(
        self,
        branch: str,
        model_input: ModelInput,
        cache: BranchCache,
        ids: Tensor,
        targets: StepTargets,
    ) -> Tensor | None:
        return None if cache.ids is None else answer_positions(model_input)[None]


@dataclass
class JointMLCache:
    """ML-Cache for text and picture: the share ``reused`` of the positions with the highest largest
    logit keeps what it had. Text is ranked by the logits of words, everything else by those of
    image codes, as the authors do. ``last``: step at which each branch was run."""

    rule: MLCache
    text_choices: slice
    last: dict[str, int] = field(default_factory=dict)

    def positions(
        self,
        branch: str,
        model_input: ModelInput,
        cache: BranchCache,
        ids: Tensor,
        targets: StepTargets,
    ) -> Tensor | None:
        step, before = targets.last.index + 1, self.last.get(branch, -1)
        self.last[branch] = step
        if cache.hidden is None or any(map(self.rule.computes_all, range(before + 1, step + 1))):
            return None
        hidden, text = cache.hidden[0, :-1], model_input.text_positions
        is_text = torch.zeros(len(hidden), dtype=torch.bool).index_fill_(0, text, True)
        wanted = torch.zeros_like(is_text)
        for part, choices in ((is_text, self.text_choices), (~is_text, self.rule.choices)):
            peaks = Transformer.logits(self.rule.transformer, hidden[part], choices).amax(dim=-1)
            wanted[part] = peaks <= torch.quantile(peaks, 1 - self.rule.reused)
        return as_positions(wanted[None], int(wanted.sum()))


class FeatureCache(KeyValueCache):
    """What dLLM-Cache keeps of every block: keys, values (1, heads, L, head_dim), and the outputs
    of attention and feed-forward layer (1, L, d_model). ``share``: of the answer's positions that
    the next forward computes, those whose values changed most."""

    def __init__(self) -> None:
        super().__init__()
        self.features: dict[int, list[Tensor]] = {}
        self.share = 1.0


@dataclass
class DLLMCache:
    """Computes the prompt at every ``prompt_every``-th forward of a branch, the answer at every
    ``answer_every``-th, and else ``share`` of the answer, chosen layer by layer. Needs
    :class:`LayerwiseTransformer`."""

    answer_every: int
    prompt_every: int = 50
    share: float = 0.25
    forwards: dict[str, int] = field(default_factory=dict)

    def positions(
        self,
        branch: str,
        model_input: ModelInput,
        cache: BranchCache,
        ids: Tensor,
        targets: StepTargets,
    ) -> Tensor | None:
        count = self.forwards.get(branch, 0)
        self.forwards[branch] = count + 1
        if not count:
            cache.keys_values = FeatureCache()
        assert isinstance(cache.keys_values, FeatureCache)
        cache.keys_values.share = 1.0 if count % self.answer_every == 0 else self.share
        return answer_positions(model_input)[None] if count % self.prompt_every else None


class LayerwiseTransformer(Transformer):
    """A transformer that chooses in each layer which of the given positions it computes there.
    ``not_done``: FLOPs of a forward of all given positions that were not done."""

    not_done: float

    @classmethod
    def of(cls, transformer: Transformer) -> LayerwiseTransformer:
        """One that shares the weights of ``transformer``."""
        shared: Any = copy.copy(transformer)
        shared.__class__, shared.not_done = cls, 0.0
        return shared

    def forward(
        self, ids: Tensor, *, cache: KeyValueCache | None = None, positions: Tensor | None = None
    ) -> Tensor:
        if not isinstance(cache, FeatureCache):
            return super().forward(ids, cache=cache, positions=positions)
        length, config = ids.shape[1], self.config
        rows = torch.arange(length, device=ids.device) if positions is None else positions[0]
        table = rotary_table(length, config.head_dim, config.rope_theta, ids.device)
        x = self.layers["wte"](ids[:, rows])
        count = len(rows) if positions is None else math.ceil(cache.share * len(rows))
        for index, block in enumerate(self.blocks):
            if index not in cache.features:
                cache.features[index] = _empty_features(block, length, x)
            x = _layer(block, x, rows, count, table.to(x.dtype), cache.features[index])
        others = len(rows) - count
        values = 2.0 * config.n_layers * others * config.d_model * config.n_kv_heads
        done = config.forward_flop(count, length) + values * config.head_dim
        self.not_done += config.forward_flop(len(rows), length) - done
        return self.layers["ln_f"](x)


def _empty_features(block: Block, length: int, x: Tensor) -> list[Tensor]:
    head_dim = x.shape[-1] // block.heads
    per_head = x.new_zeros(1, block.kv_heads, length, head_dim)
    per_token = x.new_zeros(1, length, x.shape[-1])
    return [per_head, per_head.clone(), per_token, per_token.clone()]


def _layer(
    block: Block, x: Tensor, rows: Tensor, count: int, table: Tensor, features: list[Tensor]
) -> Tensor:
    """``block`` on ``x`` (1, n, d_model) at positions ``rows`` (n,), computed where its values
    differ most from those kept, at ``count`` of them; elsewhere with the outputs that were kept."""
    keys, values, attended, fed = features
    h = block.attn_norm(x)
    new = block.v_proj(h).unflatten(-1, (block.kv_heads, -1)).transpose(1, 2)
    if count < len(rows):
        kept = values[:, :, rows]
        alike = F.cosine_similarity(*(v.transpose(1, 2).flatten(2) for v in (new, kept)), dim=-1)
        chosen = alike[0].argsort(stable=True)[:count].sort().values
    else:
        chosen = torch.arange(len(rows), device=rows.device)
    at, h = rows[chosen], h[:, chosen]
    q = block.q_proj(h).unflatten(-1, (block.heads, -1)).transpose(1, 2)
    k = block.k_proj(h).unflatten(-1, (block.kv_heads, -1)).transpose(1, 2)
    q, keys[:, :, at], values[:, :, at] = (
        rotate(q, table[:, at]),
        rotate(k, table[:, at]),
        new[:, :, chosen],
    )
    repeats = block.heads // block.kv_heads
    every = (t.repeat_interleave(repeats, dim=1) if repeats > 1 else t for t in (keys, values))
    attended[:, at] = block.attn_out(block.attention(q, *every))
    x = x + attended[:, rows]
    h = block.ff_norm(x[:, chosen])
    fed[:, at] = block.ff_out(F.silu(block.ff_proj(h)) * block.up_proj(h))
    return x + fed[:, rows]


class ConfidencePlan(Plan):
    """No schedule: every step predicts all masked tokens and unmasks at least one of the text and
    one of the picture (Fast-dLLM). What else it unmasks is the selection's affair."""

    @classmethod
    def at_most(cls, steps: int) -> ConfidencePlan:
        return cls((PlannedStep(),) * steps, {})

    def targets(self, index: int, last: Step) -> StepTargets:
        text, image = (self._all(t.flatten(1)) for t in (last.after.text, last.after.image))
        if text:
            text = replace(text, count=torch.ones_like(text.count))
        if image:
            image = replace(image, count=(image.count - 1).clamp_min(0))
        return StepTargets(text, image, last, (None, None))

    def _all(self, tokens: Tensor) -> Targets | None:
        masked = (tokens == MASKED).sum(dim=1)
        if not masked.any():
            return None
        return Targets(MaskedPositions.of(tokens, None, masked), masked)


class FactorSelection(CorrectedSelection):
    """Unmasks the n surest tokens, n the largest with (n + 1)(1 - confidence of the n-th) below
    ``factor`` (Fast-dLLM, its factor rule)."""

    def __init__(self, settings: SamplerSettings, generators: Generators, factor: float):
        super().__init__(settings, generators)
        self.factor = factor

    def _early(self, positions: MaskedPositions, probability: Tensor) -> Tensor:
        sorted_, order = probability.masked_fill(~positions.valid, 0).sort(
            dim=1, descending=True, stable=True
        )
        rank = torch.arange(1, sorted_.shape[1] + 1, device=sorted_.device)
        below = (rank + 1) * (1 - sorted_) < self.factor
        count = (below * rank).amax(dim=1, keepdim=True)
        return positions.valid & (order.argsort(dim=1) < count)
