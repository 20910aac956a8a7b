"""ParaRL (arXiv 2511.09611 §3.3): rewards along the trajectory for text and picture that agree.

A step rolls out ``groups`` prompts ``group_size`` times each, scores what stands at
``scored_steps`` of the denoising steps, and raises the probability of the tokens that were revealed
there in rollouts that scored above their group.

The authors released no code. Where the paper is silent, this is done (see also
:mod:`~.objective` and :mod:`~.rollout`; each is a setting where it may matter):

- Group size 8, clip range 0.2, one update per rollout; with more, the first epoch's
  log-probabilities are those of the old policy.
- The objective and the KL term are means over rollouts and steps, skipped ones counting as 0.
- The KL term is to the policy before training ("base": the paper's appendix) or before the step
  ("old": its main text; has no gradient in the first inner epoch).
- The partial picture is completed by the model's likeliest codes given what the step decided;
  undecided text is left out.
- Rollouts are sampled without guidance, at temperature 1, in fewer steps than the paper's answers.
- Prompts are drawn without replacement, all of them before any returns.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...mmp_core.checkpoint.load import Model
from ...mmp_core.errors import InputError
from ..cases import Case, Pair, Reward
from ..loop.run import Callback, DivergenceError, PolicyRun, Progress
from ..rewards.weighted import Weighted, checked, described, name_of
from .objective import RewardScale, advantages, clipped_objective, kl_estimate, token_weights
from .rollout import (
    Group,
    Moments,
    Rollouts,
    alike,
    final_pairs,
    log_probs,
    roll_out,
    sample_pairs,
    trajectory_pairs,
)
from .settings import ParaRLSettings

if TYPE_CHECKING:
    from accelerate import Accelerator

    from ..weights.policies import Policy

HOPELESS = 10
"""Steps at the beginning that may go by with nothing to learn from."""


@dataclass
class Piece:
    """Moments of one forward, with what they are trained by. (m,) each, (K,) per token.

    ``advantage``: float32. ``share``: what one moment counts, 1 by all moments of the step.
    ``old``, ``reference``: log-probabilities, once known.
    """

    moments: Moments
    advantage: Tensor
    share: float
    old: Tensor | None = None
    reference: Tensor | None = None


class ParaRLRun(PolicyRun):
    """A ParaRL run in ``folder``: see :class:`PolicyRun` and the module.

    ``reward``: called with the pairs of all this process's groups of a step at once.
    ``reward_calls``: pairs scored so far, by all processes.
    """

    kind = "pararl"
    settings: ParaRLSettings

    def __init__(
        self,
        model: Model,
        cases: Sequence[Case],
        reward: Reward,
        settings: ParaRLSettings,
        folder: Path | str,
        *,
        policy: Policy,
        accelerator: Accelerator | None = None,
    ):
        super().__init__(model, cases, settings, folder, policy=policy, accelerator=accelerator)
        if settings.groups < self.ranks.count:
            raise InputError(
                f"There are {settings.groups} groups for {self.ranks.count} processes: give each "
                "at least one."
            )
        self.reward = reward
        self.scale, self.reward_calls = RewardScale(), 0
        self._latest: list[Rollouts] = []

    def train(self, callback: Callback | None = None, progress: Progress | None = None) -> None:
        """As :meth:`PolicyRun.train`. Raises ``InputError``, too, where none of the first
        :data:`HOPELESS` steps (or of all there are) had anything to learn from."""
        begun, learnt = self.step, False

        def followed(step: int, metrics: dict[str, float]) -> None:
            nonlocal learnt
            if callback is not None:
                callback(step, metrics)
            learnt = learnt or metrics["tokens"] > 0
            if not learnt and step - begun == min(HOPELESS, self.settings.steps):
                raise InputError(
                    f"All answers to each instruction scored the same in {step - begun} steps, so "
                    "that there was nothing to learn: raise text_temperature or group_size, take "
                    "fewer text_steps, or choose another reward."
                )

        super().train(followed, progress)

    def advance(self, progress: Progress | None = None) -> dict[str, float]:
        with self.gathered():
            rolled = self._roll_out(self.groups(), progress)
            rewards = self._score(rolled, progress)
        scale, everyone = self._rescaled(rolled, rewards)
        normalised = [scale.normalise(r) for r in rewards]
        found = [advantages(r, self.settings.std_floor) for r in normalised]
        pieces = self._pieces(rolled, found)
        metrics = self._summary(rolled, normalised, found)
        with self.recomputing():
            metrics |= self._update(pieces, progress)
        self.scale, self._latest = scale, rolled
        self.reward_calls += len(everyone)
        self.commit()
        return {
            "reward_mean": float(everyone.mean()),
            "reward_std": float(everyone.std(correction=0)),
            **metrics,
            "reward_calls": self.reward_calls,
        }

    def groups(self) -> list[Group]:
        """What this process rolls out at the present step."""
        seed = f"{self.settings.seed} {self.step}"
        return [
            Group.of(number, case, self.settings.group_size, seed)
            for number, case in self.drawn(self.settings.groups)
        ]

    def _roll_out(self, groups: list[Group], progress: Progress | None) -> list[Rollouts]:
        rolled: list[Rollouts] = []
        for members in alike(groups):
            before = sum(len(r.groups) for r in rolled)

            def tell(done: int, total: int, before: int = before, own: int = len(members)) -> None:
                progress("rollouts", before * total + done * own, len(groups) * total)

            rolled.append(self._rollouts_of(members, progress and tell))
        return rolled

    def _rollouts_of(
        self, groups: list[Group], progress: Callable[[int, int], None] | None
    ) -> Rollouts:
        settings = self.settings
        rollouts = roll_out(
            self.model,
            groups,
            settings.sampler,
            drawn=settings.scored_steps,
            micro_batch=settings.micro_batch,
            progress=progress,
        )
        if not rollouts.moments.finite.all():
            raise DivergenceError(
                f"The model's predictions in step {self.step + 1} are not finite: lower "
                "learning_rate and resume, or load the model in bfloat16 or float32. "
                f"{self.folder.last_good}"
            )
        return rollouts

    def _score(self, rolled: list[Rollouts], progress: Progress | None) -> list[Tensor]:
        """Raw rewards (groups, steps, size) of each; of an output-level reward, one step."""
        view = final_pairs if self.settings.reward_at == "output" else trajectory_pairs
        pairs = [view(self.model, r, micro_batch=self.settings.micro_batch) for r in rolled]
        together = [pair for part in pairs for pair in part]
        if progress:
            progress("rewards", 0, len(together))
        rewards = checked(self.reward, together, name_of(self.reward))
        parts = rewards.split([len(part) for part in pairs])
        return [p.view(len(r.groups), -1, r.size) for p, r in zip(parts, rolled, strict=True)]

    def _rescaled(
        self, rolled: list[Rollouts], rewards: list[Tensor]
    ) -> tuple[RewardScale, Tensor]:
        """The scale after this step's rewards of all processes, and these in the groups' order."""
        own = [
            (group.number, values.flatten().tolist())
            for r, found in zip(rolled, rewards, strict=True)
            for group, values in zip(r.groups, found, strict=True)
        ]
        everyone = torch.tensor([v for _, values in sorted(self.ranks.gather(own)) for v in values])
        return self.scale.including(everyone), everyone

    def _pieces(self, rolled: list[Rollouts], found: list[tuple[Tensor, Tensor]]) -> list[Piece]:
        """The moments of groups with spread, cut to the micro-batch."""
        (count,) = self.ranks.sum([sum(len(r.moments) for r in rolled)])
        pieces = []
        for r, (advantage, spread) in zip(rolled, found, strict=True):
            advantage = advantage.expand(r.shape).flatten()
            rows = spread[..., None].expand(r.shape).flatten().nonzero()[:, 0]
            for part in rows.split(self.settings.micro_batch) if len(rows) else ():
                own = r.moments[part.to(self.model.device)]
                pieces.append(Piece(own, advantage[part].to(self.model.device), 1 / count))
        first = rolled[0].moments[:1]
        nothing = torch.zeros(1, device=self.model.device)
        return pieces + [Piece(first, nothing, 0.0) for _ in range(self.idle(len(pieces)))]

    def _update(self, pieces: list[Piece], progress: Progress | None) -> dict[str, float]:
        """The inner epochs. Metrics are means over them; ``loss`` is what is minimised."""
        settings, sums = self.settings, defaultdict(float)
        (trained,) = self.ranks.sum([len(pieces)])
        norms = []
        for _ in range(settings.inner_epochs if trained else 0):
            epoch_loss = 0.0
            for number, piece in enumerate(pieces):
                if progress and not self._updating:
                    progress("update", number, len(pieces))
                part = self._backward(piece)
                epoch_loss += part["loss"]
                for name, value in part.items():
                    sums[name] += value
            (epoch_loss,) = self.ranks.sum([epoch_loss])
            norms.append(self.apply_gradients(epoch_loss))
        names = ("loss", "kl", "clipped", "tokens")
        loss, kl, clipped, tokens = self.ranks.sum([sums[name] for name in names])
        epochs = max(1, len(norms))
        return {
            "loss": loss / epochs,
            "kl": kl / max(1, tokens),
            "clip_fraction": clipped / max(1, tokens),
            "grad_norm": sum(norms) / epochs,
            "tokens": tokens / epochs,
        }

    def _backward(self, piece: Piece) -> dict[str, float]:
        """Add the gradient of one piece; its loss, and sums over its tokens."""
        settings, temperature = self.settings, self.settings.sampler.text_temperature
        if settings.kl and settings.kl_reference == "base" and piece.reference is None:
            with torch.no_grad(), self.policy.reference():
                piece.reference, _ = log_probs(self.model, piece.moments, temperature)
        found, owner = log_probs(self.model, piece.moments, temperature)
        if piece.old is None:
            piece.old = found.detach()
        gain, clipped = clipped_objective(found, piece.old, piece.advantage[owner], settings.clip)
        divergence = torch.zeros_like(found)
        if settings.kl:
            reference = piece.old if piece.reference is None else piece.reference
            divergence = kl_estimate(found, reference)
        weights = token_weights(owner, len(piece.moments)) * piece.share
        loss = -((gain - settings.kl * divergence) * weights).sum()
        loss.backward()
        told = (loss, divergence.sum(), clipped.sum(), torch.tensor(len(found)))
        counts = float(piece.share > 0)
        return {
            name: counts * float(value.detach())
            for name, value in zip(("loss", "kl", "clipped", "tokens"), told, strict=True)
        }

    def _summary(
        self,
        rolled: list[Rollouts],
        normalised: list[Tensor],
        found: list[tuple[Tensor, Tensor]],
    ) -> dict[str, float]:
        """Metrics known before the update, over all processes."""
        end = self.model.layout.end_of_text
        sums = [
            sum(float(r.sum()) for r in normalised),
            sum(float(a.abs().sum()) for a, _ in found),
            sum(a.numel() for a, _ in found),
            sum(float((~spread).sum()) for _, spread in found),
            sum(float((r.final.text != end).sum()) for r in rolled),
            sum(r.final.batch for r in rolled),
        ]
        reward, advantage, scored, skipped, words, rollouts = self.ranks.sum(sums)
        parts = self.reward.take_means() if isinstance(self.reward, Weighted) else {}
        means = self.ranks.sum([mean / self.ranks.count for mean in parts.values()])
        return {
            **{f"reward_{name}": mean for name, mean in zip(parts, means, strict=True)},
            "normalised_reward": reward / scored,
            "advantage": advantage / scored,
            "groups_skipped": skipped,
            "text_length": words / rollouts,
        }

    def samples(self, count: int = 8) -> list[Pair]:
        """Final pairs of the last step, one per group as far as there are, for previews."""
        shown: list[Pair] = []
        for rollouts in self._latest:
            shown += sample_pairs(self.model, rollouts, count - len(shown))
        return shown

    def extra_state(self) -> dict[str, Any]:
        return {
            "scale": asdict(self.scale),
            "reward_calls": self.reward_calls,
            "reward": described(self.reward),
        }

    def load_extra_state(self, state: dict[str, Any]) -> None:
        self.folder.refuse_changes(state, self.extra_state(), ["reward"])
        self.scale = RewardScale(**state["scale"])
        self.reward_calls = state["reward_calls"]

    def metadata(self) -> dict[str, str]:
        return {**super().metadata(), "reward": described(self.reward)}
