"""Triton's kernels against torch: on a GPU where there is one, else in Triton's interpreter.

Both choose the same from the same logits. So that logits are the same whatever the order they are
summed in, what is multiplied here are small whole numbers and quarters, whose sums are exact.
"""

import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from mmada_parallel.mmp_core import SamplerSettings, denoise
from mmada_parallel.mmp_core.model import kernels
from mmada_parallel.mmp_core.model import rotary as plain_rotary
from mmada_parallel.mmp_core.model.kernels import ImageLogits, TextLogits, plain
from mmada_parallel.tests.mmp_core import tiny

pytest.importorskip("triton", reason="Triton is not installed")
from mmada_parallel.mmp_core.model.kernels import image, rotary, text

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
TILE = text.Tile(rows=16, words=32, depth=16, warps=4, stages=1)
INTERPRETED = DEVICE.type == "cpu"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)

pytestmark = [
    pytest.mark.skipif(
        INTERPRETED and os.environ.get("TRITON_INTERPRET") != "1",
        reason="no GPU, and Triton was told not to interpret",
    ),
    pytest.mark.filterwarnings("ignore:divide by zero:RuntimeWarning"),
]


def numbers(seed, *shape, largest=4, unit=1.0, dtype=torch.float32):
    """Multiples of ``unit``, at most ``largest`` of them: many are equal."""
    generator = torch.Generator().manual_seed(seed)
    whole = torch.randint(-largest, largest + 1, shape, generator=generator)
    return (whole * unit).to(DEVICE, dtype)


def draws(seed, *shape):
    generator = torch.Generator().manual_seed(seed)
    return torch.empty(shape).exponential_(generator=generator).to(DEVICE)


def check(found, expected, noisy):
    """``noisy``: the scores that torch takes the largest of."""
    (chosen, confidence), (other_chosen, other_confidence) = found, expected
    assert chosen.dtype == torch.int64 and confidence.dtype == torch.float32
    best, second = F.pad(noisy, (0, 1), value=-torch.inf).topk(2).values.unbind(-1)
    rounding = 1e-6 * best.abs().clamp_min(10)
    assert (noisy.gather(-1, chosen[..., None])[..., 0] >= best - rounding).all()
    assert torch.equal(chosen[best - second > rounding], other_chosen[best - second > rounding])
    same = chosen == other_chosen
    torch.testing.assert_close(confidence[same], other_confidence[same], rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("branches", [1, 2, 3, 4])
@pytest.mark.parametrize("codes", [1, 12, 64, 100, 8192])
def test_image(dtype, branches, codes):
    logits = [numbers(i, 2, 3, codes, largest=9, unit=0.25, dtype=dtype) for i in range(branches)]
    scales = (3.5, -0.75, 1.3)[: branches - 1]
    scores = plain.guided(logits, scales)
    likeliest = plain.choose_image(scores, None)
    found = image.choose_image(logits, scales, None)
    assert torch.equal(found[0], likeliest[0])  # ties to the lowest, as torch does
    check(found, likeliest, scores)
    noise = draws(7, 2, 3, codes)
    noisy = scores.log_softmax(-1) + plain.gumbel(noise)
    found = image.choose_image(logits, scales, noise)
    check(found, plain.choose_image(scores, noise), noisy)


def test_image_extremes():
    """Certainty, enormous logits, equal ones, and noise that is 0, the largest it can be."""
    rows = torch.zeros(5, 70, device=DEVICE)
    rows[0, 33], rows[1, 69], rows[2] = 60.0, 3e4, 1e-30
    rows[3] = -torch.arange(70.0) * 1e3
    noise = torch.ones(5, 70, device=DEVICE)
    noise[4, 41] = 0.0
    for own in (None, noise):
        found, expected = image.choose_image([rows], (), own), plain.choose_image(rows, own)
        assert torch.equal(found[0], expected[0])
        torch.testing.assert_close(found[1], expected[1], rtol=1e-6, atol=1e-6)
    assert found[0].tolist() == [33, 69, 0, 0, 41]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "rows, words, features",
    [(1, 1, 1), (1, 2, 16), (5, 32, 16), (16, 33, 24), (17, 31, 7), (20, 130, 40), (3, 1100, 8)],
)
@pytest.mark.parametrize("guidance, logit_scale", [((), None), ((1.5,), None), ((-2.0,), 0.3)])
def test_text(dtype, rows, words, features, guidance, logit_scale):
    if INTERPRETED and dtype == torch.bfloat16 and logit_scale:
        logit_scale = 0.5  # the interpreter truncates to bfloat16 instead of rounding
    hidden = [numbers(i, 1, rows, features, dtype=dtype) for i in range(1 + len(guidance))]
    head = numbers(9, words + 3, features, unit=0.25, dtype=dtype)[2:-1]
    logits = [part @ head.T for part in hidden]
    logits = [part * logit_scale for part in logits] if logit_scale else logits
    scores = plain.guided(logits, guidance)
    likeliest = plain.choose_text(scores, 0.0, None)
    found = text.choose_text(hidden, guidance, head, logit_scale, 0.0, None, TILE)
    assert torch.equal(found[0], likeliest[0])
    check(found, likeliest, scores)
    noise = draws(7, 1, rows, words)
    found = text.choose_text(hidden, guidance, head, logit_scale, 0.7, noise, TILE)
    check(found, plain.choose_text(scores, 0.7, noise), scores + 0.7 * plain.gumbel(noise))


@pytest.mark.parametrize("guidance", [(), (1.5,)])
@pytest.mark.parametrize("rows", [3, 130])
def test_text_in_the_tiles_that_gpus_get(rows, guidance):
    hidden = [numbers(i, rows, 100, dtype=torch.bfloat16) for i in range(1 + len(guidance))]
    head = numbers(9, 300, 100, unit=0.125, largest=1, dtype=torch.bfloat16)
    scores = plain.guided([part @ head.T for part in hidden], guidance)
    noise = draws(7, rows, 300)
    tile = text.tile_for(101376, rows > 64, bool(guidance))
    found = text.choose_text(hidden, guidance, head, None, 1.0, noise, tile)
    check(found, plain.choose_text(scores, 1.0, noise), scores + plain.gumbel(noise))


def test_text_extremes():
    """A certain word far ahead of or behind its tile, equal words, and a noise of 0."""
    head = torch.zeros(100, 16, device=DEVICE)
    head[77, 0], head[3, 1], head[99, 2], head[98, 2] = 1.0, 1.0, 1.0, 1.0
    hidden = torch.zeros(1, 5, 16, device=DEVICE)
    hidden[0, 0, 0], hidden[0, 1, 1], hidden[0, 2, 2], hidden[0, 3, 0] = 45.0, 3e4, 80.0, -3e4
    noise = torch.ones(1, 5, 100, device=DEVICE)
    noise[0, 4, 64] = 0.0
    for own in (None, noise):
        found = text.choose_text([hidden], (), head, None, 1.0, own, TILE)
        expected = plain.choose_text(hidden @ head.T, 1.0, own)
        assert torch.equal(found[0], expected[0])
        torch.testing.assert_close(found[1], expected[1], rtol=1e-6, atol=1e-6)
    assert found[0].tolist() == [[77, 3, 98, 0, 64]]
    assert found[1][0, 0] > 40 and found[1][0, 1] > 2e4


def test_nothing_to_choose():
    empty = torch.empty(2, 0, 16, device=DEVICE)
    assert image.choose_image([empty], (), None)[0].shape == (2, 0)
    head = torch.ones(20, 16, device=DEVICE)
    assert text.choose_text([empty], (), head, None, 0.0, None, TILE)[1].shape == (2, 0)


ROTATED = (torch.float32, torch.float16) if INTERPRETED else DTYPES
"""The interpreter truncates to bfloat16 instead of rounding."""


def table_of(length, head_dim, batch=None):
    table = plain_rotary.rotary_table(length, head_dim, 1e4, DEVICE)
    if batch is None:
        return table
    generator = torch.Generator().manual_seed(2)
    positions = torch.randint(0, length, (batch, length), generator=generator).to(DEVICE)
    return table[:, positions].unsqueeze(2)


@pytest.mark.parametrize("dtype", ROTATED)
@pytest.mark.parametrize("batch", [None, 2])
@pytest.mark.parametrize("heads, length, head_dim", [(1, 1, 2), (3, 7, 6), (17, 5, 64)])
def test_rotation(dtype, batch, heads, length, head_dim):
    """Bit for bit what torch gives, of a view as a linear layer's result is."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, length, heads * head_dim, generator=generator).to(DEVICE, dtype)
    x = x.unflatten(-1, (heads, -1)).transpose(1, 2)
    table = table_of(length, head_dim, batch)
    expected = plain_rotary.rotate(x, table)  # gradients may be wanted: by other operations
    assert rotary.can_rotate(x, table)
    assert torch.equal(rotary.rotate(x, table), expected)
    assert not rotary.can_rotate(x.flip(-1).mT, table)
    assert not rotary.can_rotate(x, table.to(torch.bfloat16))


def test_a_forward_is_the_same_with_the_kernel(monkeypatch):
    transformer = tiny.transformer("A").to(DEVICE)
    ids = torch.arange(14, device=DEVICE).view(2, 7)
    with torch.no_grad():
        expected = transformer(ids)
        calls = []
        rotate = rotary.rotate
        monkeypatch.setattr(plain_rotary, "available", lambda device: True)
        monkeypatch.setattr(rotary, "rotate", lambda *args: calls.append(1) or rotate(*args))
        found = transformer(ids)
    assert torch.equal(found, expected)
    assert len(calls) == 2 * len(transformer.blocks)


@pytest.mark.parametrize("variant", "AM")
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_a_run_is_the_same_with_kernels(monkeypatch, variant, temperature):
    model = tiny.TinyModel(variant, torch.float32)
    model.device = DEVICE
    model.transformer.to(DEVICE)
    start = tiny.prompt(model.layout, batch=2, text=6, grid=(3, 3), locked=0.2)
    own = SamplerSettings(
        text_steps=4,
        image_steps=3,
        text_temperature=temperature,
        reasoning_guidance=1.5,
        text_guidance=0.5,
        image_guidance=-0.5,
    )
    monkeypatch.setenv("MMADA_KERNELS", "0")
    expected = denoise(model, start, own)
    calls = {"text": 0, "image": 0}

    def counted(name, run):
        def counting(*args):
            calls[name] += 1
            return run(*args, TILE) if name == "text" else run(*args)

        return counting

    monkeypatch.setattr(kernels, "available", lambda device: True)
    monkeypatch.setattr(text, "DTYPES", DTYPES)
    monkeypatch.setattr(text, "choose_text", counted("text", text.choose_text))
    monkeypatch.setattr(image, "choose_image", counted("image", image.choose_image))
    found = denoise(model, start, own)
    assert calls == {"text": 4, "image": 3}
    for step, other in zip(found, expected, strict=True):
        assert torch.equal(step.after.text, other.after.text)
        assert torch.equal(step.after.image, other.after.image)
        torch.testing.assert_close(step.text_confidence, other.text_confidence)
        torch.testing.assert_close(step.image_confidence, other.image_confidence)


def test_what_does_not_fit_is_left_to_torch(monkeypatch):
    monkeypatch.setattr(kernels, "available", lambda device: True)
    refuse = lambda *args: pytest.fail("the kernel was called")  # noqa: E731
    monkeypatch.setattr(text, "choose_text", refuse)
    monkeypatch.setattr(image, "choose_image", refuse)
    model = tiny.TinyModel("A", torch.float32)
    hidden = torch.ones(1, 2, 16)
    TextLogits(model.transformer, (hidden,), (), slice(0, 9)).choose(0.0, None)
    hidden = hidden.bfloat16()
    scores = TextLogits(model.transformer.bfloat16(), (hidden,) * 3, (1.0, 2.0), slice(0, 9))
    scores.choose(0.0, None)
    ImageLogits((torch.ones(1, 2, 7),) * 5, (1.0,) * 4).choose(None)
    ImageLogits((torch.ones(1, 1, image.MOST_CODES + 1),), ()).choose(None)


def test_kernels_are_for_cuda_and_can_be_switched_off(monkeypatch):
    assert not kernels.available(torch.device("cpu"))
    monkeypatch.setattr(kernels, "_run_on", lambda device: True)
    assert kernels.available(torch.device("cuda"))
    monkeypatch.setenv("MMADA_KERNELS", "0")
    assert not kernels.available(torch.device("cuda"))


@pytest.fixture
def pretended_gpu(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(text, "_shared_memory", lambda device: 101376)


def test_a_gpu_is_tried_once(pretended_gpu, monkeypatch, caplog):
    assert kernels._run_on.__wrapped__(DEVICE)

    def no_compiler(*args):
        raise FileNotFoundError("no C compiler\nnowhere")

    caplog.set_level("INFO")
    monkeypatch.setattr(text, "choose_text", no_compiler)
    assert not kernels._run_on.__wrapped__(DEVICE)
    assert "no C compiler" in caplog.text and "nowhere" not in caplog.text


def last_of(chosen, confidence):
    return torch.full_like(chosen, 299), confidence


def never_sure(chosen, confidence):
    return chosen, torch.zeros_like(confidence)


@pytest.mark.parametrize("module, name", [(text, "choose_text"), (image, "choose_image")])
@pytest.mark.parametrize("fault", [last_of, never_sure, "deaf to noise"])
def test_a_kernel_that_chooses_wrongly_is_not_used(
    pretended_gpu, monkeypatch, caplog, module, name, fault
):
    right = getattr(module, name)

    def wrong(*args):
        return right(*args[:-1], None) if fault == "deaf to noise" else fault(*right(*args))

    caplog.set_level("INFO")
    monkeypatch.setattr(module, name, wrong)
    assert not kernels._run_on.__wrapped__(DEVICE)
    assert "wrong results" in caplog.text


def test_older_gpus_are_left_to_torch(pretended_gpu, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr(image, "choose_image", lambda *args: pytest.fail("it was tried"))
    assert not kernels._run_on.__wrapped__(DEVICE)


COMPILE = """
import sys
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from mmada_parallel.mmp_core.model.kernels import image, rotary, text

def build(kernel, capability, numbers, constants, **options):
    types = {name: numbers.get(name, "i32") for name in kernel.arg_names}
    types |= {name: "constexpr" for name in constants}
    aligned = [["tt.divisibility", 16]]  # as in a launch: tensors, and sizes of the 8B model
    attributes = {
        (index,): aligned
        for index, name in enumerate(kernel.arg_names)
        if types[name].startswith("*") or name in ALIGNED
    }
    source = ASTSource(kernel, types, constants, attributes)
    options["enable_fp_fusion"] = False
    built = compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    return built.metadata.shared, built.asm["ptx"]

ALIGNED = {"codes", "words", "features", "head_stride"}
SHARED = {80: 166912, 86: 101376, 89: 101376, 90: 232448, 100: 232448, 120: 101376}
half, full = "*bf16", "*fp32"
for capability in map(int, sys.argv[1:]):
    shared = SHARED[capability]
    logits = dict.fromkeys(("conditional", "first", "second", "third"), half)
    scales = dict.fromkeys(("first_scale", "second_scale", "third_scale"), "fp32")
    types = {**logits, **scales, "exponential": full, "log_p": full, "chosen": "*i64"}
    used, _ = build(
        image._image_kernel, capability, types, {"BRANCHES": 4, "NOISY": True, "BLOCK": 8192},
        num_warps=8,
    )
    assert used <= shared
    block = {"HEADS": rotary.HEADS, "HALF": 64}
    types = {"x": half, "turned": half, "table": full}
    _, code = build(rotary._rotate_kernel, capability, types, block)
    assert "fma" not in code, "products are not rounded before they are added"
    inputs = dict.fromkeys(("hidden", "other", "head"), half)
    outputs = dict.fromkeys(("exponential", "noisy_out", "score_out", "rest_out"), full)
    scales = dict.fromkeys(("guidance", "logit_scale", "temperature"), "fp32")
    types = {**inputs, **outputs, **scales, "index_out": "*i32"}
    for many, guided in ((True, False), (False, True)):
        tile = text.tile_for(shared, many, guided)
        used, code = build(
            text._text_kernel, capability, types,
            {"GUIDED": guided, "SCALED": True, "NOISY": True, "UPCAST": False, "ROWS": tile.rows,
             "WORDS": tile.words, "DEPTH": tile.depth},
            num_warps=tile.warps, num_stages=tile.stages,
        )
        assert used <= shared and "mma" in code, (capability, tile, used)
        assert "cp.async" in code, "rows are not loaded while others are multiplied"
"""


@pytest.mark.parametrize(
    "capabilities",
    [
        pytest.param("86 90", id="some", marks=pytest.mark.slow),
        pytest.param("80 86 89 90 100 120", id="all", marks=pytest.mark.exhaustive),
    ],
)
def test_they_compile_for_gpus_that_are_not_here(capabilities):
    """From Ampere to Blackwell, with the shared memory and the alignment that a launch has, to code
    that uses tensor cores and loads ahead."""
    run = subprocess.run(
        [sys.executable, "-c", COMPILE, *capabilities.split()],
        env={**os.environ, "TRITON_INTERPRET": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
