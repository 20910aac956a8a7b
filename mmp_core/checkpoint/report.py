"""What a checkpoint is, in words: for the command ``check`` and the loader's log."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ..model.quantised import formats_of
from ..state import MASKED, TokenState
from ..variants.base import Layout
from ..variants.registry import BACKBONE
from ..variants.strangers import ASSUMED, STATED
from .source import Source, assumption
from .tensors import outline_of

if TYPE_CHECKING:
    from .load import Model

_TAIL = 6


@dataclass(frozen=True)
class Report:
    """``family_known``: how the family is known. ``dtype``: of most weights, by bytes;
    ``quantized``: names of formats. ``rows``: of the embedding. ``special_ids``: of the layout, by
    name. ``image_codes``: number of them. ``image_tokenizer``: its kind and shape.
    ``template_tail``: the last tokens of an encoded instruction. ``licence``: of the weights.
    ``odd``: sentences."""

    path: str
    family: str
    family_id: str
    family_known: str
    dtype: str
    quantized: list[str]
    rows: int
    special_ids: dict[str, int]
    image_offset: int
    image_codes: int
    image_tokenizer: str
    template_tail: list[str]
    licence: str
    odd: list[str]

    def lines(self) -> list[str]:
        known = f"family: {self.family} ({self.family_known})"
        if self.family_known == ASSUMED:
            known = f"family assumed: {self.family_id} ({self.family})"
        end = self.image_offset + self.image_codes - 1
        return [
            known,
            f"weights: {self.dtype}" + "".join(f", {name}" for name in self.quantized),
            f"embedding: {self.rows} rows",
            "special ids: " + ", ".join(f"{k} {v}" for k, v in self.special_ids.items()),
            f"image codes: ids {self.image_offset} to {end}",
            f"image tokenizer: {self.image_tokenizer}",
            "an instruction ends: " + " ".join(self.template_tail),
            f"licence: {self.licence}",
            *(f"odd: {sentence}" for sentence in self.odd),
        ]


def report_of(source: Source, model: Model) -> Report:
    layout, dtypes = model.layout, _bytes_by_dtype(source)
    tokenizer = model.image_tokenizer
    return Report(
        path=str(source.path),
        family=source.variant.name,
        family_id=source.variant.id,
        family_known=source.evidence,
        dtype=max(dtypes, key=lambda name: dtypes[name]),
        quantized=sorted({form.name for form in formats_of(source.weights).values()}),
        rows=outline_of(source.weights, BACKBONE).shape[0],
        special_ids=_special_ids(layout),
        image_offset=layout.image_offset,
        image_codes=layout.codebook_size,
        image_tokenizer=f"{type(tokenizer).__name__}, {tokenizer.codebook_size} codes of "
        f"{tokenizer.vector_width} numbers, {tokenizer.downsample} pixels a side",
        template_tail=_template_tail(model),
        licence=_licence(source),
        odd=_odd(source, layout, dtypes),
    )


def _licence(source: Source) -> str:
    if source.licences:
        return ", ".join(f"{licence} ({place})" for place, licence in source.licences.items())
    variant = source.variant
    if source.evidence == STATED or variant.licence is None:
        return "not stated"
    also = "" if variant.image_repository is None else f"; see also {variant.image_repository}"
    return f"not stated in the files; {variant.licence} by the page of {variant.repository}{also}"


def _special_ids(layout: Layout) -> dict[str, int]:
    return {
        name: value
        for name, value in sorted(vars(layout).items())
        if type(value) is int and name not in ("image_offset", "codebook_size")
    }


def _template_tail(model: Model) -> list[str]:
    answer = TokenState(torch.full((1, 1), MASKED), torch.full((1, 1, 1), MASKED))
    ids = model.layout.encode("make it red", None, answer).instruction[0, -_TAIL:].tolist()
    tokens = model.tokenizer.convert_ids_to_tokens(ids)
    return [f"{token} ({i})" for token, i in zip(tokens, ids, strict=True)]


def _bytes_by_dtype(source: Source) -> Counter[str]:
    sizes: Counter[str] = Counter()
    for name in source.weights:
        outline = outline_of(source.weights, name)
        sizes[str(outline.dtype).removeprefix("torch.")] += outline.bytes
    return sizes


def _odd(source: Source, layout: Layout, dtypes: Counter[str]) -> list[str]:
    sentences = []
    if doubt := source.doubt or assumption(source):
        sentences.append(doubt)
    rows = outline_of(source.weights, BACKBONE).shape[0]
    said = source.config.get("vocab_size")
    if said not in (None, rows):
        sentences.append(f"config.json has vocab_size {said}, the embedding {rows} rows.")
    if (vocabulary := len(source.tokenizer)) > layout.image_offset:
        sentences.append(
            f"the tokenizer has {vocabulary} tokens, image codes start at {layout.image_offset}."
        )
    plain = [name for name in dtypes if name.startswith("float8")]
    if plain and not formats_of(source.weights):
        sentences.append("weights are plain float8 without scales: they are computed in bfloat16.")
    return sentences
