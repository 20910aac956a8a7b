"""How well a text agrees with a picture, by the CLIP of a local folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ...mmp_core import (
    InputError,
    Model,
    TokenState,
    Trajectory,
    decode_image,
    decode_text,
)
from ...mmp_core.checkpoint.load import DEMO
from ...mmp_core.files import checked_path
from ...mmp_core.outside import check_kind
from ..cases import Pair
from .clip_files import read_towers

DEMO_CLIP = DEMO / "clip"
_BATCH = 32


class ClipScorer:
    """Scores texts against pictures. Nothing is downloaded: all is read from ``folder``.

    ``folder``: open_clip's ``local-dir:`` format: ``open_clip_config.json``,
    ``open_clip_model.safetensors`` or ``open_clip_pytorch_model.bin`` (read without running what a
    pickle holds) and, where the config names a tokenizer, its files. Or a ``CLIPModel`` of
    transformers: ``config.json``, ``model.safetensors``, and the files of tokenizer and
    preprocessor.

    Raises ``CheckpointError`` for a folder that is not complete in itself, ``InputError`` where
    open_clip is needed and not installed.
    """

    def __init__(self, folder: str | Path, *, device: torch.device | str = "cpu"):
        self.towers = read_towers(checked_path(folder, "The CLIP"), device)
        self.model, self.device = self.towers.model, device

    def score(self, texts: Sequence[str], images: Sequence[Image.Image]) -> Tensor:
        """(N,) float32 on the CPU: cosine similarity of each text with the image at its place.

        A text longer than the CLIP's context scores the mean of its :meth:`parts`. A text without
        words scores 0: it agrees with nothing. Raises ``InputError`` for unequal numbers.
        """
        _check_texts(texts)
        _check_pictures(images)
        _check_as_many(len(texts), len(images))
        return (self.text_features(texts) * self.image_features(images)).sum(dim=-1)

    def text_features(self, texts: Sequence[str]) -> Tensor:
        """(N, D) float32 on the CPU: the mean of the normalised features of each text's parts.

        The mean is not normalised again, so that a text's score is the mean of its parts' scores;
        zeros for a text without words.
        """
        _check_texts(texts)
        parted = {text: self.parts(text) for text in dict.fromkeys(texts)}
        parts = [parted[text] for text in texts]
        distinct = dict.fromkeys(part for of_text in parts for part in of_text)
        places = {part: i for i, part in enumerate(distinct)}

        def encode(batch: Sequence[str]) -> Tensor:
            return self.towers.texts(batch, self.device)

        features = self._encoded(list(places), encode)
        rows = [
            features[[places[part] for part in of_text]].sum(0) / max(len(of_text), 1)
            for of_text in parts
        ]
        return torch.stack(rows) if rows else features

    def image_features(self, images: Sequence[Image.Image]) -> Tensor:
        """(N, D) float32 on the CPU, normalised. The CLIP sees what its own preprocessing leaves,
        most often the middle square."""

        def each(batch: Sequence[Image.Image]) -> Iterator[Image.Image]:
            for image in batch:
                self.ask()
                yield image.convert("RGB")

        def encode(batch: Sequence[Image.Image]) -> Tensor:
            return self.towers.images(each(batch), self.device)

        _check_pictures(images)
        return self._encoded(images, encode)

    def ask(self) -> None:
        """Called before each picture and each part of a text: a host may raise here."""

    def prepare(self) -> None:
        """Called before each batch: a host brings the model to ``device`` here, and may raise."""

    @torch.no_grad()
    def _encoded(self, items: Sequence[Any], encode: Callable[[Sequence[Any]], Tensor]) -> Tensor:
        features = []
        for start in range(0, len(items), _BATCH):
            self.prepare()
            features.append(encode(items[start : start + _BATCH]).float().cpu())
        return torch.cat([torch.zeros(0, self.towers.width), *features])

    def parts(self, text: str) -> list[str]:
        """``text`` in parts that the CLIP reads without cutting them.

        Too long a text is halved between words until it fits, so that its parts weigh about the
        same; a word that alone is too long is halved between letters. No parts without words.
        """
        words = text.split()
        if not words or self._fits(text):
            return [text] if words else []
        if len(words) > 1:
            middle = len(words) // 2
            halves = " ".join(words[:middle]), " ".join(words[middle:])
        else:
            middle = len(words[0]) // 2
            halves = words[0][:middle], words[0][middle:]
        return [part for half in halves for part in self.parts(half)]

    def _fits(self, text: str) -> bool:
        self.ask()
        return len(text) == 1 or self.towers.fits(text)


class ClipReward:
    """The reward of a pair: its cosine similarity by a CLIP, −1 … 1. A text longer than the CLIP's
    context scores the mean of its parts, one without words 0."""

    name = "clip"

    def __init__(self, scorer: ClipScorer):
        self._scorer = scorer

    def __call__(self, pairs: Sequence[Pair]) -> Tensor:
        return self._scorer.score([pair.text for pair in pairs], [pair.picture for pair in pairs])


class PreferenceReward:
    """How well people would like the picture for its words, by a CLIP that was trained on such
    choices (PickScore, arXiv 2305.01569; HPS v2, arXiv 2306.09341): the cosine similarity of the
    two, −1 … 1. The words are the instruction or, for an edit, the text of the answer, which says
    what the picture shows."""

    name = "preference"

    def __init__(self, scorer: ClipScorer):
        self._scorer = scorer

    def __call__(self, pairs: Sequence[Pair]) -> Tensor:
        words = [pair.text if pair.case.source else pair.case.instruction for pair in pairs]
        return self._scorer.score(words, [pair.picture for pair in pairs])


def score_trajectory(
    scorer: ClipScorer,
    model: Model,
    trajectory: Trajectory,
    *,
    texts: Sequence[str] | None = None,
    images: Sequence[Image.Image] | None = None,
    callback: Callable[[int, int], object] = lambda done, total: None,
) -> Tensor:
    """(S, B) float32 on the CPU: agreement at each recorded step and, last, of the final state.

    At a step the text unmasked so far is scored against the picture that the model then guesses,
    grey where it has not guessed yet. ``texts``, ``images``: B to score at every step instead of
    those of the trajectory. ``callback(done, total)`` counts rows, is called before each picture,
    too, and may raise.
    """
    check_kind(scorer, ClipScorer, "scorer", "a CLIP")
    check_kind(trajectory, Trajectory, "trajectory", "a trajectory")
    check_kind(callback, Callable, "callback", "a function")
    final = trajectory.final
    for given, check in ((texts, _check_texts), (images, _check_pictures)):
        if given is not None:
            check(given)
    _check_as_many(*(final.batch if given is None else len(given) for given in (texts, images)))
    states = [*((step.after, step.guess) for step in trajectory.steps), (final, final)]
    last_texts, last_codes, rows = texts, None, []
    text_features = image_features = torch.zeros(0)  # computed below unless given
    if texts is not None:
        text_features = scorer.text_features(texts)
    if images is not None:
        image_features = scorer.image_features(images)
    for done, (after, guess) in enumerate(states):
        tell = partial(callback, done, len(states))
        tell()
        if texts is None and last_texts != (read := decode_text(model, after)):
            last_texts, text_features = read, scorer.text_features(read)
        if images is None and (last_codes is None or not torch.equal(last_codes, guess.image)):
            pictures = _pictures(model, guess, tell)
            last_codes, image_features = guess.image, scorer.image_features(pictures)
        rows.append((text_features * image_features).sum(dim=-1))
    return torch.stack(rows)


def _check_texts(texts: Any) -> None:
    name, expected = "texts", "a list of texts"
    check_kind(texts, list | tuple, name, expected)
    for text in texts:
        check_kind(text, str, name, expected)


def _check_pictures(images: Any) -> None:
    name, expected = "images", "a list of pictures"
    check_kind(images, list | tuple, name, expected)
    for image in images:
        check_kind(image, Image.Image, name, expected)


def _check_as_many(texts: int, images: int) -> None:
    if texts != images:
        raise InputError(f"There are {texts} texts and {images} images: give one text for each.")


def clip_folder(name: str | Path) -> Path:
    """The folder of a CLIP; that of the toy world for "demo"."""
    return DEMO_CLIP if name == "demo" else checked_path(name, "The CLIP")


def _pictures(model: Model, state: TokenState, tell: Callable[[], object]) -> list[Image.Image]:
    """Decoded one at a time, since a picture takes much memory to decode. ``tell`` is called before
    each."""
    pictures = []
    for sample in range(state.batch):
        tell()
        pictures += decode_image(model, state[sample : sample + 1])
    return pictures
