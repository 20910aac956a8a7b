"""Human votes as the reward of ParaRL: sheets of answers that wait in the run's folder.

A step with votes is done in two parts. The first rolls out its groups, writes them to the run's
folder and ends the run, saved. The second, once the winners of every group are marked, takes the
same rollouts up again. A winner's reward is 1, that of the others 0; a group without or with
nothing but winners is a tie, which teaches nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ...mmp_core.checkpoint.load import Model
from ...mmp_core.checkpoint.tensors import open_safetensors
from ...mmp_core.checkpoint.tokens import check_known, check_words
from ...mmp_core.errors import InputError, shortened, shown
from ...mmp_core.files import Tell, accessing, is_plain_name, replacing, writing
from ...mmp_core.outside import check_bytes, field, parsed_json, read_text, small_json
from ...mmp_core.state import MASKED, Prompt, TokenState
from ..cases import Pair
from ..data.apart import origin_of
from ..loop.keeping import step_of
from .rollout import Group, Rollouts, ScoredSteps, group_by_shape

FILE, SHEET = "votes.json", "sheet.png"
MOST_ANSWERS = 4096
"""To be voted on in a step."""
_ROLLOUTS = "rollouts.safetensors"
_TENSORS = ("text_revealed", "image_revealed", "index", "finite")
_LETTERS = 500
"""Of a text in ``votes.json``, which a person reads there; longer ones are cut in the middle."""
_FILE_BYTES = 2**25
"""Of ``votes.json``: more than the texts of so many answers and their instructions take."""
_SAY = (
    "Into winners of each group put the numbers of its best answers, such as [2] or [1, 4], or [] "
    "where none is better than the others. Answers are numbered from 1, as in sheet.png. Then "
    "resume the run."
)


class Votes:
    """Stands for the reward; what it gives is in the run's folder."""

    name = "votes"

    def __call__(self, pairs: Sequence[Pair]) -> Tensor:
        raise InputError("Votes are a person's: they cannot be asked about other answers.")


@dataclass(frozen=True)
class VotedAnswer:
    text: str
    picture: Path


@dataclass(frozen=True)
class VotedGroup:
    """``winners``: numbers of answers from 1, none for a tie; ``None``: not voted on yet.
    ``source``: the picture to edit, if there is one."""

    instruction: str
    source: Path | None
    answers: tuple[VotedAnswer, ...]
    winners: tuple[int, ...] | None


class VotingRound:
    """The answers of the step after ``step`` others of the run in ``run``, to be voted on."""

    def __init__(self, run: Path, step: int):
        self.step, self.folder = step, run / "votes" / f"step-{step:05}"

    @property
    def file(self) -> Path:
        return self.folder / FILE

    @property
    def waits(self) -> bool:
        """Whether the step is still to be done with these answers."""
        return self.file.is_file() and (self.folder / _ROLLOUTS).is_file()

    def groups(self) -> list[VotedGroup]:
        """Raises ``InputError`` where ``votes.json`` is damaged."""
        return [
            VotedGroup(
                group["instruction"],
                self.folder / group["source"] if group["source"] else None,
                tuple(VotedAnswer(a["text"], self.folder / a["picture"]) for a in group["answers"]),
                self._winners(number, group),
            )
            for number, group in enumerate(self._read()["groups"], start=1)
        ]

    @property
    def missing(self) -> int:
        """How many groups are not voted on yet."""
        return sum(group.winners is None for group in self.groups())

    def vote(self, number: int, winners: Sequence[int] | None) -> None:
        """Mark the winners of a group, by its number from 1; ``None`` takes them back.

        Raises ``InputError`` for a group or an answer that is not there.
        """
        data = self._read()
        if not field(int, 1, len(data["groups"])).fits(number):
            raise InputError(
                f"There is no group {shown(number)}: expected 1 to {len(data['groups'])}."
            )
        group = data["groups"][number - 1]
        marked = list(winners) if isinstance(winners, list | tuple) else winners
        self._winners(number, {**group, "winners": marked})
        group["winners"] = marked and sorted(marked)
        self._write(data)

    def rewards(self, rolled: Sequence[Rollouts]) -> list[Tensor]:
        """(groups, 1, size) of each: 1 for winners. All groups must have been voted on. Raises
        ``InputError`` where ``votes.json`` has other groups."""
        groups = self.groups()
        numbers = sorted((group.number, part.size) for part in rolled for group in part.groups)
        if numbers != [(number, len(group.answers)) for number, group in enumerate(groups)]:
            raise self._damaged("it does not have all groups with all their answers")
        winners = [group.winners or () for group in groups]
        return [
            torch.tensor(
                [
                    [[float(answer + 1 in winners[group.number]) for answer in range(part.size)]]
                    for group in part.groups
                ]
            )
            for part in rolled
        ]

    def save(
        self, rolled: Sequence[Rollouts], pairs: Sequence[Pair], tell: Tell = lambda: None
    ) -> None:
        """Write the answers, ``pairs`` being final ones in the order of ``rolled``; votes that are
        there already stay if they are on the same answers. ``tell`` is called before each group,
        and may raise."""
        answers, rest = digest_of(rolled), list(pairs)
        before = self._read() if self.file.is_file() else {}
        if before and before["answers"] != answers:
            raise InputError(
                f"{self.file} is about other answers than those of this run: move it away, or "
                "start another run elsewhere."
            )
        tensors, totals = {}, []
        for number, part in enumerate(rolled):
            totals.append(part.total_steps)
            tensors |= {f"{number}.{name}": tensor for name, tensor in _tensors(part).items()}
        with writing(self.file):
            self.folder.mkdir(parents=True, exist_ok=True)
            groups: dict[int, dict[str, Any]] = {}
            for part in rolled:
                for group in part.groups:
                    tell()
                    groups[group.number] = self._pictures(group, rest[: part.size])
                    del rest[: part.size]
            with replacing(self.folder / _ROLLOUTS) as file:
                save_file(tensors, file, {"total_steps": json.dumps(totals)})
        if not before:
            listed = [groups[number] for number in sorted(groups)]
            self._write({"what to do": _SAY, "answers": answers, "groups": listed})

    def rollouts(self, model: Model, groups: Sequence[Group]) -> list[Rollouts] | None:
        """What was saved of ``groups``, ``None`` where nothing was. Raises ``InputError``."""
        if not self.waits:
            return None
        file = self.folder / _ROLLOUTS
        try:
            check_bytes(file)
            with open_safetensors(file) as stored:
                totals = small_json(stored.metadata()["total_steps"])
                tensors = {name: stored.get_tensor(name) for name in stored.keys()}
            parts = [
                _rollouts(model, members, total, f"{number}.", tensors)
                for number, (members, total) in enumerate(
                    zip(group_by_shape(groups), totals, strict=True)
                )
            ]
        except (
            OSError, RuntimeError, MemoryError, SafetensorError, ValueError, LookupError, TypeError,
            AttributeError,
        ) as error:  # fmt: skip
            raise InputError(
                f"{file} cannot be read ({error}): delete it to have the same answers made again."
            ) from None
        if digest_of(parts) != self._read()["answers"]:
            raise InputError(
                f"{file} and {FILE} beside it are about other answers than those of this run: move "
                "the folder away, or start another run elsewhere."
            )
        return parts

    def _pictures(self, group: Group, pairs: Sequence[Pair]) -> dict[str, Any]:
        """What ``votes.json`` says of a group, whose pictures are written."""
        number, source = group.number + 1, None
        if group.case.source is not None:
            source = f"{number}-source.png"
            self._write_picture(source, group.case.source())
        answers = []
        for place, pair in enumerate(pairs, start=1):
            picture = f"{number}-{place}.png"
            self._write_picture(picture, pair.picture)
            answers.append({"text": _cut(pair.text), "picture": picture})
        about = {"instruction": _cut(group.case.instruction), "source": source}
        return {**about, "answers": answers, "winners": None}

    def _write_picture(self, name: str, picture: Image.Image) -> None:
        with replacing(self.folder / name) as file:
            picture.save(file, "PNG")

    def _read(self) -> dict[str, Any]:
        try:
            text = read_text(self.file, _FILE_BYTES, InputError)
            data = parsed_json(text, str(self.file), InputError)
            for group in data["groups"]:
                names = [each["picture"] for each in group["answers"]]
                texts = [group["instruction"], *(each["text"] for each in group["answers"])]
                names += [group["source"]] if group["source"] else []
                if not all(isinstance(text, str) for text in texts):
                    raise TypeError("a text is missing")
                if not all(map(is_plain_name, names)):
                    raise TypeError("a picture is elsewhere")
            return {**data, "answers": str(data["answers"])}
        except OSError as error:
            raise InputError(f"{self.file} cannot be read ({error.strerror or error}).") from None
        except (LookupError, TypeError) as error:
            raise self._damaged(error) from None

    def _damaged(self, why: object) -> InputError:
        return InputError(
            f"{self.file} is damaged ({why}): delete it to vote on the same answers anew."
        )

    def _winners(self, number: int, group: Mapping[str, Any]) -> tuple[int, ...] | None:
        winners, count = group.get("winners"), len(group["answers"])
        if winners is None:
            return None
        fits = isinstance(winners, list) and all(
            type(winner) is int and 1 <= winner <= count for winner in winners
        )
        if not fits or len(set(winners)) < len(winners):
            raise InputError(
                f"{self.file}: the winners of group {number} are {shown(winners)}; expected a list "
                f"of different numbers from 1 to {count}, such as [2], or []."
            )
        return tuple(winners)

    def _write(self, data: Mapping[str, Any]) -> None:
        with writing(self.file), replacing(self.file) as file:
            text = json.dumps(data, ensure_ascii=False, indent=1) + "\n"
            file.write_bytes(text.encode(errors="backslashreplace"))  # as JSON writes a surrogate


@accessing()
def rounds(run: Path) -> list[VotingRound]:
    """Of the run in a folder, the newest last."""
    steps = [step_of(folder) for folder in (run / "votes").glob("step-*")]
    return [VotingRound(run, step) for step in sorted(step for step in steps if step is not None)]


def waiting_round(run: Path) -> VotingRound | None:
    """The round that the run in a folder waits for, if it does."""
    return next((each for each in reversed(rounds(run)) if each.waits), None)


def forget_rollouts(run: Path, before: int) -> None:
    """Remove the tokens of rounds of earlier steps, which are done; pictures and votes stay."""
    for each in rounds(run):
        if each.step < before:
            (each.folder / _ROLLOUTS).unlink(missing_ok=True)


def _cut(text: str) -> str:
    return text if len(text) <= _LETTERS else shortened(text, _LETTERS)


def digest_of(rolled: Sequence[Rollouts]) -> str:
    """SHA-256 of what was answered by which seeds, and of the final tokens."""
    digest = hashlib.sha256()
    for part in rolled:
        for group in part.groups:
            digest.update(f"{origin_of(group.case)} {group.case.name} {group.seeds}".encode())
        for tokens in (part.final.text, part.final.image):
            digest.update(tokens.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _tensors(part: Rollouts) -> dict[str, Tensor]:
    steps = part.steps
    tensors = {name: getattr(steps, name) for name in _TENSORS}
    for name, state in (("state", steps.state), ("after", steps.after), ("final", part.final)):
        tensors |= {f"{name}.text": state.text, f"{name}.image": state.image}
    return {name: tensor.cpu().contiguous().clone() for name, tensor in tensors.items()}


def _rollouts(
    model: Model, groups: Sequence[Group], total: int, prefix: str, tensors: Mapping[str, Tensor]
) -> Rollouts:
    def tensor(name: str) -> Tensor:
        return tensors[prefix + name].to(model.device)

    def state(name: str) -> TokenState:
        return TokenState(tensor(f"{name}.text"), tensor(f"{name}.image"))

    size, index = len(groups[0].seeds), tensor("index")
    prompt = Prompt.stack([group.case.prompt for group in groups])
    prompt = prompt.repeat(len(index) // len(groups)).to(model.device)
    named = {name: tensor(name) for name in _TENSORS}
    steps = ScoredSteps(prompt=prompt, state=state("state"), after=state("after"), **named)
    rollouts = Rollouts(tuple(groups), size, steps, state("final"), total)
    _check_rollouts(model, rollouts)
    return rollouts


def _check_rollouts(model: Model, rollouts: Rollouts) -> None:
    """Raise ``ValueError`` or ``InputError`` for what no rollout of these groups could give."""
    steps, final, total = rollouts.steps, rollouts.final, rollouts.total_steps
    count, asked = len(steps.index), steps.prompt.initial
    answers = len(rollouts.groups) * rollouts.size
    if not count or count % answers or type(total) is not int:
        raise ValueError(f"it has {count} steps of {answers} answers")
    shapes = {
        "text": (count, *asked.text.shape[1:]),
        "image": (count, *asked.image.shape[1:]),
        "flags": (count,),
    }
    for name, tensor, shape, kind in (
        ("index", steps.index, shapes["flags"], torch.int64),
        ("finite", steps.finite, shapes["flags"], torch.bool),
        ("text_revealed", steps.text_revealed, shapes["text"], torch.bool),
        ("image_revealed", steps.image_revealed, shapes["image"], torch.bool),
        *(
            (name, getattr(tokens, part), (rows, *shapes[part][1:]), torch.int64)
            for name, tokens, rows in (
                ("state", steps.state, count),
                ("after", steps.after, count),
                ("final", final, answers),
            )
            for part in ("text", "image")
        ),
    ):
        if tensor.shape != shape or tensor.dtype != kind:
            raise ValueError(f"{name} has the shape {shown(list(tensor.shape))}")
    for tokens, low in ((steps.state, MASKED), (steps.after, MASKED), (final, 0)):
        check_known(model, tokens.text, tokens.image, low=low)
    check_words(model, steps.after.text[steps.text_revealed])
    if not 0 <= int(steps.index.min()) <= int(steps.index.max()) < total:
        raise ValueError(f"index is not of {total} steps")
    revealed = torch.cat((steps.text_revealed, steps.image_revealed.flatten(1)), 1)
    if not revealed.any(1).all():
        raise ValueError("a step unmasked nothing")
    before, after, last = (_flat(tokens) for tokens in (steps.state, steps.after, final))
    open_after = after == MASKED
    if (open_after & revealed | ((before == MASKED) != (open_after | revealed))).any():
        raise ValueError("a step unmasked others than it says")
    parts, drawn, size = rollouts.shape
    last = last.view(parts, 1, size, -1).expand(-1, drawn, -1, -1).flatten(0, 2)
    if any(((tokens != MASKED) & (tokens != last)).any() for tokens in (before, after)):
        raise ValueError("a step has other tokens than its answer")


def _flat(tokens: TokenState) -> Tensor:
    return torch.cat((tokens.text, tokens.image.flatten(1)), 1)
