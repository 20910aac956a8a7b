"""MMaDA-8B, base and MixCoT: MMaDA-Parallel-M's transformer, ids and image tokenizer; a picture
from words, a masked part of one, or a text.

Reference: Gen-Verse/MMaDA 3cdb870, ``inference_t2i.py``, ``inference_mmu.py``, ``generate.py``,
``training/prompting_utils.py`` and ``models/modeling_mmada.py``. There the instruction of a picture
is filled up to 513 ids on the left, which an attention mask hides: no other position sees them, and
rotary positions count differences only, so that they are left away here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor

from ..errors import InputError
from ..image.pictures import LARGEST_RESIZE, Offset
from ..image.placement import Placement, Size
from ..sampler.llada import TextSelection, block_steps, guided_text
from ..sampler.plan import Plan, Targets
from ..sampler.policies import DenoisingModel, Policies
from ..sampler.predictor import BranchOutputs
from ..sampler.schedule import PlannedStep
from ..sampler.selection import TokenUpdate
from ..sampler.settings import SamplerSettings
from ..state import MASKED, Prompt, TokenState
from .base import ModelInput, Task, column
from .mmada_parallel_m import JointGuidance, LayoutM, MMaDAParallelM, SelectionM

_IDS = {
    "<|mmu|>": 126089,
    "<|start_header_id|>": 126346,
    "<|end_header_id|>": 126347,
    "<|eot_id|>": 126348,
}
_PAINT = "paint"
_LONGEST = 513
"""Ids of the instruction of a picture, with its tag, bos and eos."""
_T2I = {"image_steps": 15, "joint_guidance": 3.5, "image_temperature": 1.0}
_MMU = {"text_steps": 256, "block_length": 128, "joint_guidance": 0.0}


class MMaDA8B(MMaDAParallelM):
    id = "8B"
    name = "MMaDA-8B"
    called = r"mmada[-_ ]?8b"
    repository = "Gen-Verse/MMaDA-8B-MixCoT"
    answers = frozenset({"image", "text"})
    text_length = 512
    upstream_knows = ("joint_guidance", "reasoning_guidance", "block_length")
    upstream_settings: ClassVar = _T2I
    upstream_text_bytes, upstream_draws_rows = 16, True
    tasks: ClassVar = {
        "generate": Task("image", 0, "what the picture shows", _T2I),
        _PAINT: Task("image", 1, "what the whole picture shows, of which a part is masked", _T2I),
        "describe": Task("text", 1, "a question, or what to describe", _MMU),
        "answer": Task("text", 0, "a question", _MMU),
    }

    def layout(self, tokenizer: Any, config: Mapping[str, Any]) -> Layout8B:
        return Layout8B(tokenizer, config)

    def fit(self, image: Image.Image, size: Size, *, offset: Offset = "center") -> Image.Image:
        """The middle of ``image``, whatever the offset: the authors crop no other part."""
        part, whole, box = _middle(image.size, size)
        return image.crop(part).resize(whole, Image.Resampling.BICUBIC).crop(box)

    def placement(self, original: Size, size: Size, *, offset: Offset = "center") -> Placement:
        part, whole, box = _middle(original, size)
        return Placement.whole(original).cropped(*part).resized(whole).cropped(*box)

    def upstream_policies(
        self, model: DenoisingModel, prompt: Prompt, settings: SamplerSettings
    ) -> Policies[Tensor, Tensor]:
        """The authors' samplers: noise on the image falls with the product of all steps' ratios;
        the codes sampled last are the result; a text has all its blocks. Raises ``InputError`` for
        settings at which theirs stops."""
        draws = prompt.initial.image[0].numel()
        steps = image_steps(prompt, settings) if draws else block_steps(prompt, settings)
        plan = Plan.of(steps, prompt.batch, model.device)
        guidance = Guidance8B(model.layout, prompt, settings)
        return Policies(plan, guidance, Selection8B(model, prompt, settings))


def _middle(
    size: Size, crop: Size
) -> tuple[tuple[int, int, int, int], Size, tuple[int, int, int, int]]:
    """How a picture of ``size`` is brought to the square ``crop``: the part to take, the size it is
    resized to, whose shorter side is the square's, and the part of that. The first is all of it but
    for strips too long to be resized whole."""
    side, short = crop[0], min(size)
    most = max(short, LARGEST_RESIZE * short // side**2)
    kept = min(size[0], most), min(size[1], most)
    left, top = ((length - part) // 2 for length, part in zip(size, kept, strict=True))
    part = left, top, left + kept[0], top + kept[1]
    width, height = (side if n == short else int(side * n / short) for n in kept)
    left, top = (round((length - side) / 2) for length in (width, height))
    return part, (width, height), (left, top, left + side, top + side)


class Layout8B(LayoutM):
    """``t2i bos instruction eos | soi codes eoi`` for a picture; ``[mmu soi codes eoi] chat |
    text`` for a text. ``chat``: the question as the user's turn, and the head of the answer's."""

    def __init__(self, tokenizer: Any, config: Mapping[str, Any]):
        super().__init__(tokenizer, config)
        self.describe_tag, self.header, self.header_end, self.turn_end = (
            self.token_id(name, _IDS) for name in _IDS
        )
        self.text_choices = range(self.image_offset)
        self.ends = self.eos, self.turn_end

    def encode(self, instruction: str, image: Tensor | None, initial: TokenState) -> Prompt:
        draws = bool(initial.image[0].numel())
        task = ("answer", "describe", "generate", _PAINT)[2 * draws + (image is not None)]
        return self.encode_task(task, instruction, image, None, initial)

    def encode_task(
        self,
        task: str,
        instruction: str,
        image: Tensor | None,
        reference: Tensor | None,
        initial: TokenState,
    ) -> Prompt:
        if task in ("describe", "answer"):
            chat = torch.tensor([self.chat(instruction)]).expand(initial.batch, -1)
            nothing = torch.full_like(chat, self.mask_id)
            return Prompt(chat, nothing, image, initial, task=task)
        if task == _PAINT and (initial.image == MASKED).all():
            raise InputError(
                "MMaDA-8B does not edit a whole picture: give a mask of what is to be drawn anew, "
                "or a task that is answered with text (describe)."
            )
        ids, empty = (torch.tensor([self.caption(text)]) for text in (instruction, ""))
        ids, empty = (prompt.expand(initial.batch, -1) for prompt in (ids, empty))
        return Prompt(ids, empty, None, initial, task=task)

    def caption(self, instruction: str) -> list[int]:
        """Ids of what a picture shows. Raises ``InputError`` for more than the authors' code
        reads."""
        words = self.tokenizer(instruction)["input_ids"]
        if words[:1] != [self.bos]:
            words = [self.bos, *words]
        ids = [self.generate_tag, *words, self.eos]
        if len(ids) > _LONGEST:
            raise InputError(
                f"The instruction has {len(ids) - 3} tokens; MMaDA-8B reads at most "
                f"{_LONGEST - 3} of them for a picture: shorten it."
            )
        return ids

    def chat(self, question: str) -> list[int]:
        """Ids of a question, up to where its answer begins."""

        def turn(role: str, content: str) -> list[int]:
            name, text = (self.tokenizer(t, add_special_tokens=False) for t in (role, content))
            return [self.header, *name["input_ids"], self.header_end, *text["input_ids"]]

        user = turn("user", f"\n{question.strip()}")
        return [self.bos, *user, self.turn_end, *turn("assistant", "\n")]

    def model_input(self, prompt: Prompt, state: TokenState, **drops: bool) -> ModelInput:
        prefix = self.prefix(prompt, state, **drops)
        image, text = self.image_ids(state.image.flatten(1)), self.text_ids(state.text)
        if image.shape[1] and text.shape[1]:
            raise InputError(
                "MMaDA-8B answers with a picture or with text, not with both in one sequence: "
                "leave one of them away."
            )
        places = prefix.shape[1] + torch.arange(image.shape[1] + text.shape[1], device=text.device)
        if not image.shape[1]:
            return ModelInput(torch.cat((prefix, text), dim=1), places[:0], places)
        ids = torch.cat((prefix, column(text, self.soi), image, column(text, self.eoi)), dim=1)
        return ModelInput(ids, places + 1, places[:0])

    def prefix(
        self,
        prompt: Prompt,
        state: TokenState,
        *,
        drop_text: bool = False,
        drop_image: bool = False,
    ) -> Tensor:
        """(B, P) ids before the answer. Of a question, what is dropped is masked, as LLaDA was
        trained to go without."""
        words = prompt.without_text if drop_text else prompt.instruction
        if prompt.image is None:
            return words
        codes = self.image_ids(prompt.image.flatten(1))
        tag, soi, eoi = (column(words, t) for t in (self.describe_tag, self.soi, self.eoi))
        picture = torch.cat((tag, soi, codes, eoi), dim=1)
        if drop_image:
            picture = torch.full_like(picture, self.mask_id)
        return torch.cat((picture, words), dim=1)


def image_steps(prompt: Prompt, settings: SamplerSettings) -> list[PlannedStep]:
    """Steps of the authors' image sampler, which multiplies the noise's scale of one step by the
    next's."""
    cells, total = prompt.initial.image[0].numel(), settings.image_steps
    noise, steps = settings.image_temperature, []
    for index in range(total):
        ratio = (index + 1) / total
        masked = int((cells * torch.cos(torch.tensor(ratio) * math.pi * 0.5)).floor())
        noise *= 1.0 - ratio
        after = (masked,) * prompt.batch
        steps.append(PlannedStep(image_masked_after=after, image_noise=noise))
    return steps


class Guidance8B(JointGuidance):
    """A picture's branch without its instruction, or a text's with all that was given masked."""

    def __init__(self, layout: Any, prompt: Prompt, settings: SamplerSettings):
        # At a scale below 0 the authors' code does not guide.
        super().__init__(layout, prompt, settings)
        self.image_scale = max(0.0, self.image_scale)

    def text_logits(self, outputs: BranchOutputs, index: Tensor) -> Tensor:
        return guided_text(outputs, index, self.text_scale, "joint")


class Selection8B(SelectionM):
    """MMaDA-Parallel-M's for the image, LLaDA's for text."""

    def __init__(self, model: DenoisingModel, prompt: Prompt, settings: SamplerSettings):
        super().__init__(model, prompt, settings)
        row = model.layout.model_input(prompt, prompt.initial)
        self.words = TextSelection(model, row, settings)

    def text(
        self, targets: Targets, before: TokenUpdate, logits: Callable[[Tensor], Tensor]
    ) -> TokenUpdate:
        return self.words.text(targets, before, logits)
