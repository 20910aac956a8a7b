"""Datasets for training: instructions and pictures on disk, to cases in tokens."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

from PIL import Image
from torch import Tensor

from ...mmp_core.checkpoint.load import Model
from ...mmp_core.editing import fixed_text
from ...mmp_core.errors import InputError, sentence, shown
from ...mmp_core.files import accessing, checked_path
from ...mmp_core.image.pictures import Size
from ...mmp_core.interruption import asking
from ...mmp_core.options import Option
from ...mmp_core.outside import (
    MOST_SAMPLES,
    MOST_TEXT,
    check_kind,
    check_model,
    checked_count,
    checked_text,
)
from ...mmp_core.pipeline import grid_of, seen_size
from ...mmp_core.state import TokenState
from ...mmp_core.variants.base import MASKED_TEXT, Variant
from ..cases import Case
from .codes import CodeCache, codes_fingerprint, encode_pictures, key_of
from .items import Counted, Item, Picture, UnreadItem, counted
from .settings import DataSettings
from .sources import KINDS, is_manifest
from .variations import changed_cells, described, image_weight, varied

BadItems = Literal["skip", "fail"]
_BAD_ITEMS = Option(str, "skip", "", choices=get_args(BadItems), name="bad_items")
Skipped = tuple[str, str]
"""Name of an item and why it cannot be used."""

_NAMED, _LISTED, _ALIKE = 3, 20, 3


@dataclass(frozen=True)
class EditDataset(Sequence[Item]):
    """Items in a fixed order, their pictures still on disk.

    ``place``: where they come from, for messages. ``skipped``: items that cannot be used.
    ``bad_items``: what becomes of those that turn out to be so when they are tokenised.
    ``options``: of the command that trains on the same; none where there are none that say it.
    """

    place: str
    items: tuple[Item, ...]
    skipped: tuple[Skipped, ...] = ()
    bad_items: BadItems = "skip"
    options: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]

    @property
    def fingerprint(self) -> str:
        """SHA-256, in hex, of every instruction, text and picture, wherever they are stored."""
        contents = [
            (i.name, i.instruction, i.think, *(p and p.digest for p in (i.image, i.target)))
            for i in self.items
        ]
        return hashlib.sha256(json.dumps(contents).encode()).hexdigest()

    def report(self, callback: Counted | None = None) -> str:
        """A few lines on the items and on those that were skipped, which ``callback`` counts."""
        edits = sum(item.image is not None for item in self.items)
        complete = sum(item.think is not None and item.target is not None for item in self.items)
        lines = [
            sentence(
                f"{self.place}: {len(self)} item(s), {edits} with a picture to edit, "
                f"{len(self) - edits} to generate; {complete} with reasoning and target, as SFT "
                "needs."
            )
        ]
        if self.skipped:
            lines.append(sentence(f"{len(self.skipped)} skipped:"))
            lines += [f"  {line}" for line in summed_up(self.skipped, _LISTED, callback)]
        return "\n".join(lines)


@accessing()
def open_dataset(
    path: str | Path,
    *,
    bad_items: BadItems = "skip",
    limit: int | None = None,
    settings: DataSettings | None = None,
    repeats: int = 1,
    callback: Callable[[int, int], None] | None = None,
) -> EditDataset:
    """The dataset at ``path``, every item read and checked once.

    ``path``: a folder of ``name.png`` (or .jpg, .jpeg, .webp) with its instruction in ``name.txt``,
    and for SFT the reasoning in ``name.think.txt``, the wanted picture in ``name.target.png`` and,
    if only a part of it matters, ``name.mask.png``; a ``name.txt`` alone is to be generated. Or a
    ``.jsonl`` manifest with a JSON object of ``image``, ``instruction``, ``think``, ``target`` and
    ``mask`` per line. Or a folder that ``save_to_disk`` of Hugging Face's datasets wrote, or one of
    parquet files, with these columns. Subfolders are not searched.

    Sorted by name, 2 before 10; manifests and saved datasets keep their order.
    ``bad_items``: what cannot be used is skipped and listed, or fatal. ``limit``: stop after so
    many usable items. ``settings``: in which forms each is used. ``repeats``: how often.
    ``callback(done, total)`` counts items read.

    Raises ``InputError`` where there is no dataset, none of its items can be used, or, with
    "fail", one of them cannot.
    """
    path = checked_path(path, "The dataset")
    _BAD_ITEMS.check(bad_items)
    limit = None if limit is None else checked_count(limit, "limit", 1, sys.maxsize)
    repeats = checked_count(repeats, "repeats", 1, sys.maxsize)
    check_kind(settings, DataSettings | None, "settings", "settings of the data")
    check_kind(callback, Callable | None, "callback", "a function")
    settings = settings or DataSettings()
    items, skipped = [], []
    unread = _unread_items(path, callback)
    for done, item in enumerate(unread):
        if len(items) == limit:
            break
        if callback:
            callback(done, len(unread))
        try:
            checked_text(item.name, "the name of its file", sys.maxsize)
            with asking(partial(callback, done, len(unread)) if callback else None):
                read = item.read()
            items.append(described(read) if settings.captions else read)
        except InputError as reason:
            skipped.append((item.name.encode(errors="replace").decode(), str(reason)))
    if callback:
        callback(len(unread), len(unread))
    _refuse(path.name, len(items), skipped, bad_items, callback)
    forms = varied(items, settings, repeats, callback)
    options = {
        "data": (f"{path.absolute()}={repeats}",),
        "cases": limit,
        "bad_items": bad_items,
        **asdict(settings),
    }
    return EditDataset(path.name, tuple(forms), tuple(skipped), bad_items, options)


def joined(datasets: Sequence[EditDataset], callback: Counted | None = None) -> EditDataset:
    """The items of several datasets as one; of more than one, named by their dataset, too.
    ``callback(done, total)`` counts the items of each now and then."""
    name, expected = "datasets", "a list of datasets"
    if not isinstance(datasets, list | tuple) or not datasets:
        raise InputError(f"{name} is {shown(datasets)}; expected {expected}.")
    for each in datasets:
        check_kind(each, EditDataset, name, expected)
    if len(datasets) == 1:
        return datasets[0]
    items = [replace(i, name=f"{d.place}/{i.name}") for d in datasets for i in counted(d, callback)]
    skipped = [(f"{d.place}/{name}", why) for d in datasets for name, why in d.skipped]
    fail = any(dataset.bad_items == "fail" for dataset in datasets)
    place = " + ".join(dataset.place for dataset in datasets)
    data = tuple(source for dataset in datasets for source in dataset.options.get("data", ()))
    rest = [{n: v for n, v in d.options.items() if n != "data"} for d in datasets]
    options = {**rest[0], "data": data} if all(each == rest[0] for each in rest) else {}
    return EditDataset(place, tuple(items), tuple(skipped), "fail" if fail else "skip", options)


def _unread_items(path: Path, callback: Counted | None) -> list[UnreadItem]:
    if path.is_dir() and not os.access(path, os.R_OK | os.X_OK):
        raise InputError(f"{path} cannot be read ({os.strerror(errno.EACCES)}).")
    kind = next((kind for kind in KINDS if kind.fits(path)), None)
    if kind is None:
        raise InputError(
            f"There is no dataset at {path}: give a folder of pictures and instructions, a .jsonl "
            "manifest, or a folder that save_to_disk of Hugging Face's datasets wrote."
        )
    items = kind.items(path, callback)
    if not items:
        raise InputError(f"{path} is empty: {_advice(path)}")
    return items


def _advice(path: Path) -> str:
    """What to do about a dataset without items."""
    if is_manifest(path):
        return sentence('write a line such as {"image": "a.png", "instruction": "…"}.')
    if not path.is_dir():
        return sentence("give one with rows.")
    inside = sorted(path.iterdir())
    for manifest in filter(is_manifest, inside):
        return sentence(f"did you mean its manifest {manifest.name}?")
    for folder in inside:
        if folder.is_dir() and not folder.name.startswith("."):
            return sentence(f"did you mean its subfolder {folder.name}?")
    return sentence("put name.png and its instruction, name.txt, there.")


def _refuse(
    place: str,
    usable: int,
    skipped: Sequence[Skipped],
    bad_items: BadItems,
    callback: Counted | None,
) -> None:
    """Raise ``InputError`` where nothing is left, or something is bad and that is fatal."""
    if usable and (bad_items == "skip" or not skipped):
        return
    many = (
        sentence(f"{len(skipped)} item(s) of {place} cannot be used.")
        if usable
        else sentence(f"No item of {place} can be used.")
    )
    raise InputError(" ".join([many, *summed_up(skipped, _NAMED, callback)]))


def summed_up(skipped: Sequence[Skipped], most: int, callback: Counted | None = None) -> list[str]:
    """At most ``most`` sentences on why items cannot be used, the commonest reason first; of more
    than three items with the same reason, one stands for all. The last sentence counts the rest."""
    groups: dict[tuple[str, str], list[Skipped]] = {}
    for name, reason in counted(skipped, callback):
        groups.setdefault(_kind_of(name, reason), []).append((name, reason))
    lines, rest = [], 0
    for same in sorted(groups.values(), key=len, reverse=True):
        together = len(same) > _ALIKE
        for name, reason in same[:1] if together else same:
            others = sentence(f"The same holds for {len(same) - 1} more.") if together else ""
            if len(lines) < most:
                lines.append(f"{name}: {reason} {others}".strip())
            else:
                rest += len(same) if together else 1
    return [*lines, sentence(f"And {rest} more.")] if rest else lines


def _kind_of(name: str, reason: str) -> tuple[str, str]:
    """Equal for reasons that differ in names, numbers and words of the item alone."""
    plain = re.sub(r"\d+", "0", reason.replace(name.rpartition("/")[2], ""))
    return plain.partition(": ")[0], plain[-12:]


@dataclass(frozen=True)
class TokenisedDataset(Sequence[Case]):
    """Cases in the order of their items. ``skipped``: items that cannot be used, those of the
    dataset included. ``note``: a sentence for the user on the cache, or "".
    """

    cases: tuple[Case, ...]
    skipped: tuple[Skipped, ...]
    note: str

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, index):
        return self.cases[index]


@accessing()
def tokenised(
    dataset: EditDataset,
    model: Model,
    *,
    cache: str | Path | None = None,
    need_target: bool = False,
    text_length: int | None = None,
    batch: int = 4,
    callback: Callable[[int, int], None] | None = None,
) -> TokenisedDataset:
    """``dataset`` in the tokens of ``model``, as ``encode_instruction`` makes them.

    ``cache``: a file that keeps the codes of pictures by their content, so that each is encoded
    once, and that a changed, added or renamed one costs no other; of another image tokenizer it is
    made anew. Texts are tokenised every time, which takes no time. ``text_length``: tokens of the
    answer's text, by default the checkpoint's own. ``need_target``: for SFT; an item without
    reasoning or target, or whose reasoning does not fit, cannot be used. A target's text ends as
    ``editing.fixed_text`` ends it, so without padding it may be shorter than ``text_length``.
    A picture to be generated has the shape of its target where targets are needed, else it is a
    square. ``batch``: pictures encoded at a time. ``callback(done, total)`` counts the pictures to
    encode, is called for each item besides, and may raise.

    Raises ``InputError`` as :func:`open_dataset` does, and for a family that does not answer with
    text and picture together.
    """
    check_kind(dataset, EditDataset, "dataset", "a dataset")
    check_model(model, "default_text_length", "variant", "layout", "image_tokenizer")
    check_kind(callback, Callable | None, "callback", "a function")
    length = model.default_text_length if text_length is None else text_length
    checked_count(length, "text_length", 0, MOST_TEXT)
    _check_answers(model, length)
    checked_count(batch, "batch", 1, MOST_SAMPLES)
    skipped, usable = list(dataset.skipped), []
    callback = callback or (lambda done, total: None)
    for item in dataset:
        callback(0, len(dataset))
        try:
            usable.append((item, _target_text(model, item, length) if need_target else None))
        except InputError as reason:
            skipped.append((item.name, str(reason)))
    sizes = [_seen_size(model, item, need_target) for item, _ in counted(usable, callback)]
    wanted = {
        key_of(picture, size): (picture, size)
        for (item, _), size in zip(counted(usable, callback), sizes, strict=True)
        for picture in _pictures(item, need_target)
    }
    store = CodeCache(None, "")
    if cache is not None:
        store = CodeCache(checked_path(cache, "cache"), codes_fingerprint(model))
    failed = encode_pictures(model, wanted, store, batch=batch, callback=callback)
    cases = []
    for (item, text), size in zip(usable, sizes, strict=True):
        callback(len(wanted), len(wanted))
        keys = [key_of(picture, size) for picture in _pictures(item, need_target)]
        if reasons := [failed[key] for key in keys if key in failed]:
            skipped.append((item.name, reasons[0]))
            continue
        try:
            cases.append(_case(model, item, size, text, length, store.codes))
        except InputError as reason:
            skipped.append((item.name, str(reason)))
    _refuse(dataset.place, len(cases), skipped, dataset.bad_items, callback)
    return TokenisedDataset(tuple(cases), tuple(skipped), store.note)


def _check_answers(model: Model, length: int) -> None:
    side, variant = model.default_image_size, model.variant
    try:
        variant.check_answer(length, grid_of(model, (side, side)))
    except InputError:
        raise InputError(
            f"{variant.name} answers with {' or '.join(sorted(variant.answers))}, and what is "
            "trained here is answers of text and image together: choose a checkpoint "
            "that answers with both."
        ) from None


def _target_text(model: Model, item: Item, length: int) -> Tensor:
    """(1, T) int64 of the reasoning."""
    if item.think is None or item.target is None:
        raise InputError(_without_target(item))
    if MASKED_TEXT in item.think:
        raise InputError(f"its reasoning holds {MASKED_TEXT}, which stands for a masked token.")
    return fixed_text(model, item.think, length)


def _without_target(item: Item) -> str:
    name = item.name.rpartition("/")[2]
    if item.target is not None:
        return sentence(
            f"it has no reasoning, which SFT needs: add it as {name}.think.txt in a folder."
        )
    if item.think is not None:
        return sentence(
            f"it has no target picture, which SFT needs: add it as {name}.target.png in a folder."
        )
    return sentence(
        "it has neither reasoning nor target picture, which SFT needs: turn on captions if its "
        f"text describes its picture, or else add both, as {name}.think.txt and "
        f"{name}.target.png in a folder."
    )


def _pictures(item: Item, need_target: bool) -> Iterable[Picture]:
    return filter(None, (item.image, item.target if need_target else None))


def _seen_size(model: Model, item: Item, need_target: bool) -> Size:
    like = next(iter(_pictures(item, need_target)), None)
    side = model.default_image_size
    return (side, side) if like is None else seen_size(model, like.size)


def _case(
    model: Model, item: Item, size: Size, text: Tensor | None, length: int, codes: dict[str, Tensor]
) -> Case:
    image = None if item.image is None else codes[key_of(item.image, size)]
    prompt = model.layout.encode(
        item.instruction, image, TokenState.masked(1, length, grid_of(model, size))
    )
    target = None
    if text is not None and item.target is not None:
        target = TokenState(text, codes[key_of(item.target, size)])
    source = None if item.image is None else partial(_seen, item.image, model.variant, size)
    weight = None if target is None else image_weight(model, item, size)
    changes = partial(changed_cells, item, model.variant, size, grid_of(model, size))
    return Case(
        item.name,
        prompt,
        item.instruction,
        source,
        target,
        item.facts,
        weight,
        item.origin,
        changes=None if image is None else changes,
    )


def _seen(picture: Picture, variant: Variant, size: Size) -> Image.Image:
    return variant.fit(picture.read(), size)
