"""The book's image tokenizer: a diffusers-format VQModel with a code for each patch of a drawing.

As the toy world's, its codebook is given: a vector of one-hot parts for what a patch is of, so that
similar patches have near but distinct vectors. A code says what thing a patch is of, not what light
it stands in or what is behind it: the decoder sees that from the codes around it. Two parts more
say whether a patch is in an odd row or column, by which the decoder finds its place inside it.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from ...mmp_core.image.amused import AmusedVQ
from ..vq import Batch, regress, save_vq, vq_config
from .drawing import paint
from .scenes import (
    BOX,
    COLOURS,
    CONTENTS,
    FIRST_THING,
    GRID,
    GROUNDS,
    KINDS,
    PATCH,
    SIZES,
    SLOTS,
    TIMES,
    Scene,
    Slot,
    Thing,
    code_count,
    thing_codes,
)

_PARTS = (TIMES, GROUNDS, range(GRID), range(GRID), KINDS, ("", *COLOURS), SIZES, range(BOX[0]))
_PARTS += (range(BOX[1]),)
_AT = sum(map(len, _PARTS))
WIDTH = _AT + 2
CODE_WEIGHT = 4.0
"""What the error of a patch of a thing counts; most patches are landscape."""
FINE_WEIGHT = 30.0
"""What the error of fine lines counts more (stars, ripples, blades of grass): they are few pixels,
and a decoder that leaves them out is hardly wrong otherwise."""


def config() -> dict[str, Any]:
    sizes = {"latent_channels": WIDTH, "num_vq_embeddings": code_count()}
    return vq_config() | sizes | {"sample_size": GRID * PATCH, "mid_block_add_attention": True}


def codebook() -> Tensor:
    """(codes, WIDTH) float32, entries 0 or 1, of the last two -1 or 1."""
    rows = torch.zeros(code_count(), WIDTH)
    starts = np.cumsum([0, *map(len, _PARTS[:-1])])

    def mark(code: int, at: tuple[int, int], parts: dict[int, Any]) -> None:
        rows[code, _AT:] = torch.tensor([1.0 - 2 * (index % 2) for index in at])
        for part, value in parts.items():
            rows[code, starts[part] + list(_PARTS[part]).index(value)] = 1

    for time in TIMES:
        for ground in GROUNDS:
            for row, codes in enumerate(Scene(time, ground).codes()):
                for column, code in enumerate(codes):
                    of = {0: time} if row < GRID // 2 else {1: ground}
                    mark(code, (row, column), of | {2: row, 3: column})
    for thing in (thing for things in CONTENTS.values() for thing in things):
        for (row, column), code in np.ndenumerate(thing_codes(thing)):
            if code >= 0:
                looks = {4: thing.kind, 5: thing.colour, 6: thing.size}
                mark(int(code), (row, column), looks | {7: row, 8: column})
    return rows


def crowded(rng: random.Random) -> Scene:
    """A scene with more in it than a page has, and kinds more than once: more to learn from."""

    def content(slot: Slot) -> Thing | None:
        return rng.choice(CONTENTS[slot.layer]) if rng.random() < 0.6 else None

    return Scene(rng.choice(TIMES), rng.choice(GROUNDS), tuple(map(content, SLOTS)))


def batches(seed: int, pictures: int, device: str) -> Callable[[int], Batch]:
    """Crowded scenes; the same of each step, so that training can be resumed."""

    def batch(step: int) -> Batch:
        rng = random.Random(f"{seed} {step}")
        torch.manual_seed(step)  # of the noise that the step adds
        scenes = [crowded(rng) for _ in range(pictures)]
        pixels = torch.from_numpy(np.stack([paint(scene) for scene in scenes])).to(device)
        codes = torch.tensor([scene.codes() for scene in scenes], device=device)
        return codes, pixels.permute(0, 3, 1, 2).float() / 255

    return batch


def fine_weight(pixels: Tensor) -> Tensor:
    """(B, 1, H, W) of (B, 3, H, W) in [0, 1]: 1 where a picture is smooth, more around what differs
    from the mean of the 9×9 pixels around it."""
    smooth = F.avg_pool2d(pixels, 9, 1, 4, count_include_pad=False)
    fine = F.max_pool2d((pixels - smooth).abs().mean(dim=1, keepdim=True), 3, 1, 1)
    return 1 + FINE_WEIGHT * fine**0.7


def train_vq(
    folder: Path,
    *,
    device: str,
    encoder_steps: int,
    decoder_steps: int,
    pictures: int,
    start: Path | None = None,
    progress: Callable[[int], Any] | None = None,
) -> None:
    """Regress encoder and decoder, each on its own, on so many ``pictures`` a step, and write
    ``folder/vqvae``. ``start``: a folder whose ``vqvae`` has the weights to begin with; parts of no
    steps keep them. What ``progress`` raises ends it for now: the same call goes on from there."""
    torch.manual_seed(0)
    model = AmusedVQ(config()).to(device)
    if start:
        weights = load_file(start / "vqvae" / "diffusion_pytorch_model.safetensors")
        model.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
    with torch.no_grad():
        model.get_parameter("quantize.embedding.weight").copy_(codebook())

    def encoder_error(codes: Tensor, pixels: Tensor) -> Tensor:
        noise = torch.randn_like(pixels) * 0.05 * torch.rand((), device=device)
        with torch.autocast(device, torch.bfloat16):
            latents = model.latents(pixels + noise)
        return F.mse_loss(latents.float(), model.vectors(codes).detach())

    def decoder_error(codes: Tensor, pixels: Tensor) -> Tensor:
        with torch.autocast(device, torch.bfloat16):
            decoded = model.decode_vectors(model.vectors(codes).detach()).float()
        weight = torch.where(codes >= FIRST_THING, CODE_WEIGHT, 1.0)[:, None]
        weight = F.interpolate(weight / weight.mean(), scale_factor=PATCH, mode="nearest")
        weight = weight * fine_weight(pixels)
        gap = decoded - pixels
        edges = (gap.diff(dim=2).abs() * weight[:, :, 1:]).mean()
        edges += (gap.diff(dim=3).abs() * weight[:, :, :, 1:]).mean()
        return 10 * ((gap.abs() + 4 * gap**2) * weight).mean() + 10 * edges

    parts = (
        ("encoder", [model.encoder, model.quant_conv], encoder_error, encoder_steps),
        ("decoder", [model.post_quant_conv, model.decoder], decoder_error, decoder_steps),
    )
    folder.mkdir(parents=True, exist_ok=True)
    for number, (name, modules, error, steps) in enumerate(parts):
        state, draw = folder / f"{name}.pt", batches(number, pictures, device)
        if steps:
            regress(nn.ModuleList(modules), error, draw, steps, state=state, progress=progress)
    save_vq(model.bfloat16(), folder / "vqvae", config())
    for name, *_ in parts:
        (folder / f"{name}.pt").unlink(missing_ok=True)
