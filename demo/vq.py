"""The demo's image tokenizer: a diffusers-format VQModel whose codes are the world's patches.

The codebook is given, not learnt: one vector per patch, made of one-hot parts for shape, colour
and background, so that similar patches have near but distinct vectors. Encoder and decoder are
regressed onto it from rendered scenes, the decoder also by how well each cell is told from all
other patches: a decoder of convolutions finds its place inside a cell only by the cell's
neighbours, so shapes sharpen slowly under squared error alone.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ..mmp_core.files import replacing
from ..mmp_core.image.amused import AmusedVQ
from .render import PATCH, patches
from .scenes import BACKGROUNDS, COLOURS, CONTENTS, SHAPES
from .tokenizer import CODES

WIDTH = 1 + len(SHAPES) + len(COLOURS) + len(BACKGROUNDS)
_LEVELS = 6


def vq_config() -> dict[str, Any]:
    return {
        "_class_name": "VQModel",
        "act_fn": "silu",
        "block_out_channels": [16, 16, 32, 64, 128, 128],
        "down_block_types": ["DownEncoderBlock2D"] * _LEVELS,
        "in_channels": 3,
        "latent_channels": WIDTH,
        "layers_per_block": 1,
        "lookup_from_codebook": True,
        "mid_block_add_attention": False,
        "norm_num_groups": 8,
        "norm_type": "group",
        "num_vq_embeddings": CODES,
        "out_channels": 3,
        "sample_size": 128,
        "up_block_types": ["UpDecoderBlock2D"] * _LEVELS,
        "vq_embed_dim": None,
    }


def codebook() -> Tensor:
    """(codes, WIDTH) float32, entries 0 or 1; an empty cell has a shape part of its own."""
    rows = torch.zeros(CODES, WIDTH)
    for code in range(CODES):
        background, content = divmod(code, len(CONTENTS))
        rows[code, 1 + len(SHAPES) + len(COLOURS) + background] = 1
        item = CONTENTS[content]
        if item is None:
            rows[code, 0] = 1
        else:
            shape, colour = item
            rows[code, 1 + SHAPES.index(shape)] = 1
            rows[code, 1 + len(SHAPES) + COLOURS.index(colour)] = 1
    return rows


def random_codes(rng: np.random.Generator, batch: int, grid: tuple[int, int]) -> np.ndarray:
    """(batch, h, w) codes: one background per picture, two thirds of the cells filled."""
    contents = rng.integers(1, len(CONTENTS), (batch, *grid)) * (rng.random((batch, *grid)) < 0.67)
    return contents + len(CONTENTS) * rng.integers(0, len(BACKGROUNDS), (batch, 1, 1))


@functools.cache
def _patches_on(device: torch.device) -> Tensor:
    return torch.from_numpy(patches()).to(device)


def pixels_of(codes: Tensor) -> Tensor:
    """(B, 3, 32h, 32w) float32 in [0, 1] of (B, h, w) codes, on their device."""
    tiles = _patches_on(codes.device)[codes].permute(0, 5, 1, 3, 2, 4)
    batch, height, width = codes.shape
    return tiles.reshape(batch, 3, PATCH * height, PATCH * width).float() / 255


def train_vq(
    folder: Path, *, encoder_steps: int, decoder_steps: int, device: str, seed: int = 0
) -> None:
    """Regress encoder and decoder, each on its own, and write ``folder/vqvae``."""
    torch.manual_seed(seed)
    model = AmusedVQ(vq_config()).to(device)
    with torch.no_grad():
        model.get_parameter("quantize.embedding.weight").copy_(codebook())
    known = pixels_of(torch.arange(CODES, device=device).view(-1, 1, 1)).flatten(1)

    def encoder_error(codes: Tensor, pixels: Tensor) -> Tensor:
        noise = torch.randn_like(pixels) * 0.05 * torch.rand((), device=device)
        return F.mse_loss(model.latents(pixels + noise), model.vectors(codes).detach())

    def decoder_error(codes: Tensor, pixels: Tensor) -> Tensor:
        decoded = model.decode_vectors(model.vectors(codes).detach())
        cells = F.unfold(decoded, PATCH, stride=PATCH).transpose(1, 2).flatten(0, 1)
        likeness = cells @ known.T - (known**2).sum(dim=1) / 2
        told_apart = F.cross_entropy(likeness, codes.flatten())
        return 100 * F.mse_loss(decoded, pixels) + 0.3 * told_apart

    encoder = nn.ModuleList([model.encoder, model.quant_conv])
    decoder = nn.ModuleList([model.post_quant_conv, model.decoder])
    regress(encoder, encoder_error, _batches(seed, device), encoder_steps)
    regress(decoder, decoder_error, _batches(seed + 1, device), decoder_steps)
    save_vq(model, folder / "vqvae", vq_config())


def _batches(seed: int, device: str) -> Callable[[int], Batch]:
    """Random scenes, of some 80 cells together."""
    rng = np.random.default_rng(seed)

    def batch(step: int) -> Batch:
        height, width = rng.choice([3, 4, 4, 5], 2)
        codes = random_codes(rng, max(2, 80 // (height * width)), (height, width))
        codes = torch.from_numpy(codes).to(device)
        return codes, pixels_of(codes)

    return batch


Batch = tuple[Tensor, Tensor]
"""Codes (B, h, w) and their pictures (B, 3, H, W), in [0, 1]."""


def regress(
    module: nn.Module,
    error: Callable[[Tensor, Tensor], Tensor],
    batch: Callable[[int], Batch],
    steps: int,
    *,
    state: Path | None = None,
    progress: Callable[[int], Any] | None = None,
) -> None:
    """Minimise ``error`` over ``module`` on the ``batch`` of each step; averages the weights.

    ``state``: a file that it goes on from if it exists. It is written every 100 steps, at the end,
    then with the averaged weights alone, and when ``progress``, called after each step, raises.
    """
    optimizer = torch.optim.AdamW(module.parameters(), lr=5e-4, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-4, total_steps=steps)
    average = AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(0.98))
    parts = {"module": module, "optimizer": optimizer, "schedule": schedule, "average": average}
    saved: dict[str, Any] = {}
    if state is not None and state.exists():
        saved = torch.load(state, map_location="cpu", weights_only=True)
        for name in saved.keys() - {"step"}:
            parts[name].load_state_dict(saved[name])
        if "average" not in saved:
            return

    def save(step: int, *names: str) -> None:
        if state is not None:
            values = {name: parts[name].state_dict() for name in names or parts}
            with replacing(state) as path:
                torch.save(values | {"step": step}, path)

    for step in range(saved.get("step", 0), steps):
        loss = error(*batch(step))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(module.parameters(), 10.0)
        optimizer.step()
        schedule.step()
        average.update_parameters(module)
        if step % 100 == 99:
            print(f"image tokenizer step {step + 1}: error {loss.item():.4f}", flush=True)
            save(step + 1)
        if progress is not None:
            try:
                progress(step + 1)
            except BaseException:
                save(step + 1)
                raise
    module.load_state_dict(average.module.state_dict())
    save(steps, "module")


def save_vq(model: AmusedVQ, folder: Path, config: dict[str, Any]) -> None:
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    weights = {name: tensor.contiguous().cpu() for name, tensor in model.state_dict().items()}
    with replacing(folder / "diffusion_pytorch_model.safetensors") as path:
        save_file(weights, path, metadata={"format": "pt"})
