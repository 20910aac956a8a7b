"""DPO: the estimate of log-probs and its loss against plain formulas, the files, the run."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from mmada_parallel.mmp_core import MASKED, InputError, TokenState
from mmada_parallel.tests.training.adapted import stirred
from mmada_parallel.tests.training.tiny_cases import cases, one_open, state_of, tiny_model
from mmada_parallel.training.dpo import loss, preferences
from mmada_parallel.training.dpo.preferences import ENDING, open_preferences, save_preference
from mmada_parallel.training.dpo.run import DPORun
from mmada_parallel.training.dpo.settings import DPOSettings
from mmada_parallel.training.weights.policies import FullWeights, LoRA
from safetensors.torch import load, save_file

SETTINGS = DPOSettings(
    steps=4,
    batch_size=2,
    masks=4,
    learning_rate=1e-2,
    warmup_steps=0,
    micro_batch=3,
    gradient_checkpointing=False,
)


@pytest.fixture(params=["A", "M", "D"])
def family(request):
    return request.param


@pytest.fixture
def model(tmp_path):
    return tiny_model(tmp_path / "model")


def answers(model, count, seed, *, text=4, grid=(2, 3)):
    rng = torch.Generator().manual_seed(seed)
    words = torch.randint(1, 9, (count, text), generator=rng)
    return TokenState(
        words, torch.randint(model.layout.codebook_size, (count, *grid), generator=rng)
    )


def compared(model, count=4):
    return [
        replace(
            case, target=answers(model, 1, 2 * number), rejected=answers(model, 1, 2 * number + 1)
        )
        for number, case in enumerate(cases(model, count))
    ]


def run_of(model, folder, settings=SETTINGS, kind=LoRA, **options):
    policy = LoRA(model.transformer, rank=2) if kind is LoRA else kind(model.transformer)
    return DPORun(model, compared(model), settings, folder, policy=policy, **options)


def plain_log_prob(model, case, answer, masked):
    """Of the masked positions of one answer, by softmax over what the sampler may choose."""
    words = answer.text.shape[1]
    flat = answer.image.flatten(1)
    state = TokenState(
        answer.text.masked_fill(masked[None, :words], MASKED),
        flat.masked_fill(masked[None, words:], MASKED).view_as(answer.image),
    )
    sequence = model.layout.model_input(case.prompt, state)
    logits = model.transformer.logits(model.transformer(sequence.ids)).float()[0]
    total = 0.0
    for place in masked.nonzero()[:, 0].tolist():
        if place < words:
            row = logits[sequence.text_positions[place]]
            allowed = [i for i in model.layout.text_choices if i != model.layout.mask_id]
            token = int(answer.text[0, place])
        else:
            row = logits[sequence.image_positions[place - words]]
            codes = model.layout.image_choices
            allowed = list(range(codes.start, codes.stop))
            token = int(flat[0, place - words]) + codes.start
        total = total + row[token] - row[allowed].logsumexp(0)
    return total


def test_a_comparison_is_the_plain_formula(tmp_path, family):
    """LLaDA's Eq. 6 of both answers, one after the other, and their difference."""
    model = tiny_model(tmp_path / "model", family)
    case = compared(model, 1)[0]
    masks = loss.draw_masks(case.prompt.initial, 5, torch.Generator().manual_seed(1))
    with torch.no_grad():
        estimate = float(loss.Comparison.of(case, masks).log_ratios(model).sum())
        expected = 0.0
        for words, codes in zip(masks.text, masks.image, strict=True):
            masked = torch.cat((words, codes.flatten()))
            weight = len(masked) / int(masked.sum()) / 5
            picked = plain_log_prob(model, case, case.target, masked)
            expected += weight * float(picked - plain_log_prob(model, case, case.rejected, masked))
    assert estimate == pytest.approx(expected, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("paired", [False, True])
def test_the_estimate_has_the_bound_as_its_mean(paired):
    """Every subset weighs as in the bound: of each size 1/L · L/l, spread evenly over its sets."""
    initial = TokenState(torch.tensor([[MASKED, 7]]), torch.full((1, 1, 2), MASKED))
    rng, seen, draws = torch.Generator().manual_seed(0), {}, 24_000
    masks = loss.draw_masks(initial, draws, rng, paired=paired)
    rows = torch.cat((masks.text, masks.image.flatten(1)), dim=1)
    assert not rows[:, 1].any()  # what is given is never masked
    for row, weight in zip(rows.tolist(), masks.weight.tolist(), strict=True):
        seen[tuple(row)] = seen.get(tuple(row), 0.0) + weight / draws
    for size in (1, 2, 3):
        for chosen in itertools.combinations((0, 2, 3), size):
            row = tuple(place in chosen for place in range(4))
            expected = 1 / size / math.comb(3, size)
            assert seen[row] == pytest.approx(expected, abs=0.03)


def test_masks_of_a_pair_cover_everything_and_share_one_token():
    initial = TokenState.masked(1, 5, (2, 3))
    masks = loss.draw_masks(initial, 20, torch.Generator().manual_seed(3))
    rows = torch.cat((masks.text, masks.image.flatten(1)), dim=1)
    for first, second in zip(rows[::2], rows[1::2], strict=True):
        assert (first | second).all()
        assert int((first & second).sum()) == 1


def test_the_update_is_the_gradient_of_the_plain_loss(model, tmp_path):
    """-log σ(β(margin of policy - margin of reference)), from whole log-probs in one graph."""
    run = run_of(model, tmp_path / "run")
    stirred(run.policy)
    case = run.cases[0]
    parts = [p for _, p in run.policy.named_parameters()]
    masks = loss.draw_masks(case.prompt.initial, 4, torch.Generator().manual_seed(9))
    whole = loss.Comparison.of(case, masks)
    with torch.no_grad(), run.policy.reference():
        reference = whole.log_ratios(model).sum()
    margin = whole.log_ratios(model).sum() - reference
    plain = torch.nn.functional.logsigmoid(0.1 * margin).neg() / 2
    expected = torch.autograd.grad(plain, parts, allow_unused=True)
    got = run._backward(whole.split(3))
    assert got == pytest.approx(float(margin.detach()), rel=1e-4)
    for part, gradient in zip(parts, expected, strict=True):
        assert torch.allclose(part.grad, gradient, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("kind", [LoRA, FullWeights])
def test_picks_become_likelier_than_what_was_rejected(kind, model, tmp_path):
    settings, lines = replace(SETTINGS, steps=40), []
    run = run_of(model, tmp_path / "run", settings, kind)
    run.train(lambda _, line: lines.append(line))
    assert lines[0]["loss"] == pytest.approx(math.log(2), rel=1e-5)
    assert sum(line["preferred"] for line in lines[-10:]) / 10 > 0.9
    assert sum(line["loss"] for line in lines[-10:]) / 10 < 0.5


def test_resumed_bit_for_bit(model, tmp_path):
    whole = run_of(model, tmp_path / "whole", replace(SETTINGS, held_out=0.25, evaluate_every=2))
    whole.train()
    expected, measured = state_of(whole), whole.watch.measured
    whole.policy.detach()
    assert measured[0].held_out == pytest.approx(math.log(2))
    assert measured[-1].held_out != measured[0].held_out
    for steps in (2, 4):
        settings = replace(SETTINGS, held_out=0.25, evaluate_every=2, steps=steps)
        run = run_of(model, tmp_path / "parts", settings)
        run.resume()
        run.train()
        run.policy.detach()
    assert all(torch.equal(value, expected[name]) for name, value in state_of(run).items())
    assert run.watch.measured == measured


def test_what_is_locked_is_not_compared(model):
    case = replace(
        one_open(model, "text"),
        target=TokenState(torch.tensor([[1, 2, 1]]), torch.ones(1, 2, 2, dtype=torch.int64)),
        rejected=TokenState(torch.tensor([[1, 3, 1]]), torch.ones(1, 2, 2, dtype=torch.int64)),
    )
    masks = loss.draw_masks(case.prompt.initial, 3, torch.Generator())
    assert masks.text.tolist() == [[False, True, False]] * 3
    assert not masks.image.any()
    assert masks.weight.tolist() == [1, 1, 1]
    decided = replace(case.prompt, initial=case.target)
    with pytest.raises(InputError, match="Nothing was left open"):
        loss.draw_masks(decided.initial, 3, torch.Generator())


@pytest.fixture
def picked(tmp_path, family):
    model = tiny_model(tmp_path / "model", family)
    return model, cases(model, 1)[0].prompt, answers(model, 3, 5)


def test_a_pick_comes_back_as_it_was(picked, tmp_path):
    model, prompt, batch = picked
    file = save_preference(tmp_path / "picks", model, prompt.repeat(3), batch, 1)
    read = open_preferences(tmp_path / "picks").cases(model)
    assert len(read) == 2
    for case, other in zip(read, (0, 2), strict=True):
        assert case.instruction == "make it red"
        assert torch.equal(case.prompt.instruction, prompt.instruction)
        assert torch.equal(case.prompt.image, prompt.image)
        assert torch.equal(case.target.text, batch.text[1:2])
        assert torch.equal(case.rejected.image, batch.image[other : other + 1])
        assert case.source().size == (2 * model.downsample,) * 2
    save_preference(tmp_path / "picks", model, prompt, batch, 2)  # another mind
    assert [path.name for path in (tmp_path / "picks").iterdir()] == [file.name]
    read = open_preferences(tmp_path / "picks").cases(model)
    assert torch.equal(read[0].target.text, batch.text[2:])


def test_reading_many_picks_may_be_interrupted_and_knows_the_checkpoint_once(
    picked, tmp_path, monkeypatch
):
    model, prompt, batch = picked
    for number in range(4):
        of_one = replace(batch, text=(batch.text + number) % 8)
        save_preference(tmp_path / "picks", model, prompt, of_one, 1)
    asked, identity = [], preferences.token_identity
    monkeypatch.setattr(
        preferences, "token_identity", lambda model: [asked.append(1), identity(model)][1]
    )
    called = []
    open_preferences(tmp_path / "picks").cases(model, lambda *counts: called.append(counts))
    assert called == [(0, 4), (1, 4), (2, 4), (3, 4)] and len(asked) == 1


def test_what_cannot_be_compared_is_refused(model, tmp_path):
    prompt, batch = cases(model, 1)[0].prompt, answers(model, 2, 5)
    same = TokenState(batch.text[:1].repeat(2, 1), batch.image[:1].repeat(2, 1, 1))
    other = replace(prompt.repeat(2), image=torch.tensor([[[1, 1], [1, 1]], [[1, 2], [1, 1]]]))
    half = TokenState(batch.text.masked_fill(batch.text == batch.text[0, 0], MASKED), batch.image)
    longer = answers(model, 2, 5, text=5)
    code = replace(batch, text=batch.text * 0 + model.layout.image_offset)
    for asked, given, reason in (
        (prompt, same, "are the same"),
        (other, batch, "different prompts"),
        (prompt, half, "not finished"),
        (prompt, longer, "no answers to this prompt"),
        (prompt, code, "its text has the token .*, which is no word"),
    ):
        with pytest.raises(InputError, match=reason):
            save_preference(tmp_path / "picks", model, asked, given, 0)
    for picked in (-1, 2, 1.0, None):
        with pytest.raises(InputError, match="picked is .* expected 0 to 1"):
            save_preference(tmp_path / "picks", model, prompt, batch, picked)
    assert not (tmp_path / "picks").exists()
    with pytest.raises(InputError, match="holds no picks"):
        open_preferences(tmp_path)


def test_spoilt_files_are_refused(model, tmp_path):
    prompt, batch = cases(model, 1)[0].prompt, answers(model, 3, 5)
    file = save_preference(tmp_path / "picks", model, prompt, batch, 1)
    good = file.read_bytes()
    tensors = load(good)  # not of the file, which changes below
    from safetensors import safe_open

    with safe_open(file, framework="pt") as opened:
        header = opened.metadata()

    def refused(reason):
        with pytest.raises(InputError, match=reason):
            open_preferences(tmp_path / "picks").cases(model)

    file.write_bytes(good[:200])
    refused("cannot be read")
    save_file(tensors, file)
    refused("holds no pick")
    save_file(tensors, file, {**header, "codebook": "other"})
    refused("another codebook")
    for name, spoilt in (
        ("picked.text", tensors["picked.text"] + 10**6),
        ("rejected.image", tensors["rejected.image"] - 10**6),
        ("rejected.text", tensors["rejected.text"][:1]),
        ("picked.text", tensors["picked.text"] * 0 + MASKED),
        ("instruction", tensors["instruction"].float()),
        ("instruction", tensors["instruction"][0]),
        ("initial.image", tensors["initial.image"][:, :1]),
        ("instruction", tensors["instruction"] * 0 + MASKED),
        ("unconditional", tensors["unconditional"] * 0 + MASKED),
        ("unconditional", tensors["unconditional"][None]),
        ("input", tensors["input"] * 0 + MASKED),
        ("input", tensors["input"][:, 0]),
        ("input", tensors["input"][:, :0]),
        ("input", torch.zeros(1, 4096 // model.downsample + 1, 1).long()),
        ("picked.text", tensors["picked.text"] * 0 + model.layout.mask_id),
        ("rejected.text", tensors["rejected.text"] * 0 + model.layout.image_offset + 1),
        ("initial.text", tensors["initial.text"][0, 0]),
    ):
        save_file({**tensors, name: spoilt.contiguous()}, file, header)
        refused(file.name.removesuffix(ENDING))
    save_file({n: t for n, t in tensors.items() if n != "picked.text"}, file, header)
    refused("it lacks picked.text")
