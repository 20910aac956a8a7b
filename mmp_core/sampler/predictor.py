"""What the model says about a state: the only place of the sampler that runs the transformer."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..model.finite import refuse_not_finite
from ..model.graphs import forward_of
from ..model.transformer import MaskedDiffusionTransformer
from ..state import TokenState
from ..variants.base import Layout, ModelInput
from .cache import BranchCache, Cache
from .plan import StepTargets


class Predictor:
    """Runs named branches of one prompt: the conditional sequence and its unconditional forms.
    ``branches``: template per branch; its text and image positions are overwritten by each state.
    ``cache``: what is computed anew of a branch; ``None`` computes all of it. ``operations``: FLOPs
    so far, of forwards and logits."""

    def __init__(
        self,
        transformer: MaskedDiffusionTransformer,
        layout: Layout,
        branches: Mapping[str, ModelInput],
        cache: Cache | None = None,
    ):
        self.transformer, self.layout, self.branches = transformer, layout, branches
        self.cache, self.forward = cache, forward_of(transformer)
        self.operations = 0.0
        self._finite: dict[str, Tensor] = {}
        self.branch_caches = {
            name: BranchCache(branch.ids.shape[0]) for name, branch in branches.items()
        }

    def ids(self, branch: str, state: TokenState) -> Tensor:
        """The model's input (B, L) for ``state`` in ``branch``."""
        template, layout = self.branches[branch], self.layout
        image = layout.image_ids(state.image.flatten(1))
        text = layout.text_ids(state.text)
        ids = template.ids.scatter(1, template.image_positions.expand_as(image), image)
        ids = ids.scatter(1, template.text_positions.expand_as(text), text)
        return ids if template.fixed is None else torch.where(template.fixed, template.ids, ids)

    def hidden(self, branch: str, state: TokenState, targets: StepTargets | None) -> Tensor:
        """Normed hidden states (B, L, d_model)."""
        ids, positions = self.ids(branch, state), None
        if self.cache and targets:
            cache = self.branch_caches[branch]
            positions = self.cache.positions(branch, self.branches[branch], cache, ids, targets)
            hidden = cache.renew(self.transformer, ids, positions)
        else:
            hidden = self.forward(ids)
        batch, length = ids.shape
        queries = length if positions is None else positions.shape[1]
        self.operations += batch * self.transformer.config.forward_flop(queries, length)
        return hidden

    def count_logits(self, index: Tensor, choices: slice, branches: int = 1) -> None:
        """Add the FLOPs of the logits of ``choices`` at ``index``, by so many branches."""
        config = self.transformer.config
        rows = branches * index.numel() * len(range(*choices.indices(config.embedding_size)))
        self.operations += 2.0 * rows * config.d_model

    def watch(self, branch: str, hidden: Tensor, state: TokenState) -> None:
        """Note whether ``hidden`` is finite; look at it in a branch's first step alone, since that
        waits for the GPU. Raises ``NotFinite``."""
        finite, before = hidden.isfinite().all(), self._finite.get(branch)
        self._finite[branch] = finite if before is None else finite & before
        if before is None and not finite:
            refuse_not_finite(self.transformer, self.ids(branch, state))

    def check_finite(self, state: TokenState) -> None:
        """Raise ``NotFinite`` if the hidden states of any step were not finite; ``state``: the last
        that was seen."""
        for branch, finite in self._finite.items():
            if not finite:
                refuse_not_finite(self.transformer, self.ids(branch, state))


class BranchOutputs:
    """One state as seen by the model. Each branch is run at most once, when first asked for.
    ``targets``: all that will be asked; without it anything may be."""

    def __init__(self, predictor: Predictor, state: TokenState, targets: StepTargets | None = None):
        self.predictor, self.state, self.targets = predictor, state, targets
        self._hidden: dict[str, Tensor] = {}

    def text_logits(self, branch: str, index: Tensor, choices: slice) -> Tensor:
        """(B, n, choices) at text positions ``index`` (B, n)."""
        hidden = self.text_hidden(branch, index)
        self.predictor.count_logits(index, choices)
        return self.predictor.transformer.logits(hidden, choices)

    def text_hidden(self, branch: str, index: Tensor) -> Tensor:
        """Normed hidden states (B, n, d_model) at text positions ``index`` (B, n)."""
        return self._hidden_at(branch, self.predictor.branches[branch].text_positions[index])

    def image_logits(self, branch: str, index: Tensor) -> Tensor:
        """(B, n, codebook_size) at image positions ``index`` (B, n), raster order."""
        choices = self.predictor.layout.image_choices
        positions = self.predictor.branches[branch].image_positions
        hidden = self._hidden_at(branch, positions[index])
        self.predictor.count_logits(index, choices)
        return self.predictor.transformer.logits(hidden, choices)

    def _hidden_at(self, branch: str, positions: Tensor) -> Tensor:
        if branch not in self._hidden:
            self._hidden[branch] = self.predictor.hidden(branch, self.state, self.targets)
        hidden = self._hidden[branch]
        hidden = hidden.gather(1, positions[..., None].expand(-1, -1, hidden.shape[-1]))
        self.predictor.watch(branch, hidden, self.state)
        return hidden
