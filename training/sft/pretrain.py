"""The SFT loop: seeded by step, resumable at any step, its files whole or absent."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ...mmp_core.errors import InputError
from ...mmp_core.model.transformer import MaskedDiffusionTransformer
from ...mmp_core.variants.base import Layout
from ..loop.folder import RunFolder
from .batches import Batch, Windows
from .loss import Example, sft_losses


@dataclass(frozen=True)
class SFTSettings:
    """How to train. Rates are per step; ``learning_rate`` is held, then falls linearly to 0.

    ``decay_steps``: length of the fall at the end. ``drop_text``, ``drop_image``, ``drop_both``:
    probabilities of training a guidance branch (paper: 10 % each). ``ema``: decay of the averaged
    weights, which are the result. ``bf16``: autocast. ``muon``: orthogonalised updates for the
    blocks' matrices (AdamW for all else), needs torch >= 2.9.

    ``window``: the examples of so many steps are sorted by shape together, so that a forward gets
    many alike; more is faster on a GPU. ``micro_batch``: at most so many examples per forward.
    ``workers``: processes that prepare examples ahead; 0 prepares them in between.
    """

    steps: int
    batch_size: int = 128
    window: int = 1
    micro_batch: int = 256
    workers: int = 0
    learning_rate: float = 1e-3
    warmup_steps: int = 100
    decay_steps: int = 1000
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    ema: float = 0.999
    drop_text: float = 0.1
    drop_image: float = 0.1
    drop_both: float = 0.1
    bf16: bool = True
    muon: bool = False
    seed: int = 0
    checkpoint_every: int = 200
    log_every: int = 20

    def learning_rate_at(self, step: int) -> float:
        warm = min(1.0, (step + 1) / max(1, self.warmup_steps))
        left = min(1.0, (self.steps - step) / max(1, self.decay_steps))
        return self.learning_rate * warm * left


class SFTRun:
    """Weights, optimizers and averaged weights of one run, saved in ``folder``.

    ``dataset[i]`` is example ``i``; see :class:`~.batches.Windows` for which step trains on which.
    Under ``torchrun`` (an initialised process group) each rank takes every n-th example and
    gradients are summed; rank 0 writes the files. Masks are drawn per rank, so a run repeats
    exactly on the same number of ranks.
    """

    def __init__(
        self,
        model: MaskedDiffusionTransformer,
        layout: Layout,
        dataset: Sequence[Example],
        settings: SFTSettings,
        folder: Path,
    ):
        self.model, self.layout, self.dataset = model, layout, dataset
        self.settings, self.folder = settings, folder
        self.files = RunFolder(folder)
        self.step = 0
        self.device = next(model.parameters()).device
        self.average = {name: p.detach().clone() for name, p in model.named_parameters()}
        self.optimizers = _optimizers(model, settings)
        distributed = dist.is_available() and dist.is_initialized()
        self.rank = dist.get_rank() if distributed else 0
        self.ranks = dist.get_world_size() if distributed else 1

    @property
    def state_file(self) -> Path:
        return self.files.state_file

    def train(self, callback: Callable[[int, dict[str, float]], Any] | None = None) -> None:
        """Run to ``settings.steps``; ``callback(step, metrics)`` follows each logged step.

        A checkpoint is written every ``checkpoint_every`` steps, at the end, and when interrupted.
        Raises ``InputError`` when the loss is not finite; the last checkpoint is then kept.
        """
        began, metrics = time.perf_counter(), []
        try:
            for batch in self.batches():
                metrics.append(self.advance(batch))
                if self.step % self.settings.log_every == 0:
                    seconds = (time.perf_counter() - began) / len(metrics)
                    self._log(metrics, seconds, callback)
                    began, metrics = time.perf_counter(), []
                if self.step % self.settings.checkpoint_every == 0:
                    self.save()
        except KeyboardInterrupt:
            self.save()
            raise
        self.save()

    def batches(self) -> Iterator[Batch]:
        """What each of the remaining steps trains on."""
        settings, first = self.settings, self.step
        loader = DataLoader(
            Windows(self.dataset, settings, self.rank, self.ranks),
            batch_size=None,
            sampler=range(first // settings.window, math.ceil(settings.steps / settings.window)),
            num_workers=settings.workers,
        )
        skipped = first % settings.window
        steps = (batch for window in loader for batch in window)
        return islice(steps, skipped, skipped + settings.steps - first)

    def advance(self, batch: Batch) -> dict[str, float]:
        """One optimizer step; the losses per example and the gradient's norm."""
        settings, size = self.settings, self.settings.batch_size
        seed = settings.seed * 1_000_003 + self.step
        rng = torch.Generator().manual_seed(seed * 1_009 + self.rank)
        sums = torch.zeros(2, device=self.device)
        for stacked, condition in batch:
            stacked = stacked.to(self.device)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=settings.bf16):
                losses = sft_losses(self.model, self.layout, stacked, condition, rng)
            ((losses.text + losses.image) / size).backward()
            sums += torch.stack((losses.text, losses.image)).detach().float()
        self._reduce(sums)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), settings.clip_norm)
        if not math.isfinite(float(norm)):
            raise InputError(
                f"The gradient at step {self.step} is not finite (loss {sums.sum() / size:g}). "
                f"Lower the learning rate and resume. {self.files.last_good}"
            )
        self._update()
        text, image = (sums / size).tolist()
        return {"text_loss": text, "image_loss": image, "grad_norm": float(norm)}

    def _reduce(self, sums: Tensor) -> None:
        """Sum gradients and ``sums`` over the ranks, in place."""
        if self.ranks == 1:
            return
        grads = [p.grad for p in self.model.parameters() if p.grad is not None]
        flat = torch.cat([*(g.flatten() for g in grads), sums])
        dist.all_reduce(flat)
        sums.copy_(flat[-len(sums) :])
        parts = flat[: -len(sums)].split([g.numel() for g in grads])
        torch._foreach_copy_(grads, [p.view_as(g) for p, g in zip(parts, grads, strict=True)])

    def _update(self) -> None:
        rate = self.settings.learning_rate_at(self.step)
        for optimizer in self.optimizers:
            for parameters in optimizer.param_groups:
                parameters["lr"] = rate
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.step += 1
        decay = min(self.settings.ema, self.step / (self.step + 10))
        names, weights = zip(*self.model.named_parameters(), strict=True)
        torch._foreach_lerp_(
            [self.average[n] for n in names], [w.detach() for w in weights], 1 - decay
        )

    def _log(self, metrics: list[dict[str, float]], seconds: float, callback) -> None:
        if self.rank != 0:
            return
        line = {k: sum(m[k] for m in metrics) / len(metrics) for k in metrics[0]}
        line |= {"step": self.step, "seconds_per_step": seconds}
        line["learning_rate"] = self.settings.learning_rate_at(self.step - 1)
        self.files.log(line)
        if callback is not None:
            callback(self.step, line)

    def save(self) -> None:
        if self.rank != 0:
            return
        self.files.write(
            {
                "step": self.step,
                "settings": asdict(self.settings),
                "model": self.model.state_dict(),
                "average": self.average,
                "optimizers": [o.state_dict() for o in self.optimizers],
            }
        )

    def resume(self) -> bool:
        """Continue from the folder's checkpoint; ``False`` when there is none.

        Raises ``InputError`` where the settings would give other examples than were begun with.
        """
        state = self.files.read(self.device)
        if state is None:
            return False
        self.files.refuse_changes(
            state["settings"], asdict(self.settings), ["batch_size", "window", "seed"]
        )
        self.model.load_state_dict(state["model"])
        self.average = state["average"]
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step = state["step"]
        if self.rank == 0:
            self.files.forget_after(self.step)
        return True


def _optimizers(model: nn.Module, settings: SFTSettings) -> list[torch.optim.Optimizer]:
    matrices, others = [], []
    for name, parameter in model.named_parameters():
        hidden = settings.muon and parameter.ndim == 2 and ".blocks." in name
        (matrices if hidden else others).append(parameter)
    common = {"lr": settings.learning_rate, "weight_decay": settings.weight_decay}
    found = [torch.optim.AdamW(others, betas=(0.9, 0.95), **common)]
    if matrices:
        if not hasattr(torch.optim, "Muon"):
            raise InputError("muon needs torch >= 2.9; use muon=False or update torch.")
        found.append(torch.optim.Muon(matrices, adjust_lr_fn="match_rms_adamw", **common))
    return found


def initialise(model: MaskedDiffusionTransformer, seed: int) -> None:
    """Fill a model to be trained from scratch: normal(0, 0.02), residual outputs scaled down."""
    rng = torch.Generator().manual_seed(seed)
    scale = (2 * model.config.n_layers) ** -0.5
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            nn.init.ones_(parameter)
        else:
            residual = name.endswith(("attn_out.weight", ".ff_out.weight")) and ".blocks." in name
            nn.init.normal_(parameter, std=0.02 * (scale if residual else 1.0), generator=rng)
