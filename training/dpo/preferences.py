"""Picked and rejected answers on disk: a folder of one safetensors file for each pick."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ...mmp_core.checkpoint.load import Model
from ...mmp_core.checkpoint.tensors import open_safetensors
from ...mmp_core.checkpoint.tokens import (
    check_identity,
    check_known,
    check_size,
    check_words,
    token_identity,
)
from ...mmp_core.errors import InputError, shown
from ...mmp_core.files import accessing, checked_path, replacing, writing
from ...mmp_core.outside import MOST_TEXT, check_kind, checked_count
from ...mmp_core.pipeline import decode_image, decode_text
from ...mmp_core.state import MASKED, Prompt, TokenState
from ..cases import Case
from ..data.fields import listed

FORMAT = "mmada-parallel preference 1"
ENDING = ".preference.safetensors"
_CONDITIONS = {"instruction": 2, "unconditional": 2, "input": 3, "reference": 3}
"""The dimensions of what a prompt has beside its initial state."""
_NEEDED = {"instruction", "unconditional"} | {
    f"{name}.{part}" for name in ("initial", "picked", "rejected") for part in ("text", "image")
}


@dataclass(frozen=True)
class Preferences:
    """The picks of a folder. ``place``: its name, for messages. ``options``: of the command that
    trains on the same."""

    folder: Path
    files: tuple[Path, ...]
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def place(self) -> str:
        return self.folder.name

    @accessing()
    def cases(
        self, model: Model, callback: Callable[[int, int], object] = lambda done, total: None
    ) -> tuple[Case, ...]:
        """One for each rejected answer; the picked one is its target. The image tokenizer's weights
        must be loaded. ``callback`` counts files, and may raise. Raises ``InputError`` for a file
        that :func:`save_preference` did not write, is damaged, or is of another checkpoint than
        ``model``."""
        identity, cases = token_identity(model), []
        for done, file in enumerate(self.files):
            callback(done, len(self.files))
            cases += _cases_of(file, model, identity)
        return tuple(cases)


@accessing()
def open_preferences(folder: str | Path) -> Preferences:
    """Raises ``InputError`` where there are none."""
    folder = checked_path(folder, "The preferences")
    files = picks_in(folder)
    if not files:
        raise InputError(
            f"{folder} holds no picks: give the folder that Pick Sample wrote them to, of files "
            f"that end in {ENDING}."
        )
    return Preferences(folder, files, {"data": (str(folder.absolute()),)})


def picks_in(folder: Path) -> tuple[Path, ...]:
    """The files of a folder that hold picks. Raises ``InputError`` where it may not be listed."""
    found = listed(folder) if folder.is_dir() else []
    return tuple(file for file in found if file.name.endswith(ENDING) and file.is_file())


def digest_of(prompt: Prompt, answers: TokenState) -> str:
    """SHA-256, in hex, of a prompt and its answers."""
    digest = hashlib.sha256()
    tensors = (*_tensors_of(prompt[:1]).values(), answers.text, answers.image)
    for tensor in tensors:
        digest.update(f"{tuple(tensor.shape)}".encode())
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def save_preference(
    folder: str | Path, model: Model, prompt: Prompt, answers: TokenState, picked: int
) -> Path:
    """Write that answer ``picked`` of ``answers`` (N) was liked best, whole or not at all.

    ``prompt``: what all of them answer. Another pick of the same answers replaces the first.
    Answers that equal the picked one are left out. Raises ``InputError`` where none is left, where
    the samples of ``prompt`` differ, where the answers do not fit it, or where ``picked`` is not
    one of them.
    """
    folder = checked_path(folder, "The preferences")
    check_kind(prompt, Prompt, "prompt", "a prompt")
    check_kind(answers, TokenState, "answers", "tokens")
    _check_alike(prompt, answers)
    checked_count(picked, "picked", 0, answers.batch - 1)
    best = answers[picked : picked + 1]
    others = [
        row
        for row in range(answers.batch)
        if not (
            torch.equal(answers.text[row], best.text[0])
            and torch.equal(answers.image[row], best.image[0])
        )
    ]
    if not others:
        raise InputError(
            "All samples of the batch are the same, so that none is better: raise the batch or the "
            "temperature."
        )
    rejected = answers[torch.tensor(others, device=answers.text.device)]
    if any((tokens == MASKED).any() for tokens in (answers.text, answers.image)):
        raise InputError("The samples are not finished: denoise them to the end before picking.")
    try:
        check_words(model, _answered(prompt, answers))
    except InputError as error:
        raise InputError(f"The samples cannot be learned from: {error}") from None
    tensors = _tensors_of(prompt[:1])
    tensors |= {"picked.text": best.text, "picked.image": best.image}
    tensors |= {"rejected.text": rejected.text, "rejected.image": rejected.image}
    about = {
        "instruction": instruction_words(model, prompt),
        "task": prompt.task,
        "picked": decode_text(model, best)[0],
        "rejected": json.dumps(decode_text(model, rejected), ensure_ascii=False),
        "checkpoint": Path(model.place).name if model.place else "",
    }
    path = folder / f"{digest_of(prompt, answers)[:16]}{ENDING}"
    with writing(path):
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            save_file(
                {name: tensor.cpu().contiguous().clone() for name, tensor in tensors.items()},
                temporary,
                metadata={**about, "format": FORMAT, **token_identity(model)},
            )
    return path


def instruction_words(model: Model, prompt: Prompt) -> str:
    """The instruction in words: what the template with it has more than the one without."""
    whole, blank = prompt.instruction[0].tolist(), prompt.unconditional[0].tolist()
    start = _alike(whole, blank)
    end = len(whole) - _alike(whole[start:][::-1], blank[start:][::-1])
    return model.tokenizer.decode(whole[start:end], skip_special_tokens=True).strip()


def _alike(one: Sequence[int], other: Sequence[int]) -> int:
    """How many are equal from the front."""
    pairs = zip(one, other, strict=False)
    return next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def _check_alike(prompt: Prompt, answers: TokenState) -> None:
    for tensor in _tensors_of(prompt).values():
        if not (tensor == tensor[:1]).all():
            raise InputError(
                "The samples answer different prompts, so that they cannot be compared: pick among "
                "answers to one instruction."
            )
    initial = prompt.initial
    if (initial.text.shape[1], initial.grid) != (answers.text.shape[1], answers.grid):
        raise InputError("The samples are no answers to this prompt: connect the one they answer.")


def _answered(prompt: Prompt, answers: TokenState) -> Tensor:
    """The text of answers to one prompt, without what was given."""
    return answers.text[:, prompt.initial.text[0] == MASKED]


def _tensors_of(prompt: Prompt) -> dict[str, Tensor]:
    tensors = {
        "instruction": prompt.instruction,
        "unconditional": prompt.unconditional,
        "initial.text": prompt.initial.text,
        "initial.image": prompt.initial.image,
        "input": prompt.image,
        "reference": prompt.reference,
    }
    return {name: tensor for name, tensor in tensors.items() if tensor is not None}


def _cases_of(path: Path, model: Model, identity: Mapping[str, str]) -> list[Case]:
    try:
        with open_safetensors(path) as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise InputError(f"{path} holds no pick: expected a file that Pick Sample wrote.")
            names = list(file.keys())
            _check_shapes({n: file.get_slice(n).get_shape() for n in names}, model, str(path))
            check_identity(metadata, identity, str(path))
            tensors = {name: file.get_tensor(name) for name in names}
            if {tensor.dtype for tensor in tensors.values()} != {torch.int64}:
                raise ValueError("its tokens are no whole numbers")
        try:
            return _parsed(path, model, tensors, metadata)
        except InputError as error:
            raise InputError(f"{path} is damaged: {error}") from None
    except InputError:
        raise
    except (
        OSError, RuntimeError, MemoryError, SafetensorError, ValueError, TypeError, LookupError,
    ) as error:  # fmt: skip
        raise InputError(f"{path} cannot be read ({error}): delete it, and pick again.") from None


def _check_shapes(shapes: Mapping[str, list[int]], model: Model, place: str) -> None:
    """Raise ``InputError`` or ``ValueError`` before anything is read."""
    if missing := sorted(_NEEDED - {*shapes}):
        raise ValueError(f"it lacks {missing[0]}")
    for name in ("initial", "picked", "rejected"):
        parts = {part: shapes[f"{name}.{part}"] for part in ("text", "image")}
        check_size(parts, model, place)
    for name in {*shapes} - {"rejected.text", "rejected.image"}:
        if shapes[name][:1] != [1] or max(shapes[name][1:], default=0) > MOST_TEXT:
            raise ValueError(f"{name} has the shape {shown(shapes[name])}")
    for name, dimensions in _CONDITIONS.items():
        if name in shapes and (len(shapes[name]) != dimensions or not min(shapes[name])):
            raise ValueError(f"{name} has the shape {shown(shapes[name])}")
    for name in {"input", "reference"} & {*shapes}:
        check_size({"text": shapes["instruction"], "image": shapes[name]}, model, place)


def _parsed(
    path: Path, model: Model, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> list[Case]:
    def state(name: str) -> TokenState:
        return TokenState(tensors[f"{name}.text"], tensors[f"{name}.image"])

    image, initial, picked, rejected = (
        tensors.get("input"),
        *map(state, ("initial", "picked", "rejected")),
    )
    prompt = Prompt(
        tensors["instruction"],
        tensors["unconditional"],
        image,
        initial,
        tensors.get("reference"),
        metadata["task"],
    )
    for answers in (picked, rejected):
        _check_alike(prompt, answers)
        if (answers.text == MASKED).any() or (answers.image == MASKED).any():
            raise ValueError("an answer has masked tokens")
        check_words(model, _answered(prompt, answers))
    check_known(model, initial.text, initial.image, low=MASKED)
    for text, codes in (
        (prompt.instruction, image),
        (prompt.unconditional, prompt.reference),
        *((s.text, s.image) for s in (picked, rejected)),
    ):
        check_known(model, text, codes)
    origin = hashlib.sha256(
        metadata["instruction"].encode() if image is None else image.numpy().tobytes()
    ).hexdigest()
    return [
        Case(
            f"{path.name.removesuffix(ENDING)} {row + 1}",
            prompt,
            metadata["instruction"],
            None if image is None else partial(_picture, model, image),
            picked,
            origin=origin,
            rejected=rejected[row : row + 1],
        )
        for row in range(rejected.batch)
    ]


def _picture(model: Model, codes: Tensor) -> Image.Image:
    blank = codes.new_zeros(1, 0)
    return decode_image(model, TokenState(blank, codes).to(model.device))[0]
