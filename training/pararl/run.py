"""ParaRL (arXiv 2511.09611 §3.3): rewards along the trajectory for text and picture that agree.

A step rolls out ``groups`` prompts ``group_size`` times each, scores the tokens as they are after
``scored_steps`` of the denoising steps, and raises the probability of the tokens that those steps
unmasked in rollouts that scored above the mean of their group.

The authors released no code. Where the paper is silent, this is done (see also
:mod:`~.objective` and :mod:`~.rollout`; each is a setting where it may matter):

- Group size 8, clip range 0.2, one update per rollout; with more, the log-probs of the first epoch
  are those of the old policy.
- The objective and the KL term are means over rollouts and steps, skipped ones counting as 0.
- The KL term is to the policy before training ("base": the paper's appendix) or before the step
  ("old": its main text; has no gradient in the first inner epoch).
- The partial picture is completed by the model's likeliest codes given the tokens after the step;
  masked text is left out.
- A step may be judged by its gain, the reward after it minus that before it, instead of by the
  reward after it ("trajectory", as in the paper), which earlier steps have a share in.
- Rollouts are sampled without guidance, at temperature 1, in fewer steps than the paper's answers;
  with guidance it is the guided policy that is trained, through all its branches.
- Prompts are drawn without replacement, all of them before any returns.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...mmp_core.checkpoint.load import Model
from ...mmp_core.errors import InputError, shown
from ...mmp_core.outside import check_kind, field
from ..cases import Case, Cases, Pair, Reward
from ..loop.draw import draw_cases
from ..loop.run import (
    DivergenceError,
    PhaseCallback,
    StepCallback,
    TrainingRun,
    Waiting,
    recomputing,
)
from ..rewards.weighted import Weighted, checked, described, name_of
from ..samples import answers
from ..weights.policies import Policy
from .log_probs import log_probs
from .objective import RewardScale, advantages, clipped_objective, kl_estimate, token_weights
from .pairs import final_pairs, sample_pairs
from .rollout import Group, Rollouts, ScoredSteps, group_by_shape, roll_out
from .scores import Scores, score
from .settings import ParaRLSettings
from .votes import MOST_ANSWERS, Votes, VotingRound, forget_rollouts

_CALLS = field(int, 0, 2**53)
HOPELESS = 10
"""Steps after which a run ends in which all rewards of each group have been equal so far."""


@dataclass
class ScoredBatch:
    """Scored steps of one forward, with what they are trained by.

    ``advantage``: (m,) float32. ``share``: what one step counts, 1 by all steps of the rollouts.
    ``old``, ``reference``: (K,) log-probs, once known.
    """

    steps: ScoredSteps
    advantage: Tensor
    share: float
    old: Tensor | None = None
    reference: Tensor | None = None


class ParaRLRun(TrainingRun):
    """A ParaRL run in ``folder``: see :class:`TrainingRun`, which takes ``options``, too, and the
    module. Held-out cases are measured by the reward of one answer each, always the same seeds.

    ``reward``: called with the pairs of all this process's groups of a step at once; with
    :class:`Votes` each step ends in :class:`Waiting` until its answers are voted on, the scored
    pairs are the final ones, and held-out cases are measured by the loss of their targets.
    ``reward_calls``: pairs scored so far, by all processes.
    """

    kind = "pararl"
    held_out_name, held_out_sign = "held_out_reward", -1
    settings: ParaRLSettings

    def __init__(
        self,
        model: Model,
        cases: Cases,
        reward: Reward,
        settings: ParaRLSettings,
        folder: Path | str,
        *,
        policy: Policy,
        **options: Any,
    ):
        check_kind(settings, ParaRLSettings, "settings", "settings of ParaRL")
        check_kind(reward, Callable, "reward", "a function")
        super().__init__(model, cases, settings, folder, policy=policy, **options)
        for case in self.watch.watched.guard:
            case.needed_target()
        if settings.groups < self.ranks.count:
            raise InputError(
                f"There are {settings.groups} groups for {self.ranks.count} processes: give each "
                "at least one."
            )
        self.reward = reward
        if isinstance(reward, Votes):
            self._prepare_votes()
        self.scale, self.reward_calls = RewardScale(), 0
        self._has_learnt, self._latest = False, list[Rollouts]()

    def train(
        self, callback: StepCallback | None = None, progress: PhaseCallback | None = None
    ) -> None:
        """As :meth:`TrainingRun.train`. Raises ``InputError``, too, where none of the first
        :data:`HOPELESS` steps (or of all there are) had anything to learn from."""
        begun = self.step

        def check_for_progress(step: int, metrics: dict[str, float]) -> None:
            if callback is not None:
                callback(step, metrics)
            if not self._has_learnt and step - begun == min(HOPELESS, self.settings.steps):
                raise InputError(
                    f"All answers to each instruction scored the same in {step - begun} steps, so "
                    "that there was nothing to learn: raise text_temperature or group_size, take "
                    "fewer text_steps, or choose another reward."
                )

        super().train(check_for_progress, progress)

    def advance(self, progress: PhaseCallback | None = None) -> dict[str, float]:
        with self.policy.gathered():
            if isinstance(self.reward, Votes):
                rolled, scores = self._voted(progress)
            else:
                rolled = self._roll_out(self.groups(), progress)
                scores = score(self.model, rolled, self.reward, self.settings, progress)
        all_rewards = self._in_order(rolled, scores.rewards)
        scale = self.scale.including(self._in_order(rolled, scores.judged))
        normalised = [scale.normalise(r) for r in scores.judged]
        advantage = [advantages(r, self.settings.std_floor) for r in normalised]
        batches = self._batches(rolled, advantage)
        metrics = self._summary(rolled, normalised, advantage)
        with recomputing(self.model.transformer, self.settings.gradient_checkpointing):
            metrics |= self._update(batches, progress)
        self.scale, self._latest = scale, rolled
        self._has_learnt = self._has_learnt or metrics["tokens"] > 0
        self.reward_calls += int(self.ranks.sum([scores.calls])[0])
        self.commit()
        return {
            "reward_mean": float(all_rewards.mean()),
            "reward_std": float(all_rewards.std(correction=0)),
            **metrics,
            "reward_calls": self.reward_calls,
        }

    def held_out_loss(
        self, cases: Sequence[Case], progress: Callable[[int, int], Any] | None
    ) -> float:
        """Minus the mean reward of one answer to each; with votes, the loss of their targets."""
        if isinstance(self.reward, Votes):
            return super().held_out_loss(cases, progress)
        mean = 0.0
        if self.ranks.first:
            pairs = answers(
                self.model,
                cases,
                seed=self.settings.seed,
                sampler=self.settings.sampler,
                micro_batch=self.settings.micro_batch,
                progress=progress,
            )
            mean = float(checked(self.reward, pairs, name_of(self.reward)).mean())
            if isinstance(self.reward, Weighted):
                self.reward.take_sums()  # not of a step
        (mean,) = self.ranks.sum([mean])
        return -mean

    def groups(self) -> list[Group]:
        """What this process rolls out at the present step."""
        settings, seed = self.settings, f"{self.settings.seed} {self.step}"
        drawn = draw_cases(
            self.cases,
            self.step,
            settings.groups,
            seed=settings.seed,
            rank=self.ranks.index,
            ranks=self.ranks.count,
        )
        return [Group.of(number, case, settings.group_size, seed) for number, case in drawn]

    def _prepare_votes(self) -> None:
        if self.ranks.count > 1:
            raise InputError("Votes are for a run in one process: leave the launcher out.")
        answers = self.settings.groups * self.settings.group_size
        if answers > MOST_ANSWERS:
            raise InputError(
                f"A step would wait for votes on {answers} answers; expected at most "
                f"{MOST_ANSWERS}: take fewer groups, or a smaller group_size."
            )
        self.held_out_name, self.held_out_sign = super().held_out_name, super().held_out_sign
        if any(case.target is None for case in self.watch.watched.held_out):
            raise InputError(
                "With votes, held-out items are measured by their targets: give held_out_data "
                "that has them, and held_out 0."
            )

    def _voted(self, progress: PhaseCallback | None) -> tuple[list[Rollouts], Scores]:
        """The rollouts of this step, and what votes make of them. Raises :class:`Waiting` until
        they are all there."""
        waiting, groups = VotingRound(self.folder.path, self.step), self.groups()
        rolled = waiting.rollouts(self.model, groups)
        if rolled is None:
            rolled = self._roll_out(groups, progress)
            size = self.settings.micro_batch
            pairs = [p for r in rolled for p in final_pairs(self.model, r, micro_batch=size)]
            tell = partial(progress, "answers", 0, len(pairs)) if progress else lambda: None
            waiting.save(rolled, pairs, tell)
        if missing := waiting.missing:
            raise Waiting(
                f"Step {self.step + 1} of {self.settings.steps} waits for your votes on {missing} "
                f"of {len(groups)} groups of answers."
            )
        rewards = waiting.rewards(rolled)
        return rolled, Scores(rewards, rewards, sum(r.numel() for r in rewards))

    def save(self) -> None:
        super().save()
        if self.ranks.first:
            forget_rollouts(self.folder.path, self.step)

    def _roll_out(self, groups: list[Group], progress: PhaseCallback | None) -> list[Rollouts]:
        settings, rolled, done = self.settings, list[Rollouts](), 0
        for members in group_by_shape(groups):
            rollouts = roll_out(
                self.model,
                members,
                settings.sampler,
                drawn=settings.scored_steps,
                micro_batch=settings.micro_batch,
                progress=progress and _share_of(progress, done, len(members), len(groups)),
            )
            if not rollouts.steps.finite.all():
                raise DivergenceError(
                    f"The model's predictions in step {self.step + 1} are not finite: lower "
                    "learning_rate and resume, or load the model in bfloat16 or float32. "
                    f"{self.folder.last_good}"
                )
            rolled.append(rollouts)
            done += len(members)
        return rolled

    def _in_order(self, rolled: list[Rollouts], rewards: list[Tensor]) -> Tensor:
        """This step's values of all processes, in the groups' order."""
        numbered = [
            (group.number, values.flatten().tolist())
            for r, part in zip(rolled, rewards, strict=True)
            for group, values in zip(r.groups, part, strict=True)
        ]
        in_order = sorted(self.ranks.gather(numbered))
        return torch.tensor([value for _, values in in_order for value in values])

    def _batches(
        self, rolled: list[Rollouts], advantage: list[tuple[Tensor, Tensor]]
    ) -> list[ScoredBatch]:
        """The scored steps of groups with spread, cut to the micro-batch."""
        (count,) = self.ranks.sum([sum(len(r.steps) for r in rolled)])
        device, batches = self.model.device, []
        for r, (values, spread) in zip(rolled, advantage, strict=True):
            values = values.expand(r.shape).flatten()
            rows = spread[..., None].expand(r.shape).flatten().nonzero()[:, 0]
            for part in rows.split(self.settings.micro_batch) if len(rows) else ():
                steps = r.steps[part.to(device)]
                batches.append(ScoredBatch(steps, values[part].to(device), 1 / count))
        first, nothing = rolled[0].steps[:1], torch.zeros(1, device=device)
        return batches + [ScoredBatch(first, nothing, 0.0) for _ in range(self.idle(len(batches)))]

    def _update(
        self, batches: list[ScoredBatch], progress: PhaseCallback | None
    ) -> dict[str, float]:
        """The inner epochs. Metrics are means over them; ``loss`` is what is minimised."""
        settings, sums = self.settings, defaultdict(float)
        (trained,) = self.ranks.sum([len(batches)])
        norms = []
        for _ in range(settings.inner_epochs if trained else 0):
            epoch_loss = 0.0
            for number, batch in enumerate(batches):
                if progress and not self._updating:
                    progress("update", number, len(batches))
                part = self._backward(batch)
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

    def _backward(self, batch: ScoredBatch) -> dict[str, float]:
        """Add the gradient of one batch; its loss, and sums over its tokens."""
        settings, sampler = self.settings, self.settings.sampler
        if settings.kl and settings.kl_reference == "base" and batch.reference is None:
            with torch.no_grad(), self.policy.reference():
                batch.reference, _ = log_probs(self.model, batch.steps, sampler)
        values, owner = log_probs(self.model, batch.steps, sampler)
        if batch.old is None:
            batch.old = values.detach()
        gain, clipped = clipped_objective(values, batch.old, batch.advantage[owner], settings.clip)
        divergence = torch.zeros_like(values)
        if settings.kl:
            reference = batch.old if batch.reference is None else batch.reference
            divergence = kl_estimate(values, reference)
        weights = token_weights(owner, len(batch.steps)) * batch.share
        loss = -((gain - settings.kl * divergence) * weights).sum()
        loss.backward()
        counts = float(batch.share > 0)
        return {
            "loss": counts * float(loss.detach()),
            "kl": counts * float(divergence.detach().sum()),
            "clipped": counts * float(clipped.sum()),
            "tokens": counts * len(values),
        }

    def _summary(
        self,
        rolled: list[Rollouts],
        normalised: list[Tensor],
        advantage: list[tuple[Tensor, Tensor]],
    ) -> dict[str, float]:
        """Metrics known before the update, over all processes."""
        end = self.model.layout.end_of_text
        sums = [
            sum(float(r.sum()) for r in normalised),
            sum(float(a.abs().sum()) for a, _ in advantage),
            sum(a.numel() for a, _ in advantage),
            sum(float((~spread).sum()) for _, spread in advantage),
            sum(float((r.final.text != end).sum()) for r in rolled),
            sum(r.final.batch for r in rolled),
        ]
        reward, strength, scored, skipped, words, rollouts = self.ranks.sum(sums)
        return {
            **self._reward_parts(sum(r.numel() for r in normalised)),
            "normalised_reward": reward / scored,
            "advantage": strength / scored,
            "groups_skipped": skipped,
            "text_length": words / rollouts,
        }

    def _reward_parts(self, pairs: int) -> dict[str, float]:
        """The mean of each part of a weighted reward, over the first ``pairs`` of every process:
        where steps are judged by gains, those before the steps come after them."""
        if not isinstance(self.reward, Weighted):
            return {}
        sums, count = self.reward.take_sums(pairs)
        *totals, count = self.ranks.sum([*sums.values(), count])
        return {f"reward_{name}": total / count for name, total in zip(sums, totals, strict=True)}

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
            "has_learnt": self._has_learnt,
        }

    def load_extra_state(self, state: dict[str, Any]) -> None:
        self.folder.refuse_changes(state, self.extra_state(), ["reward"])
        self.scale = RewardScale.of(state["scale"])
        if not _CALLS.fits(state["reward_calls"]):
            raise ValueError(f"its reward_calls are {shown(state['reward_calls'])}")
        self.reward_calls = state["reward_calls"]
        self._has_learnt = bool(state["has_learnt"])

    def metadata(self) -> dict[str, str]:
        return {**super().metadata(), "reward": described(self.reward)}


def _share_of(
    progress: PhaseCallback, before: int, count: int, everyone: int
) -> Callable[[int, int], Any]:
    """Reports the rollouts of ``count`` of ``everyone`` groups that follow ``before`` others."""

    def report(done: int, total: int) -> None:
        progress("rollouts", before * total + done * count, everyone * total)

    return report
