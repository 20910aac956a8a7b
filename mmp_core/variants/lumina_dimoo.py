"""Lumina-DiMOO: MMaDA-Parallel-A's transformer, ids and image tokenizer; a picture or a text.

Reference: Alpha-VLLM/Lumina-DiMOO 81344e6, ``inference_t2i.py``, ``inference_i2i.py``,
``inference_mmu.py``, ``utils/prompt_utils.py`` and ``generators/``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..errors import InputError
from ..image.pictures import crop_sizes, nearest_size, sizes_near
from ..image.placement import Size
from ..sampler.guidance import CONDITIONAL
from ..sampler.llada import TextSelection, block_of, block_steps, guided_text
from ..sampler.ml_cache import MLCache
from ..sampler.plan import Plan, Targets
from ..sampler.policies import DenoisingModel, Policies
from ..sampler.positions import Generators, MaskedPositions, masked_counts, seeded_generators
from ..sampler.predictor import BranchOutputs
from ..sampler.schedule import Counts, PlannedStep
from ..sampler.selection import TokenUpdate
from ..sampler.settings import SamplerSettings
from ..state import MASKED, Prompt, TokenState
from .base import ModelInput, Task, column
from .mmada_parallel_a import EDIT, GENERATE, LayoutA, MMaDAParallelA

UNDERSTAND = (
    "You are a multimodal model that can process both text and images. Answer the following "
    "question based on the provided images. Analyze each image and combine relevant details to "
    "answer."
)
_DENSE = "Perform dense prediction on the given images."
_STYLE = "Transform the current image into the style of the provided image."
_SYSTEMS = {
    # What an edit type holds, in the order in which it is looked for.
    "dense": _DENSE,
    "control": "Generate an image according to the text prompt and the given control image.",
    "subject": "Generate an image according to the text prompt and the given object image.",
    "edit": EDIT,
    "ref_transfer": _STYLE,
    "multi_view": "Generate a view-image based on the given image.",
}
_OTHER = "Generate an image according to the prompt and image."
_MAPS = {
    "canny": "canny edge map",
    "hed": "hed edge map",
    "normal": "normal map",
    "sam2mask": "sam2 mask",
    "depth": "depth map",
    "openpose": "pose estimation map",
}
_PAINT = "paint"
_PAD = 126339
_EDIT_SIDE, _CROP_PATCH = 512, 32


def edit_template(edit_type: str, words: str) -> tuple[str, str]:
    """System prompt and user text of any edit type, as the released code finds them."""
    kind = next((kind for kind in _SYSTEMS if kind in edit_type), None)
    if kind == "dense":
        name = _MAPS.get(edit_type.split("_")[0], "dense map")
        words = f"Generate a {name} according to the image."
    elif kind == "ref_transfer":
        words = _STYLE
    elif kind == "multi_view":
        view = edit_type.split("_")[-1]
        words = f"Generate the {view} view based on the provided front view."
    return _SYSTEMS.get(kind or "", _OTHER), words


def _map_wanted(words: str) -> str:
    """The edit type for a map that ``words`` name."""
    plain = words.lower().replace(" ", "")
    known = {"pose": "openpose", "sam2": "sam2mask", "segment": "sam2mask"} | dict(
        zip(_MAPS, _MAPS, strict=True)
    )
    kind = next((kind for name, kind in known.items() if name in plain), None)
    if kind is None:
        raise InputError(
            f"The instruction of dense_prediction is {words!r}; expected the map to draw: "
            f"{', '.join(_MAPS.values())}."
        )
    return f"{kind}_dense"


def _view_wanted(words: str) -> str:
    """The edit type for a view that ``words`` name."""
    views = [word for word in re.findall(r"\w+", words.lower()) if word not in ("the", "view")]
    if len(views) != 1 or "_" in views[0]:
        raise InputError(
            f"The instruction of multi_view is {words!r}; expected one word for the view to draw, "
            "such as left, right or back."
        )
    return f"multi_view_{views[0]}"


_EDIT_TYPES: Mapping[str, Callable[[str], str]] = {
    "edit": lambda words: "edit",
    "subject": lambda words: "subject_driven",
    "control": lambda words: "image_control",
    "dense_prediction": _map_wanted,
    "multi_view": _view_wanted,
    "style": lambda words: "image_ref_transfer",
}
"""The edit type of each task that draws from a picture, given the user's words."""


def understood_size(size: Size, side: int, unit: int) -> Size:
    """(width, height) at which a picture is described, as in the authors' training: of ``size``,
    but of an area of at least half and at most one ``side`` squared."""
    area, patch = size[0] * size[1], min(_CROP_PATCH, max(unit, side // 16))
    for limit, beyond in ((side // 2, area < (side // 2) ** 2), (side, area > side**2)):
        if beyond:
            return nearest_size(size, crop_sizes((limit // patch) ** 2, patch))
    width, height = (max(unit, length // unit * unit) for length in size)
    return width, height


_T2I = {"image_steps": 64, "text_guidance": 4.0, "joint_guidance": 0.0, "image_temperature": 1.0}
_I2I = _T2I | {"text_guidance": 2.5, "image_guidance": 4.0}
_FIXED: Any = {"settings": _I2I, "reads_instruction": False}
_MMU = {"text_steps": 128, "block_length": 256, "joint_guidance": 0.0}


class LuminaDiMOO(MMaDAParallelA):
    id = "D"
    name = "Lumina-DiMOO"
    called, trained_from = "dimoo", None
    repository, licence = "Alpha-VLLM/Lumina-DiMOO", None
    answers = frozenset({"image", "text"})
    image_advice = "put the vqvae folder of Lumina-DiMOO into {folder}"
    image_size = 1024
    text_length = 1024
    upstream_knows = ("text_guidance", "image_guidance", "reasoning_guidance", "block_length")
    upstream_speeds = ("exact", "cached")
    upstream_noise_bytes, upstream_text_bytes, upstream_draws_rows = 8, 16, True
    upstream_settings: ClassVar = {"image_steps": 64, "text_guidance": 4.0}
    tasks: ClassVar = {
        "generate": Task("image", 0, "what the picture shows", _T2I),
        "edit": Task("image", 1, "what to change", _I2I),
        "subject": Task("image", 1, "a new picture of the object in the picture", _I2I),
        "control": Task("image", 1, "what a picture with these edges, depth or pose shows", _I2I),
        "dense_prediction": Task("image", 1, f"one of {', '.join(_MAPS.values())}", **_FIXED),
        "multi_view": Task("image", 1, "the view to draw, such as left or back", **_FIXED),
        "style": Task("image", 2, "nothing: the second picture gives the style", **_FIXED),
        _PAINT: Task("image", 1, "what the whole picture shows, of which a part is masked", _T2I),
        "describe": Task("text", 1, "a question, or what to describe", _MMU, understood_size),
    }

    def layout(self, tokenizer: Any, config: Mapping[str, Any]) -> LayoutD:
        layout = LayoutD(tokenizer, config)
        layout.check_template()
        return layout

    def input_size(self, size: Size, side: int, unit: int) -> Size:
        return nearest_size(size, sizes_near(min(side, _EDIT_SIDE), unit))

    def upstream_policies(
        self, model: DenoisingModel, prompt: Prompt, settings: SamplerSettings
    ) -> Policies[Tensor, Tensor]:
        """The authors' samplers. Raises ``InputError`` for settings at which theirs stops."""
        layout = model.layout
        assert isinstance(layout, LayoutD)
        draws = bool(prompt.initial.image[0].numel())
        steps = image_steps(prompt, settings) if draws else block_steps(prompt, settings)
        plan = Plan.of(steps, prompt.batch, model.device)
        guidance = GuidanceD(layout, prompt, settings)
        cache = None
        if settings.reuses:
            codes = layout.image_choices
            cache = MLCache(model.transformer, codes if draws else slice(None), len(steps))
            if draws and prompt.image is None and settings.text_guidance <= 0:
                _check_cache_needs_guidance(cache)
        return Policies(plan, guidance, SelectionD(model, prompt, settings), cache)


def _check_cache_needs_guidance(cache: MLCache) -> None:
    if not all(map(cache.computes_all, range(cache.steps))):
        raise InputError(
            "speed is 'cached' and text_guidance 0 with the upstream preset: the reference stops "
            "with an UnboundLocalError; use text_guidance above 0, or the corrected preset."
        )


class LayoutD(LayoutA):
    """As variant A's, but the answer is ``<answer> boi rows eoi </answer>`` or ``<answer> text
    </answer>``. A second picture stands behind the first."""

    def __init__(self, tokenizer: Any, config: Mapping[str, Any]):
        super().__init__(tokenizer, config)
        pad = self.token_id("<|pad|>", {"<|pad|>": _PAD})
        self.text_choices = range(self.image_offset)
        ends = self.end_of_text, self.answer_end, pad
        self.ends = tuple(token for token in ends if token < self.image_offset)

    def encode(self, instruction: str, image: Tensor | None, initial: TokenState) -> Prompt:
        task = "edit" if initial.image[0].numel() else "describe"
        if image is None:
            task = "generate"
        return self.encode_task(task, instruction, image, None, initial)

    def encode_task(
        self,
        task: str,
        instruction: str,
        image: Tensor | None,
        reference: Tensor | None,
        initial: TokenState,
    ) -> Prompt:
        system, words = UNDERSTAND, instruction
        if task == _PAINT and (initial.image == MASKED).all():
            raise InputError("The task 'paint' needs a mask: paint what is to be drawn anew.")
        if task in ("generate", _PAINT):
            system, image = GENERATE, None
        elif task in _EDIT_TYPES:
            system, words = edit_template(_EDIT_TYPES[task](instruction), instruction)
        prompt = self.encode_template(system, words, image, reference, initial)
        return replace(prompt, task=task)

    def encode_template(
        self,
        system: str,
        words: str,
        image: Tensor | None,
        reference: Tensor | None,
        initial: TokenState,
    ) -> Prompt:
        """The prompt of a system prompt and the user's text. Pictures: codes (B, h, w)."""
        ids, unconditional = (
            self._templated(system, user).expand(initial.batch, -1)
            for user in (words, "<uncondition>")
        )
        return Prompt(ids, unconditional, image, initial, reference)

    def model_input(self, prompt: Prompt, state: TokenState, **drops: bool) -> ModelInput:
        if state.image[0].numel():
            return super().model_input(prompt, state, **drops)
        return self.text_input(self.prefix(prompt, **drops), state)

    def prefix(
        self, prompt: Prompt, *, drop_text: bool = False, drop_image: bool = False
    ) -> Tensor:
        words = prompt.without_text if drop_text else prompt.instruction
        pictures = () if drop_image else (prompt.image, prompt.reference)
        segments = [self._image_segment(codes) for codes in pictures if codes is not None]
        return torch.cat((words[:, :-1], *segments, words[:, -1:]), dim=1)

    def text_input(self, prefix: Tensor, state: TokenState) -> ModelInput:
        """``prefix`` (B, P) with an answer of text alone."""
        text = self.text_ids(state.text)
        ids = torch.cat(
            (prefix, column(prefix, self.answer), text, column(prefix, self.answer_end)), dim=1
        )
        places = torch.arange(text.shape[1], device=ids.device)
        return ModelInput(ids, places[:0], prefix.shape[1] + 1 + places)

    def released_text_input(self, prompt: Prompt, state: TokenState) -> ModelInput:
        """As the released code shows the picture: a newline after each W ids of ``boi rows eoi``,
        of which the last H + 2 are lost."""
        words, picture = prompt.instruction, prompt.image
        if picture is None:
            return self.model_input(prompt, state)
        height, width = picture.shape[1:]
        shown = self._image_segment(picture)[:, : height * width].unflatten(1, (height, width))
        newlines = shown.new_full((*shown.shape[:2], 1), self.newline)
        rows = torch.cat((shown, newlines), dim=2).flatten(1)
        return self.text_input(torch.cat((words[:, :-1], rows, words[:, -1:]), dim=1), state)


def image_steps(prompt: Prompt, settings: SamplerSettings) -> list[PlannedStep]:
    """Steps of the authors' image samplers: by the cosine of the masks at the start; all noise
    alike."""
    masked, total = masked_counts(prompt.initial.image), settings.image_steps
    steps = []
    for index in range(total):
        share = torch.cos(torch.tensor((index + 1) / total) * math.pi / 2)
        kept = (max(1, int((n * share).floor())) for n in masked)
        after: Counts = tuple(kept) if index < total - 1 else (0,) * len(masked)
        noise = settings.image_temperature
        steps.append(PlannedStep(image_masked_after=after, image_noise=noise))
    return steps


class GuidanceD:
    """Of an image: branches replace all before the answer. Of text: the branch without a condition
    is masked wherever something was given at the start, delimiters included."""

    def __init__(self, layout: LayoutD, prompt: Prompt, settings: SamplerSettings):
        self.settings, self.edits = settings, prompt.image is not None
        initial = prompt.initial
        if initial.image[0].numel():
            self.branches = {CONDITIONAL: layout.model_input(prompt, initial)}
            self.branches["without text"] = layout.model_input(prompt, initial, drop_text=True)
            if self.edits:
                kept = layout.model_input(prompt, initial, drop_image=True)
                self.branches["without image"] = kept
            return
        conditional = layout.released_text_input(prompt, initial)
        given = conditional.ids != layout.mask_id
        ids = torch.full_like(conditional.ids, layout.mask_id)
        masked = replace(conditional, ids=ids, fixed=given)
        self.branches = {CONDITIONAL: conditional, "masked": masked}

    def text_logits(self, outputs: BranchOutputs, index: Tensor) -> Tensor:
        return guided_text(outputs, index, self.settings.reasoning_guidance, "masked")

    def image_logits(self, outputs: BranchOutputs, updated: TokenState, index: Tensor) -> Tensor:
        text_scale, image_scale = self.settings.text_guidance, self.settings.image_guidance
        guided = conditional = outputs.image_logits(CONDITIONAL, index)
        if not self.edits:
            if text_scale <= 0:
                return conditional
            other = outputs.image_logits("without text", index)
            return (1 + text_scale) * conditional - text_scale * other
        scales = {"without text": text_scale, "without image": image_scale}
        if max(scales.values()) > 0:
            for name, scale in scales.items():
                if scale:
                    guided = guided + scale * (conditional - outputs.image_logits(name, index))
        return guided


class SelectionD:
    """Gumbel noise for image codes, drawn for the masked alone; text by float64 probabilities, with
    noise for the whole row from the global generator. A text that holds its end after a block gets
    no further ones: there the reference stops with a NameError."""

    def __init__(self, model: DenoisingModel, prompt: Prompt, settings: SamplerSettings):
        self.layout, self.settings = model.layout, settings
        self.generators: Generators = seeded_generators(settings.seeds(prompt.batch), model.device)
        self.dtype = model.transformer.dtype
        text, end = prompt.initial.text, model.layout.end_of_text
        self.length = text.shape[1]
        self.over = torch.zeros(prompt.batch, dtype=torch.bool, device=text.device)
        self.ends_before = (prompt.instruction == end).any(dim=1)
        self.steps_done = 0
        if not prompt.initial.image[0].numel():
            assert isinstance(model.layout, LayoutD)
            row = model.layout.released_text_input(prompt, prompt.initial)
            self.words = TextSelection(model, row, settings)

    def text(
        self, targets: Targets, before: TokenUpdate, logits: Callable[[Tensor], Tensor]
    ) -> TokenUpdate:
        if self.over.all():
            return before
        going = replace(targets, count=targets.count.masked_fill(self.over, 0))
        update = self.words.text(going, before, logits)
        self._count_step(update.after)
        return update

    def _count_step(self, text: Tensor) -> None:
        """After a block's last step, note the texts that are over."""
        self.steps_done += 1
        blocks = self.length // block_of(self.length, self.settings)
        if self.steps_done % (self.settings.text_steps // blocks) == 0:
            ended = (text == self.layout.end_of_text).any(dim=1)
            self.over = self.over | self.ends_before | ended

    def image(
        self, targets: Targets, before: TokenUpdate, logits: Callable[[Tensor], Tensor]
    ) -> TokenUpdate:
        positions, temperature = targets.positions, targets.noise
        if not positions.index.shape[1]:
            return before
        scores = logits(positions.index)
        noisy = scores
        if temperature:
            noisy = scores / temperature + self.gumbel(positions, self.layout.codebook_size)
        best = noisy.argmax(dim=-1)
        chances = scores.softmax(dim=-1).gather(-1, best[..., None])[..., 0]
        ranking = chances.clamp_min(1e-20).log() + temperature * self.gumbel(positions)
        kept = (positions.valid.sum(dim=1) - 1).minimum(targets.count).clamp_min(0)
        ranking = torch.where(positions.valid, ranking, torch.inf)
        least = ranking.sort(dim=1).values.gather(1, kept[:, None])
        return before.at(positions, best, chances, positions.valid & (ranking >= least))

    def gumbel(self, positions: MaskedPositions, *choices: int) -> Tensor:
        """(B, n, *choices) Gumbel noise in the model's dtype, drawn for masked positions alone."""
        device = positions.tokens.device

        def draw(generator: torch.Generator | None, count: int) -> Tensor:
            shape = count, *choices
            return torch.rand(shape, dtype=self.dtype, device=device, generator=generator)

        uniform = positions.draw(draw, self.generators)
        return -torch.log(-torch.log(uniform + 1e-20) + 1e-20)

    def finish(self, state: TokenState, guess: TokenState) -> TokenState:
        return state
