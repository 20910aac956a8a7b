"""The inverse of ``Layout.model_input``: prompt and state of ids, by each family's segments."""

import math

import torch
from mmada_parallel.mmp_core.state import MASKED, Prompt, TokenState

ANSWER_LEAD = {"A": 2, "M": 1}
"""Ids of the answer before its first image code."""


def answer_of(variant, sequence):
    """(B, n) ids of the answer; all before it is the prefix that guidance replaces."""
    return sequence.ids[:, sequence.image_positions[0] - ANSWER_LEAD[variant] :]


def parse(layout, variant, ids, **grids):
    """Prompt and state of ids (B, L). ``grids``: for variant M, whose ids do not tell them."""
    return {"A": _parse_a, "M": _parse_m}[variant](layout, ids, **grids)


def _parse_a(layout, ids):
    pairs = (ids[0, :-1] == layout.answer) & (ids[0, 1:] == layout.boi)
    start = int(pairs.nonzero()[-1])  # an instruction may hold either token, too
    assert ids[0, -1] == layout.answer_end
    end = start + 2 + _next(ids[0, start + 2 :], layout.eoi)
    state = TokenState(
        _tokens(layout, ids[:, end + 1 : -1]), _rows(layout, ids[:, start + 2 : end])
    )
    prefix, image = ids[:, :start], None
    if prefix[0, -2] == layout.eoi:
        first = int((prefix[0] == layout.boi).nonzero()[-1])
        image = _rows(layout, prefix[:, first + 1 : -2])
        prefix = torch.cat((prefix[:, :first], prefix[:, -1:]), dim=1)
    unconditional = layout.encode("", image, state).unconditional
    return Prompt(prefix, unconditional.to(ids.device), image, state), state


def _parse_m(layout, ids, grid=None, input_grid=None):
    first = ids[0]
    assert first[0] in (layout.edit_tag, layout.generate_tag)
    assert first[1] == layout.soi
    input_end = 2 + _next(first[2:], layout.eoi)
    start = input_end + _next(first[input_end:], layout.soi)
    end = start + _next(first[start:], layout.eoi)
    assert first[end + 1] == layout.bos
    state = TokenState(
        _tokens(layout, ids[:, end + 2 :]), _squarest(layout, ids[:, start + 1 : end], grid)
    )
    instruction, image = ids[:, input_end + 1 : start], None
    if ids[:, 2:input_end].any():
        image = _squarest(layout, ids[:, 2:input_end], input_grid)
    unconditional = torch.full_like(instruction, layout.eos)
    unconditional[:, 0] = layout.bos
    return Prompt(instruction, unconditional, image, state), state


def _next(ids, token):
    return int((ids == token).nonzero()[0])


def _tokens(layout, ids):
    return torch.where(ids == layout.mask_id, MASKED, ids)


def _codes(layout, ids):
    return torch.where(ids == layout.mask_id, MASKED, ids - layout.image_offset)


def _rows(layout, ids):
    """(B, H, W) codes of rows that each end in a newline."""
    width = _next(ids[0], layout.newline)
    return _codes(layout, ids.unflatten(1, (-1, width + 1))[:, :, :-1])


def _squarest(layout, ids, grid):
    """(B, H, W) codes; without a grid the squarest, never higher than wide."""
    count = ids.shape[1]
    height = next(h for h in range(math.isqrt(count), 0, -1) if count % h == 0)
    return _codes(layout, ids).unflatten(1, grid or (height, count // height))
