from dataclasses import replace

import pytest
import torch
from mmada_parallel.mmp_core import MASKED, TokenState, decode_image, denoise
from mmada_parallel.mmp_core.state import Prompt
from mmada_parallel.tests.training.tiny_cases import SAMPLER, cases, tiny_model
from mmada_parallel.training.pararl.log_probs import log_probs
from mmada_parallel.training.pararl.pairs import final_pairs, sample_pairs, trajectory_pairs
from mmada_parallel.training.pararl.rollout import Group, group_by_shape, roll_out


@pytest.fixture(scope="module", params=["A", "M"])
def model(request, tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp(request.param), request.param)


def groups_of(model, count=3, size=4):
    """Those of edits, which have equal shapes."""
    found = [Group.of(n, c, size, "seed 0") for n, c in enumerate(cases(model, 2 * count))]
    return group_by_shape(found)[0]


def rolled(model, *, micro_batch=100, drawn=2, **changes):
    settings = replace(SAMPLER, **changes)
    return roll_out(model, groups_of(model), settings, drawn=drawn, micro_batch=micro_batch)


def test_groups_of_equal_shapes_are_put_together(model):
    found = [Group.of(n, c, 2, "seed") for n, c in enumerate(cases(model, 5))]
    assert [[g.number for g in part] for part in group_by_shape(found)] == [[0, 2, 4], [1, 3]]


def test_seeds_differ_between_rollouts_groups_and_steps(model):
    case = cases(model, 1)[0]
    groups = [Group.of(n, case, 4, f"0 {step}") for n in range(3) for step in range(3)]
    assert len({seed for group in groups for seed in group.seeds}) == 36
    assert Group.of(1, case, 4, "0 2") == Group.of(1, case, 4, "0 2")


def test_drawn_steps_are_spread_evenly(model):
    case = cases(model, 1)[0]
    drawn = [Group.of(n, case, 2, "x").drawn_steps(3, 10) for n in range(2000)]
    assert all(len(set(steps)) == 3 and steps == sorted(steps) for steps in drawn)
    counts = torch.bincount(torch.tensor(drawn).flatten(), minlength=10) / 6000
    assert counts.tolist() == pytest.approx([0.1] * 10, abs=0.015)


@pytest.mark.parametrize("speed", ["exact", "cached"])
def test_scored_steps_are_those_of_the_recorded_trajectory(model, speed):
    found = rolled(model, speed=speed)
    assert found.shape == (3, 2, 4)
    for place, group in enumerate(found.groups):
        prompt = Prompt.stack([group.case.prompt]).repeat(4)
        whole = denoise(model, prompt, replace(SAMPLER, speed=speed, seed=group.seeds))
        steps = group.drawn_steps(2, whole.total_steps)
        final = found.final[4 * place : 4 * place + 4]
        assert torch.equal(final.text, whole.final.text)
        for slot, index in enumerate(steps):
            first = (place * 2 + slot) * 4
            steps, step = found.steps[first : first + 4], whole.steps[index]
            assert steps.index.tolist() == [index] * 4
            assert torch.equal(steps.prompt.instruction, prompt.instruction)
            for own, wanted in (
                (steps.state.text, step.state.text),
                (steps.state.image, step.state.image),
                (steps.after.text, step.after.text),
                (steps.after.image, step.after.image),
                (steps.text_revealed, step.text_revealed),
                (steps.image_revealed, step.image_revealed),
            ):
                assert torch.equal(own, wanted)


@pytest.mark.parametrize("micro_batch", [1, 5])
def test_micro_batch_does_not_matter(model, micro_batch):
    one, other = rolled(model), rolled(model, micro_batch=micro_batch)
    assert torch.equal(one.final.text, other.final.text)
    assert torch.equal(one.final.image, other.final.image)
    assert torch.equal(one.steps.index, other.steps.index)
    assert torch.equal(one.steps.after.image, other.steps.after.image)
    assert torch.equal(one.steps.prompt.image, other.steps.prompt.image)


def test_every_moment_reveals_something(model):
    steps = rolled(model, drawn=100, text_steps=40, image_steps=3).steps
    revealed = steps.text_revealed.sum(1) + steps.image_revealed.flatten(1).sum(1)
    assert (revealed > 0).all()


GUIDED = {"text_guidance": 0.5, "image_guidance": -0.7, "joint_guidance": 1.5}
DROPS = {
    "text_guidance": {"drop_text": True},
    "image_guidance": {"drop_image": True},
    "joint_guidance": {"drop_text": True, "drop_image": True},
    "reasoning_guidance": {"drop_text": True, "drop_image": True},
}


@pytest.mark.parametrize("reasoning", [0.0, 0.8])
@pytest.mark.parametrize("guidance", [{"joint_guidance": 0.0}, GUIDED])
def test_log_probs_are_those_of_the_distribution_that_is_sampled(model, guidance, reasoning):
    """Each token alone, by forwards of its own over the whole vocabulary."""
    changes = {**guidance, "reasoning_guidance": reasoning, "text_temperature": 0.7}
    steps = rolled(model, text_steps=2, **changes).steps
    found, owner = log_probs(model, steps, replace(SAMPLER, **changes))
    layout, wanted = model.layout, []
    words = torch.arange(layout.text_choices.start, layout.text_choices.stop)
    codes = layout.image_offset + torch.arange(layout.codebook_size)

    def logits(one, place, positions, **drops):
        prompt, state = one.prompt, one.state
        if drops:
            template = layout.model_input(prompt, prompt.initial, **drops)
            ids, at = template.ids.clone(), template.image_positions
            ids[:, template.text_positions] = layout.text_ids(state.text)
            ids[:, at] = layout.image_ids(state.image.flatten(1))
        else:
            template = layout.model_input(prompt, state)
            ids = template.ids
        return model.transformer.logits(model.transformer(ids))[
            0, getattr(template, positions)[place]
        ]

    for revealed, tokens, positions, choices, temperature, offset, scales in (
        (
            "text_revealed",
            "text",
            "text_positions",
            words,
            0.7,
            0,
            {"reasoning_guidance": reasoning},
        ),
        ("image_revealed", "image", "image_positions", codes, 1.0, layout.image_offset, guidance),
    ):
        for row in range(len(steps)):
            one = steps[row : row + 1]
            for place in getattr(one, revealed).flatten().nonzero()[:, 0].tolist():
                token = getattr(one.after, tokens).flatten()[place] + offset
                own = conditional = logits(one, place, positions)
                for name, scale in scales.items():
                    other = logits(one, place, positions, **DROPS[name])
                    own = own + scale * (conditional - other)
                own = own / temperature
                wanted.append(float(own[token] - own[choices].logsumexp(0)))
    assert len(wanted) == len(found) == len(owner)
    assert found.tolist() == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize("scale", [0.0, 2.0])
def test_choices_are_as_probable_as_the_likelihood_says(model, scale):
    """The share of rollouts that choose a token, against exp(log_probs)."""
    case = cases(model, 1, text=1, grid=(1, 1))[0]
    groups = [Group.of(0, case, 3000, "many")]
    sampler = replace(
        SAMPLER,
        text_steps=1,
        image_steps=1,
        text_temperature=1.5,
        joint_guidance=scale,
        reasoning_guidance=scale,
    )
    steps = roll_out(model, groups, sampler, drawn=1, micro_batch=3000).steps
    found, _ = log_probs(model, steps, sampler)
    for tokens, values in zip(
        (steps.after.text[:, 0], steps.after.image[:, 0, 0]), found.exp().chunk(2), strict=True
    ):
        often = tokens.mode().values
        share = (tokens == often).float().mean()
        assert float(share) == pytest.approx(float(values[tokens == often][0]), abs=0.03)


def test_gradients_reach_every_branch(model):
    """Guided logits are those of two forwards, and both are learnt from."""
    changes = {"joint_guidance": 2.0}
    steps = rolled(model, **changes).steps
    weight = model.transformer.blocks[0].q_proj.weight
    weight.requires_grad_(True)
    gradients = []
    for settings in (replace(SAMPLER, **changes), replace(SAMPLER, joint_guidance=0.0)):
        values, _ = log_probs(model, steps, settings)
        gradients.append(torch.autograd.grad(values.sum(), weight)[0])
    weight.requires_grad_(False)
    assert all(g.isfinite().all() and g.abs().max() > 0 for g in gradients)
    assert not torch.allclose(*gradients)


def test_pairs_show_what_is_decided_and_the_guessed_picture(model):
    found = rolled(model)
    pairs = trajectory_pairs(model, found, micro_batch=7)
    assert len(pairs) == len(found.steps) == 24
    assert [p.case for p in pairs] == [g.case for g in found.groups for _ in range(8)]
    decided = (found.steps.after.text != MASKED).sum(1).tolist()
    assert [len(p.marked.split()) - p.marked.count("░") for p in pairs] == [
        len(p.text.split()) for p in pairs
    ]
    assert [4 - p.marked.count("░") for p in pairs] == decided
    total = found.total_steps
    assert [p.progress for p in pairs] == [(i + 1) / total for i in found.steps.index.tolist()]
    last = final_pairs(model, found, micro_batch=5)
    assert len(last) == 12 and {p.progress for p in last} == {1.0}
    samples = sample_pairs(model, found, 2)
    assert [p.text for p in samples] == [last[0].text, last[4].text]
    assert samples[1].picture.tobytes() == last[4].picture.tobytes()


def test_undecided_codes_are_shown_as_the_model_sees_them_given_the_step(model):
    found = rolled(model, text_steps=4, image_steps=1, drawn=4)
    steps = found.steps
    open_ = steps.after.image == MASKED
    assert open_.any() and not open_.all()
    sequence = model.layout.model_input(steps.prompt, steps.after)
    hidden = model.transformer(sequence.ids)[:, sequence.image_positions]
    likeliest = model.transformer.logits(hidden, model.layout.image_choices).argmax(-1)
    wanted = torch.where(open_, likeliest.view_as(steps.after.image), steps.after.image)
    pictures = decode_image(model, TokenState(steps.after.text, wanted))
    pairs = trajectory_pairs(model, found, micro_batch=50)
    assert [p.picture.tobytes() for p in pairs] == [p.tobytes() for p in pictures]
