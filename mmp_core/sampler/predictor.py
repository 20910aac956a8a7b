"""What the model says about a state: the only place of the sampler that runs the transformer."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..layout.base import Layout, Sequence
from ..state import MASKED, TokenState
from ..transformer import MaskedDiffusionTransformer


class Predictor:
    """Runs named branches of one prompt: the conditional sequence and its unconditional forms.

    ``branches``: template per branch; its text and image positions are overwritten by each state.
    """

    def __init__(
        self,
        transformer: MaskedDiffusionTransformer,
        layout: Layout,
        branches: Mapping[str, Sequence],
    ):
        self.transformer, self.layout, self.branches = transformer, layout, branches

    def of(self, state: TokenState) -> View:
        return View(self, state)

    def ids(self, branch: str, state: TokenState) -> Tensor:
        """The model's input (B, L) for ``state`` in ``branch``."""
        sequence, mask_id = self.branches[branch], self.layout.mask_id
        codes = state.image.flatten(1)
        image = torch.where(codes == MASKED, mask_id, codes + self.layout.image_offset)
        text = torch.where(state.text == MASKED, mask_id, state.text)
        ids = sequence.ids.index_copy(1, sequence.image_positions, image)
        return ids.index_copy(1, sequence.text_positions, text)

    def hidden(self, branch: str, state: TokenState) -> Tensor:
        """Normed hidden states (B, L, d_model)."""
        return self.transformer(self.ids(branch, state))


class View:
    """One state as seen by the model. Each branch is run at most once, when first asked for."""

    def __init__(self, predictor: Predictor, state: TokenState):
        self.predictor, self.state = predictor, state
        self._hidden: dict[str, Tensor] = {}

    def text_logits(self, branch: str, index: Tensor, choices: slice) -> Tensor:
        """(B, n, choices) at text positions ``index`` (B, n)."""
        positions = self.predictor.branches[branch].text_positions
        return self._logits(branch, positions[index], choices)

    def image_logits(self, branch: str, index: Tensor) -> Tensor:
        """(B, n, codebook_size) at image positions ``index`` (B, n), raster order."""
        layout = self.predictor.layout
        choices = slice(layout.image_offset, layout.image_offset + layout.codebook_size)
        positions = self.predictor.branches[branch].image_positions
        return self._logits(branch, positions[index], choices)

    def _logits(self, branch: str, positions: Tensor, choices: slice) -> Tensor:
        if branch not in self._hidden:
            self._hidden[branch] = self.predictor.hidden(branch, self.state)
        hidden = self._hidden[branch]
        rows = hidden.gather(1, positions[..., None].expand(-1, -1, hidden.shape[-1]))
        return self.predictor.transformer.logits(rows, choices)
