"""A batch denoised in parts: the same trajectory, counted through, halved when memory runs out."""

import gc
import weakref
from pathlib import Path

import pytest
import torch
from mmada_parallel.mmp_core import MASKED, SamplerSettings, denoise
from mmada_parallel.mmp_core.batching import DeviceBudget, concatenated, denoise_in_batches
from mmada_parallel.mmp_core.memory import OutOfMemory, denoising_estimate, free_bytes
from mmada_parallel.tests.mmp_core import tiny

SETTINGS = {
    "exact": SamplerSettings(seed=3, text_steps=5, image_steps=4, text_temperature=1.0),
    "cached": SamplerSettings(seed=3, text_steps=5, image_steps=4, speed="cached"),
    "fastest": SamplerSettings(seed=3, text_steps=5, image_steps=4, speed="fastest"),
    "seeds": SamplerSettings(seed=[5, 3, 9, 1, 7], text_steps=4, image_steps=2),
    "upstream": SamplerSettings.upstream("A", seed=3, text_steps=4, image_steps=4),
}


class Budget:
    """Says that ``size`` samples fit at once."""

    def __init__(self, size):
        self.size, self.prepared = size, []

    def samples(self, estimate, batch):
        return min(self.size, batch)

    def prepare(self, estimate, samples):
        self.prepared.append(samples)


@pytest.fixture(scope="module")
def model():
    return tiny.TinyModel("A")


def same(one, other):
    assert torch.equal(one.text, other.text) and torch.equal(one.image, other.image)


def check_same(run, whole):
    assert (len(run), run.total_steps) == (len(whole), whole.total_steps)
    same(run.initial, whole.initial)
    same(run.final, whole.final)
    for step, expected in zip(run, whole, strict=True):
        assert step.index == expected.index
        for name in ("state", "guess", "after"):
            same(getattr(step, name), getattr(expected, name))
        for name in ("text_revealed", "image_revealed"):
            assert torch.equal(getattr(step, name), getattr(expected, name))
        for name in ("text_confidence", "image_confidence"):
            assert torch.allclose(getattr(step, name), getattr(expected, name), atol=1e-6)


@pytest.mark.parametrize("size", [1, 2, 5])
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("text, grid", [(6, (4, 4)), (0, (4, 4)), (6, (0, 0))])
def test_the_trajectory_is_that_of_the_whole_batch(model, settings, size, text, grid):
    prompt = tiny.prompt(model.layout, batch=5, text=text, grid=grid, locked=0.4)
    torch.manual_seed(0)
    whole = denoise(model, prompt, settings)
    torch.manual_seed(0)
    check_same(denoise_in_batches(model, prompt, settings, budget=Budget(size)), whole)


def test_samples_with_nothing_to_do_at_a_step_cost_no_forward(model):
    """Alone, a sample of which all is decided takes no step; as part of a batch it has as many."""
    prompt = tiny.prompt(model.layout, batch=2, text=6, grid=(4, 4))
    done = denoise(model, prompt, SETTINGS["exact"]).final
    half = prompt.starting_from(done)
    half.initial.text[1], half.initial.image[1] = -1, -1
    model.forwards = 0
    whole = denoise(model, half, SETTINGS["exact"])
    needed, model.forwards = model.forwards, 0
    run = denoise_in_batches(model, half, SETTINGS["exact"], budget=Budget(1))
    check_same(run, whole)
    assert model.forwards == needed


def test_few_steps_are_recorded_and_those_of_all_samples(model):
    prompt = tiny.prompt(model.layout, batch=3, text=6, grid=(4, 4))
    settings = SETTINGS["exact"]
    run = denoise_in_batches(model, prompt, settings, budget=Budget(2), record=2)
    check_same(run, denoise(model, prompt, settings, record=2))


def test_steps_are_counted_through_and_parts_announced(model):
    prompt = tiny.prompt(model.layout, batch=5, text=6, grid=(4, 4))
    seen, parts, budget = [], [], Budget(2)
    run = denoise_in_batches(
        model,
        prompt,
        SETTINGS["exact"],
        budget=budget,
        on_batch=parts.append,
        callback=lambda index, total, step: seen.append((index, total, step.state.batch)),
    )
    assert parts == [range(2), range(2, 4), range(4, 5)] and budget.prepared == [2, 2, 1]
    assert [index for index, _, _ in seen] == list(range(3 * run.total_steps))
    assert {total for _, total, _ in seen} == {3 * run.total_steps}
    assert [batch for _, _, batch in seen] == [2] * 10 + [1] * 5


def test_an_interruption_passes_through(model):
    class Stop(BaseException):
        pass

    def stop(index, total, step):
        raise Stop

    prompt = tiny.prompt(model.layout, batch=3)
    with pytest.raises(Stop):
        denoise_in_batches(model, prompt, SETTINGS["exact"], budget=Budget(2), callback=stop)


class Small:
    """A transformer's memory that holds ``samples`` sequences at once, and notes what it held."""

    def __init__(self, model, samples):
        self.samples, self.batches, self.leaks, self._held = samples, [], [], None
        self.handle = model.transformer.register_forward_pre_hook(self.check)

    def check(self, module, inputs):
        (ids,) = inputs
        self.batches.append(len(ids))
        gc.collect()
        if len(ids) > self.samples:
            self._held = weakref.ref(ids)
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        self.leaks.append(self._held is not None and self._held() is not None)


@pytest.fixture
def small(model):
    made = []

    def make(samples):
        made.append(Small(model, samples))
        return made[-1]

    yield make
    for memory in made:
        memory.handle.remove()


def test_a_part_that_does_not_fit_is_halved_and_what_it_held_is_free_again(model, small):
    prompt = tiny.prompt(model.layout, batch=5, text=6, grid=(4, 4))
    whole = denoise(model, prompt, SETTINGS["exact"])
    memory, budget, seen = small(3), Budget(5), []
    run = denoise_in_batches(
        model,
        prompt,
        SETTINGS["exact"],
        budget=budget,
        callback=lambda index, total, step: seen.append((index, total)),
    )
    check_same(run, whole)
    assert budget.prepared == [5, 3, 2]
    assert memory.batches[0] == 5 and set(memory.batches[1:]) == {2, 3}
    assert not any(memory.leaks)
    assert seen[-1] == (2 * run.total_steps - 1, 2 * run.total_steps)


@pytest.mark.parametrize("batch, tried", [(1, [1]), (5, [5, 3])])
def test_what_does_not_fit_at_all_is_one_sentence_with_the_numbers(model, small, batch, tried):
    prompt = tiny.prompt(model.layout, batch=batch, text=6, grid=(4, 3))
    memory, settings = small(0), SamplerSettings(speed="cached")
    with pytest.raises(OutOfMemory) as caught:
        denoise_in_batches(model, prompt, settings, budget=Budget(8))
    told = str(caught.value)
    assert memory.batches == tried and "\n" not in told
    results = "1 result" if batch == 1 else "3 results"
    assert f"{results} of 3x4 image tokens and 6 text tokens need about" in told
    assert ("a smaller batch" in told) == (batch > 1)
    assert "MB in addition to the weights (" in told and "fp8" in told and "exact or fast" in told


def test_other_errors_are_not_taken_for_it(model):
    def broken(index, total, step):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1"):
        denoise_in_batches(
            model, tiny.prompt(model.layout), SETTINGS["exact"], budget=Budget(1), callback=broken
        )


def test_all_at_once_where_free_memory_is_not_known(model):
    prompt = tiny.prompt(model.layout, batch=3)
    estimate = denoising_estimate(model, prompt, SETTINGS["exact"])
    assert DeviceBudget(torch.device("cpu")).samples(estimate, 3) == 3


def test_tensors_that_steps_share_stay_shared(model):
    prompt = tiny.prompt(model.layout, batch=2, text=6, grid=(4, 4))
    run = denoise_in_batches(model, prompt, SETTINGS["exact"], budget=Budget(1))
    assert all(
        before.after.text is after.state.text
        for before, after in zip(run, run.steps[1:], strict=False)
    )
    assert concatenated([run]) is run


@pytest.mark.parametrize("record", [None, 2, 0])
def test_a_stopped_run_hands_on_its_steps_so_far(model, record):
    prompt = tiny.prompt(model.layout, batch=3, text=6, grid=(4, 4))
    whole = denoise(model, prompt, SETTINGS["exact"])
    run = denoise_in_batches(
        model,
        prompt,
        SETTINGS["exact"],
        budget=Budget(3),
        callback=lambda index, *_: index == 2,
        record=record,
    )
    assert run.total_steps == 3 and (MASKED in run.final.image or MASKED in run.final.text)
    same(run.final, whole.steps[2].after)
    numbers = {None: [0, 1, 2], 2: [0, 2], 0: []}[record]
    assert [step.index for step in run] == numbers
    assert run.end.index == 2


@pytest.mark.parametrize("at", [1, 4, 7])
def test_a_stopped_batch_keeps_the_parts_before_and_leaves_those_after(model, at):
    """Parts of two samples and five steps each: stopped in the first, at its end, in the second."""
    prompt = tiny.prompt(model.layout, batch=5, text=6, grid=(4, 4))
    whole, asked = denoise(model, prompt, SETTINGS["exact"]), []

    def stop(index, total, step):
        asked.append(index)
        return index == at

    run = denoise_in_batches(
        model, prompt, SETTINGS["exact"], budget=Budget(2), callback=stop, record=None
    )
    steps = whole.total_steps
    part, done = divmod(at, steps)
    assert asked == list(range(at + 1)) and run.final.batch == 5
    assert run.total_steps == len(run) == (done + 1 if part == 0 else steps)
    first, now, rest = slice(0, 2 * part), slice(2 * part, 2 * part + 2), slice(2 * part + 2, 5)
    same(run.final[first], whole.final[first])
    same(run.final[now], whole.steps[done].after[now])
    same(run.final[rest], prompt.initial[rest])
    for step, expected in zip(run.steps[: done + 1], whole.steps, strict=False):
        same(step.after[now], expected.after[now])
        same(step.after[rest], prompt.initial[rest])


def test_a_stop_at_the_last_step_changes_nothing(model):
    prompt = tiny.prompt(model.layout, batch=2, text=6, grid=(4, 4))
    whole = denoise(model, prompt, SETTINGS["exact"])
    check_same(
        denoise(model, prompt, SETTINGS["exact"], callback=lambda i, n, _: i == n - 1), whole
    )


def test_a_cpu_that_cannot_hold_one_sample_refuses_before_the_first_step(model, monkeypatch):
    prompt = tiny.prompt(model.layout, batch=2, text=6, grid=(4, 4))
    needed = denoising_estimate(model, prompt, SETTINGS["exact"]).total(1)
    for free, refused in ((needed - 1, True), (needed, False)):
        monkeypatch.setattr("mmada_parallel.mmp_core.batching.free_bytes", lambda _, n=free: n)
        model.forwards = 0
        if refused:
            with pytest.raises(OutOfMemory, match="Too little memory: 1 result of 4x4"):
                denoise_in_batches(model, prompt, SETTINGS["exact"])
            assert model.forwards == 0
        else:
            assert denoise_in_batches(model, prompt, SETTINGS["exact"]).final.batch == 2


def test_what_a_cpu_has_free_is_known_on_linux():
    free = free_bytes(torch.device("cpu"))
    assert free > 2**20 if not Path("/proc/meminfo").exists() else 2**20 < free < 2**50
