"""What a checkpoint family promises: :class:`Variant`, its facts, and :class:`Layout`, its ids.

The files beside this one are the only place that knows absolute ids and segment order, or that
tells families apart. Knows neither the sampler nor the checkpoint's files.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from PIL import Image
from torch import Tensor

from ..errors import InputError
from ..image.pictures import Offset
from ..image.placement import Placement, Size
from ..image.tokenizer import ImageTokenizer
from ..outside import checked_text
from ..state import MASKED, Prompt, TokenState

if TYPE_CHECKING:
    from ..sampler.policies import DenoisingModel, Policies
    from ..sampler.settings import SamplerSettings

MASKED_TEXT = "░"
"""A masked text token where people read it."""
Answer = Literal["text and image", "text", "image"]
"""What a model answers with."""
_CONTEXT = 4


@dataclass(frozen=True)
class ModelInput:
    """The ids that the model is run on, and where its answer lies in them. ``ids``: (B, L) int64.
    ``image_positions``: (H·W,) int64, raster order; ``text_positions``: (T,) int64. Either may be
    empty. ``fixed``: (B, L) bool, where ``ids`` stay whatever the state; ``None`` for nowhere."""

    ids: Tensor
    image_positions: Tensor
    text_positions: Tensor
    fixed: Tensor | None = None


@dataclass(frozen=True)
class Task:
    """What a model was trained to do for a creator. ``answer``: what it gives. ``pictures``: how
    many it is shown, 0 to 2. ``help``: what to write as the instruction, which the model reads
    itself unless ``reads_instruction`` is false. ``settings``: the authors' values beside the
    family's own. ``input_size``: as :meth:`Variant.input_size`, where the task's pictures have
    another size than the family's."""

    answer: Answer
    pictures: int
    help: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    input_size: Callable[[Size, int, int], Size] | None = None
    reads_instruction: bool = True


EDIT_TASK, GENERATE_TASK = "edit", "generate"
"""What families call their tasks with one picture and with none."""


class Layout(ABC):
    """Segment order and ids of one checkpoint, from its tokenizer and its parsed ``config.json``.

    ``image_offset``: id of image code 0. ``codebook_size``: number of image codes. ``mask_id``: id
    of a masked position. ``text_choices``: ids that a corrected sampler chooses text from, those
    below ``mask_id``. ``end_of_text``: id that follows the answer's last word. ``pads_text``:
    whether the checkpoint was trained on answers filled up with it to one length. ``ends``: ids
    after which an answer of text alone has nothing more to say.
    """

    end_of_text: int
    pads_text: bool
    ends: tuple[int, ...] = ()

    def __init__(self, tokenizer: Any, config: Mapping[str, Any], image_offset: int):
        """``image_offset``: where ``config`` says none."""
        self.tokenizer = tokenizer
        self.mask_id: int = config["mask_token_id"]
        self.image_offset: int = config.get("text_vocab_size", image_offset)
        self.codebook_size: int = config.get("codebook_size", 8192)
        self.text_choices = range(self.mask_id)

    @property
    def image_choices(self) -> slice:
        """Ids of the image codes."""
        return slice(self.image_offset, self.image_offset + self.codebook_size)

    @abstractmethod
    def encode(self, instruction: str, image: Tensor | None, initial: TokenState) -> Prompt:
        """Tokenise ``instruction`` around ``image`` codes (B, h, w), or for generation without. The
        prompt's batch is ``initial``'s."""

    def encode_task(
        self,
        task: str,
        instruction: str,
        image: Tensor | None,
        reference: Tensor | None,
        initial: TokenState,
    ) -> Prompt:
        """:meth:`encode` for one of the family's tasks, where it names some. ``reference``: codes
        (B, h, w) of a second picture."""
        return self.encode(instruction, image, initial)

    @abstractmethod
    def model_input(
        self,
        prompt: Prompt,
        state: TokenState,
        *,
        drop_text: bool = False,
        drop_image: bool = False,
    ) -> ModelInput:
        """The model's input for ``state`` under ``prompt``, or under its unconditional forms.
        ``drop_text`` replaces the instruction, ``drop_image`` removes the input image."""

    def decode_text(self, text: Tensor, *, masked: str = "") -> list[str]:
        """Strings of text tokens (B, T); ``masked`` stands for each masked position."""
        return [decode_ids(self.tokenizer, row.tolist(), masked) for row in text]

    def text_ids(self, text: Tensor) -> Tensor:
        """Ids of text tokens of any shape."""
        return torch.where(text == MASKED, self.mask_id, text)

    def image_ids(self, codes: Tensor) -> Tensor:
        """Ids of image codes of any shape."""
        return torch.where(codes == MASKED, self.mask_id, codes + self.image_offset)

    def token_id(self, name: str, released: Mapping[str, int]) -> int:
        """The tokenizer's id of a special token, else the released one."""
        known = self.tokenizer.convert_tokens_to_ids(name)
        return released[name] if known in (None, self.tokenizer.unk_token_id) else known


class Variant(ABC):
    """A checkpoint family: all that tells it from the others. It has no state.

    ``id``: what files store. ``name``: what people read; either, in any case, names the family.
    ``answers``: what its checkpoints were trained to answer with. ``image_tokenizer``: the class of
    its image tokenizer, made with the parsed ``config.json`` of one, ``operations``, ``dtype`` and
    ``device``; ``image_folders``: where that may lie in or beside a checkpoint's folder;
    ``image_config_needed``: whether it must have a ``config.json``; ``image_advice``: what to do
    where it is missing, with ``{folder}`` for the checkpoint's. ``repository``: where its authors
    released it on Hugging Face; ``image_repository``: the image tokenizer, where that is another
    one; ``licence``: of its weights, as their page states it. ``upstream_knows``: settings that may
    be other than 0 with the authors' sampler; ``upstream_settings``: those of their command;
    ``upstream_speeds``: those that it knows; ``upstream_noise_bytes``: of a random number that it
    draws for text; ``upstream_text_bytes``: of a text logit beside; ``upstream_draws_rows``:
    whether it draws for every position of the sequence. ``tasks``: by name, where they are more
    than to edit and to generate. ``recommended``: values of ``SamplerSettings``, where a task has
    no others; ``quick_share``: the share (0 … 1) of their steps that a quick look takes.
    ``image_size``, ``text_length``: of an answer, where a checkpoint's config.json says none.
    ``called``: a pattern of what its checkpoints are called, in any case; ``trained_from``: of the
    model that its authors trained it from, which its config.json may name.
    """

    id: ClassVar[str]
    name: ClassVar[str]
    answers: ClassVar[frozenset[Answer]] = frozenset({"text and image"})
    image_tokenizer: ClassVar[type[ImageTokenizer]]
    image_folders: ClassVar[tuple[str, ...]] = ("vqvae",)
    image_config_needed: ClassVar[bool] = True
    image_advice: ClassVar[str]
    repository: ClassVar[str | None] = None
    image_repository: ClassVar[str | None] = None
    licence: ClassVar[str | None] = None
    upstream_knows: ClassVar[tuple[str, ...]] = ()
    upstream_settings: ClassVar[Mapping[str, Any]] = {}
    upstream_speeds: ClassVar[tuple[str, ...]] = ("exact",)
    upstream_noise_bytes: ClassVar[int] = 4
    upstream_text_bytes: ClassVar[int] = 0
    upstream_draws_rows: ClassVar[bool] = False
    recommended: ClassVar[Mapping[str, Any]] = {
        # The paper's (arXiv 2511.09611 §3).
        "text_steps": 128,
        "image_steps": 30,
        "joint_guidance": 3.5,
    }
    quick_share: ClassVar[float] = 0.25
    tasks: ClassVar[Mapping[str, Task]] = {}
    image_size: ClassVar[int] = 512
    text_length: ClassVar[int] = 256
    called: ClassVar[str | None] = None
    trained_from: ClassVar[str | None] = None

    def __str__(self) -> str:
        return self.id

    def check_upstream_speed(self, speed: str) -> None:
        """Raise ``InputError`` for a speed that the authors' sampler does not know."""
        if speed not in self.upstream_speeds:
            raise InputError(
                f"speed is {speed!r} with the upstream preset on {self.name}, whose reference "
                f"knows only {' and '.join(map(repr, self.upstream_speeds))}; use the corrected "
                "preset."
            )

    @abstractmethod
    def recognises(self, config: Mapping[str, Any]) -> bool:
        """Whether a parsed ``config.json`` may be of this family."""

    @abstractmethod
    def layout(self, tokenizer: Any, config: Mapping[str, Any]) -> Layout:
        """The ids of one checkpoint."""

    @abstractmethod
    def input_size(self, size: Size, side: int, unit: int) -> Size:
        """(width, height) that a picture of ``size`` has as the model sees it. ``side``: the
        checkpoint's default size; ``unit``: pixels per image code."""

    @abstractmethod
    def fit(self, image: Image.Image, size: Size, *, offset: Offset = "center") -> Image.Image:
        """``image`` (RGB) brought to ``size``, an :meth:`input_size`. Pictures of one shape stay
        aligned. ``offset``: where to crop, see :func:`.pictures.fit_image`."""

    def placement(self, original: Size, size: Size, *, offset: Offset = "center") -> Placement:
        """Where what :meth:`fit` makes lies in a picture of ``original`` pixels: all of it, unless
        the family crops."""
        return Placement.whole(original).resized(size)

    def upstream_policies(
        self, model: DenoisingModel, prompt: Prompt, settings: SamplerSettings
    ) -> Policies:
        """The authors' sampler, token for token. Raises ``InputError`` where there is none."""
        raise InputError(f"{self.name} has no upstream preset; use the corrected one.")

    @property
    def task_names(self) -> tuple[str, ...]:
        """What a user may ask for."""
        return tuple(self.tasks) or (EDIT_TASK, GENERATE_TASK)

    def task_for(self, task: str | None, pictures: int, *, text_alone: bool = False) -> str:
        """The name of ``task``, or where it is ``None`` of the one that takes so many pictures; ""
        where the family names no tasks. Raises ``InputError`` for one that it was not trained on,
        or that takes another number of pictures."""
        if pictures > 1 and not self.tasks:
            raise InputError(f"{self.name} takes one picture, and {pictures} were given.")
        if task is None:
            fitting = (
                name
                for name, known in self.tasks.items()
                if known.pictures == pictures and (known.answer == "text") == text_alone
            )
            chosen = next(fitting, "")
            if self.tasks and not chosen:
                raise InputError(
                    f"{self.name} has no task that takes {_numbered(pictures)} and is answered "
                    f"with {'text' if text_alone else 'an image'}; it knows "
                    f"{', '.join(self.task_names)}."
                )
            return chosen
        name = checked_text(task, "task").strip().lower().replace(" ", "_").replace("-", "_")
        if name not in self.task_names:
            raise InputError(
                f"{self.name} was not trained on the task {task!r}; it knows "
                f"{', '.join(self.task_names)}."
            )
        needed = self.tasks[name].pictures if self.tasks else int(name == EDIT_TASK)
        if pictures != needed:
            raise InputError(
                f"The task {name!r} takes {_numbered(needed)}, and {pictures} was given."
            )
        return name if self.tasks else ""

    def check_prompt(self, task: str) -> None:
        """Raise ``InputError`` for the task of a prompt that was encoded for another family."""
        if task not in (self.tasks or ("",)):
            raise InputError(
                f"The prompt was made with a checkpoint of another family than {self.name}: encode "
                "the instruction with the checkpoint that denoises it."
            )

    def settings_for(self, task: str) -> dict[str, Any]:
        """Values recommended for ``task``, by the names of ``SamplerSettings``; none where the
        paper's hold."""
        return dict(self.tasks[task].settings) if task in self.tasks else {}

    def check_answer(self, text_length: int, grid: tuple[int, int]) -> None:
        """Raise ``InputError`` for an answer that the family does not give: ``text_length`` 0 is an
        image alone, a ``grid`` of none text alone."""
        parts = [name for name, size in (("text", text_length), ("image", min(grid))) if size]
        if " and ".join(parts) not in self.answers:
            raise InputError(
                f"{self.name} answers with {' or '.join(sorted(self.answers))}, not with "
                f"{' and '.join(parts) or 'nothing'}: change text_length or size."
            )


def _numbered(pictures: int) -> str:
    return ("no picture", "one picture", "two pictures")[pictures]


def column(like: Tensor, token: int) -> Tensor:
    """(B, 1) of one id, for the batch of ``like``."""
    return like.new_full((like.shape[0], 1), token)


def decode_ids(tokenizer: Any, ids: list[int], masked: str) -> str:
    """The text of ids, each masked position replaced by ``masked``."""
    decoded = partial(tokenizer.decode, skip_special_tokens=True)
    if not masked or MASKED not in ids:
        return decoded([i for i in ids if i != MASKED])
    parts = []
    for is_masked, run in groupby(ids, MASKED.__eq__):
        same = list(run)
        parts += [masked] * len(same) if is_masked else [decoded(same)]
    return " ".join(part.strip() for part in parts if part.strip())


def pieces_of(tokenizer: Any, ids: list[int]) -> list[str]:
    """One string per id, which together read as :func:`decode_ids` does, spaces aside. An id's
    string is what it adds to the ids just before it, since tokenizers put spaces between words and
    make one letter of several ids."""
    pieces: list[str] = []
    recent, letter, gap = [], [], ""
    for token, following in zip(ids, [*ids[1:], MASKED], strict=False):
        if token == MASKED:
            pieces.append(f" {MASKED_TEXT}")
            recent, letter, gap = [], [], " "
            continue
        letter.append(token)
        longer = tokenizer.decode(recent + letter, skip_special_tokens=True)
        if longer.endswith("\ufffd") and following != MASKED:  # its other ids may be still to come
            pieces.append("")
            continue
        added = longer[len(tokenizer.decode(recent, skip_special_tokens=True)) :]
        pieces.append(f"{gap}{added}" if added else "")
        if added:
            recent, gap = (recent + letter)[-_CONTEXT:], ""
        letter = []
    return pieces
