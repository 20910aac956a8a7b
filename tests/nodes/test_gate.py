"""What nodes are given by other packs and the API: refused in one sentence, or used."""

import asyncio
import json
import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from mmada_parallel.mmp_core import Prompt, Step, TokenState, Trajectory
from mmada_parallel.mmp_core.errors import InputError

WORD, PICTURE = "remove the red star", torch.rand(1, 32, 32, 3)


def packed(shape):
    """Of several values to an element, where this PyTorch has it."""
    dtype = getattr(torch, "float4_e2m1fn_x2", None)
    return {"packed": torch.zeros(shape, dtype=torch.uint8).view(dtype)} if dtype else {}


IMAGES = {
    "a number": 7,
    "a list": [1, 2],
    "text": "picture.png",
    "whole numbers": torch.zeros(1, 32, 32, 3, dtype=torch.uint8),
    "two channels": torch.zeros(1, 32, 32, 2),
    "five channels": torch.zeros(1, 32, 32, 5),
    "a hundred channels": torch.zeros(1, 32, 32, 100),
    "none": torch.zeros(0, 32, 32, 3),
    "no width": torch.zeros(1, 32, 0, 3),
    "three dimensions": torch.zeros(32, 32, 3),
    "five dimensions": torch.zeros(1, 1, 32, 32, 3),
    "too wide": torch.zeros(1, 1, 20_000, 3),
    "complex": torch.zeros(1, 32, 32, 3, dtype=torch.complex64),
    "not finite": torch.full((1, 32, 32, 3), math.nan),
    "an array": np.zeros((1, 32, 32, 3), "float32"),
    "sparse": torch.zeros(1, 32, 32, 3).to_sparse(),
    "without values": torch.zeros(1, 32, 32, 3, device="meta"),
    "nested": torch.nested.nested_tensor([torch.rand(32, 32, 3), torch.rand(16, 16, 3)]),
    "masked": torch.masked.masked_tensor(PICTURE, PICTURE > 0.5),
    "beyond float32": torch.full((1, 32, 32, 3), 1e300, dtype=torch.float64),
    "beyond 8-bit levels": torch.full((1, 32, 32, 3), 3e38),
    **packed((1, 32, 32, 3)),
}
MASKS = {
    "a number": 7,
    "no width": torch.zeros(1, 32, 0),
    "one dimension": torch.zeros(32),
    "four dimensions": torch.zeros(1, 1, 32, 32),
    "infinite": torch.full((1, 32, 32), math.inf),
    "sparse": torch.zeros(1, 32, 32).to_sparse(),
    "without values": torch.zeros(1, 32, 32, device="meta"),
    "nested": torch.nested.nested_tensor([torch.rand(32, 32), torch.rand(16, 16)]),
    "masked": torch.masked.masked_tensor(PICTURE[..., 0], PICTURE[..., 0] > 0.5),
    **packed((1, 32, 32)),
}
NUMBERS = [
    -1,
    2**63,
    2**64,
    10**400,
    Fraction(10**400),
    1.5,
    math.nan,
    math.inf,
    "4",
    None,
    [],
    {},
    True,
]
WORDS = [7, None, [], "\ud800", "a" * 30_000, b"bytes"]


@pytest.fixture(scope="module")
def guarded(nodes):
    listed = asyncio.run(nodes.MMaDAParallelExtension().get_node_list())
    return {node.define_schema().node_id.removeprefix("MMaDAParallel"): node for node in listed}


def refused(node, **inputs):
    with pytest.raises(InputError) as error:
        node.PREPARE_CLASS_CLONE(None).execute(**inputs)
    message = str(error.value)
    assert len(message) < 400 and "\n" not in message
    return message


def encoding(model, **changes):
    return {
        "model": model, "instruction": WORD, "width": 0, "height": 0, "text_length": 0, **changes
    }  # fmt: skip


@pytest.mark.parametrize("image", IMAGES.values(), ids=IMAGES)
def test_pictures_that_are_none(guarded, model, image):
    assert refused(guarded["EncodeInstruction"], **encoding(model, image=image)).startswith("image")


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_masks_that_are_none(guarded, model, mask):
    inputs = encoding(model, image=PICTURE, mask=mask)
    assert refused(guarded["EncodeInstruction"], **inputs).startswith("mask")


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("name", ["width", "height", "text_length"])
def test_numbers_out_of_range_or_none(guarded, model, name, number):
    message = refused(guarded["EncodeInstruction"], **encoding(model, **{name: number}))
    assert message.startswith(f"{name} is ") and "from 0 to 4096" in message


@pytest.mark.parametrize("number", [4, 4.0, np.int64(4), np.float32(4)])
def test_numbers_of_other_packs_are_taken(guarded, model, number):
    inputs = encoding(model, text_length=number)
    output = guarded["EncodeInstruction"].PREPARE_CLASS_CLONE(None).execute(**inputs)
    assert output.result[0].initial.text.shape == (1, 4)


@pytest.mark.parametrize("words", WORDS)
def test_text_that_is_none(guarded, model, words):
    message = refused(guarded["EncodeInstruction"], **encoding(model, instruction=words))
    assert message.startswith("instruction")


@pytest.mark.parametrize("model_", [None, 7, "demo", torch.zeros(1)])
def test_what_is_no_model(guarded, model_):
    assert "Load MMaDA-Parallel" in refused(guarded["EncodeInstruction"], **encoding(model_))


@pytest.mark.parametrize("choice", [7, None, "no such choice", "\0", "x" * 300])
def test_choices_that_there_are_not(guarded, model, choice):
    assert refused(guarded["Loader"], checkpoint="demo", dtype=choice, image_tokenizer="auto")
    assert refused(guarded["Loader"], checkpoint=choice, dtype="auto", image_tokenizer="auto")
    assert refused(guarded["ApplyLoRA"], model=model, lora=choice, strength=1.0)
    assert refused(guarded["LoadEditDataset"], dataset=choice, bad_items="skip", limit=0)


@pytest.mark.parametrize(
    "name", ["x" * 300, "../../out", "/etc/x", "a\0b", "\ud800", "", ".", "a/..", 7]
)
def test_names_of_files_to_write(guarded, model, name):
    tokens = guarded["EncodeInstruction"].PREPARE_CLASS_CLONE(None)
    tokens = tokens.execute(**encoding(model)).result[0].initial
    message = refused(guarded["SaveTokens"], model=model, tokens=tokens, filename_prefix=name)
    assert message.startswith("filename_prefix")


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\\b", "C:", "CON", "nul.txt", "a" * 101])
def test_names_of_runs_and_checkpoints(folders, training_folders, name):
    for use in (
        lambda: training_folders.run_folder(name, False).__enter__(),
        lambda: folders.new_checkpoint(name),
    ):
        with pytest.raises(InputError, match="100 letters"):
            use()


def test_tokens_and_prompts_of_another_checkpoint(guarded, model):
    node = guarded["EncodeInstruction"].PREPARE_CLASS_CLONE(None)
    prompt = node.execute(**encoding(model, image=PICTURE)).result[0]
    rows, codes = model.model.transformer.config.embedding_size, model.model.layout.codebook_size
    for text, image in ((rows, 0), (0, codes), (-2, 0)):
        tokens = replace(
            prompt.initial,
            text=torch.full_like(prompt.initial.text, text),
            image=torch.full_like(prompt.initial.image, image),
        )
        assert "another checkpoint" in refused(guarded["DecodeText"], model=model, tokens=tokens)
    cut = replace(prompt.initial, image=prompt.initial.image[:, :2])
    assert "its placement has size" in refused(guarded["DecodeText"], model=model, tokens=cut)
    prompt = replace(prompt, instruction=torch.full_like(prompt.instruction, rows))
    inputs = {"left": 16, "top": 0, "right": 0, "bottom": 0}
    message = refused(guarded["ExtendCanvas"], model=model, prompt=prompt, **inputs)
    assert message.startswith("prompt is of another checkpoint")


def test_a_trajectory_of_another_checkpoint(guarded, model):
    rows, codes = model.model.transformer.config.embedding_size, model.model.layout.codebook_size
    known = TokenState(torch.zeros(1, 4).long(), torch.zeros(1, 2, 2).long())
    shown = {"steps": 2, "columns": 1, "confidence": False, "side": 64, "sample": 0}
    for text, image in ((rows, 0), (0, codes)):
        other = TokenState(known.text + text, known.image + image)
        for ends in ((known, other), (other, known)):
            run = Trajectory((), *ends, 0)
            message = refused(guarded["TrajectorySheet"], model=model, trajectory=run, **shown)
            assert message.startswith("trajectory is of another checkpoint")


def spoilt(state, **changes):
    for name, value in changes.items():
        object.__setattr__(state, name, value)
    return state


def known():
    return TokenState(torch.zeros(1, 4).long(), torch.zeros(1, 2, 2).long())


DAMAGED = {
    "text without values": lambda: spoilt(known(), text=known().text.to("meta")),
    "a picture without values": lambda: spoilt(known(), image=known().image.to("meta")),
    "sparse": lambda: spoilt(known(), text=known().text.to_sparse()),
    "no text": lambda: spoilt(known(), text=None),
    "floats": lambda: spoilt(known(), image=known().image.float()),
    "batches that differ": lambda: spoilt(known(), text=torch.zeros(2, 4).long()),
    "a placement that is none": lambda: replace(known(), placement=(7,)),
    "placements that are none": lambda: spoilt(known(), placement=7),
    "nothing": lambda: object.__new__(TokenState),
}


@pytest.mark.parametrize("state", DAMAGED.values(), ids=DAMAGED)
def test_tokens_that_another_pack_has_spoilt(guarded, model, state):
    message = refused(guarded["DecodeText"], model=model, tokens=state())
    assert message == "tokens is damaged; expected tokens from Parallel Denoise."
    whole, step = known(), Step.before(known())
    shown = {"model": model, "steps": 2, "columns": 1, "confidence": False}
    for run in (
        Trajectory((), state(), whole, 0),
        Trajectory((spoilt(step, after=state()),), whole, whole, 1),
        Trajectory((7,), whole, whole, 1),
        Trajectory((replace(step, text_confidence=torch.ones(1, 5)),), whole, whole, 1),
        Trajectory((), replace(whole, text=whole.text[:, :2]), whole, 0),
    ):
        message = refused(guarded["TrajectorySheet"], trajectory=run, **shown, side=64, sample=0)
        assert message == "trajectory is damaged; expected a trajectory from Parallel Denoise."
    ids = torch.zeros(1, 3).long()
    for prompt in (
        spoilt(Prompt(ids, ids, None, known()), initial=state()),
        spoilt(Prompt(ids, ids, None, known()), instruction=ids.float()),
        spoilt(Prompt(ids, ids, None, known()), unconditional=ids[:, 0]),
        spoilt(Prompt(ids, ids, None, known()), image=ids),
        spoilt(Prompt(ids, ids, None, known()), instruction=None),
    ):
        inputs = {"left": 16, "top": 0, "right": 0, "bottom": 0, "prompt": prompt}
        message = refused(guarded["ExtendCanvas"], model=model, **inputs)
        assert message == "prompt is damaged; expected a prompt from Encode Instruction."


def test_tokens_of_a_size_that_no_node_makes(guarded, model):
    for text, grid in ((4, (1, 129)), (4, (129, 1)), (4097, (1, 1))):
        tokens = TokenState.masked(1, text, grid)
        message = refused(guarded["DecodeText"], model=model, tokens=tokens)
        assert "expected at most 4096 text tokens and sides of 4096 pixels" in message


def test_tokens_on_another_device_are_brought_back(guarded, model, monkeypatch):
    """Another pack may move tokens to the GPU: here, what it says of itself."""
    elsewhere = known()
    monkeypatch.setattr(TokenState, "to", lambda self, device: (device, known())[1])
    elsewhere.text.__class__ = type("Elsewhere", (torch.Tensor,), {"is_cpu": False})
    node = guarded["PickSample"].PREPARE_CLASS_CLONE(None)
    (picked,) = node.execute(tokens=elsewhere, index=0).result
    assert picked.text.is_cpu


def test_frames_that_would_not_fit_into_memory(guarded, model):
    state = TokenState(torch.zeros(1, 4).long(), torch.zeros(1, 2, 4).long())
    run = Trajectory((Step.before(state),) * 100, state, state, 100)
    shown = {"steps": 100, "columns": 4, "confidence": False, "side": 2048, "sample": 0}
    message = refused(guarded["TrajectorySheet"], model=model, trajectory=run, **shown)
    assert "have 1678 million pixels; expected at most 500 million" in message


def test_a_batch_of_nothing(guarded, model):
    nothing = TokenState(torch.zeros(0, 4).long(), torch.zeros(0, 2, 2).long())
    message = refused(guarded["DecodeImage"], model=model, tokens=nothing, fill="grey")
    assert message == "tokens is a batch of 0; expected tokens from Parallel Denoise."
    run = {"trajectory": Trajectory((), nothing, nothing, 0), "fraction": 0.5, "index": -1}
    assert refused(guarded["TrajectoryStep"], **run).startswith("trajectory is a batch of 0")


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float8_e4m3fn])
def test_pictures_in_any_floats(guarded, model, dtype):
    def run(name, **inputs):
        return guarded[name].PREPARE_CLASS_CLONE(None).execute(**inputs)

    image = torch.rand(1, 64, 64, 3).to(dtype)
    prompt = run("EncodeInstruction", **encoding(model, image=image, mask=image[..., 0]))[0]
    given = {"model": model, "prompt": prompt, "original": image, "result": image, "mode": "all"}
    settings = {"fill": "auto", "feather": 8, "grow": 0, "threshold": 0.1}
    assert run("PutBack", **given, **settings)[0].shape == (1, 64, 64, 3)


def test_views_that_numpy_does_not_know_are_taken(guarded, model):
    negative = torch.zeros(1, 32, 32, 3, dtype=torch.complex64).conj().imag
    node = guarded["EncodeInstruction"].PREPARE_CLASS_CLONE(None)
    given = {"instruction": WORD, "width": 0, "height": 0, "text_length": 0}
    seen, plain = (
        node.execute(model=model, image=image, **given)[0].image
        for image in (negative, negative.clone())
    )
    assert torch.equal(seen, plain)


def test_encoding_a_batch_can_be_interrupted(guarded, model):
    from comfy import model_management

    node = guarded["EncodeInstruction"].PREPARE_CLASS_CLONE(None)
    model_management.interrupt_current_processing(True)
    with pytest.raises(model_management.InterruptProcessingException):
        node.execute(**encoding(model, image=PICTURE.repeat(3, 1, 1, 1)))
    model_management.interrupt_current_processing(False)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError()])
def test_memory_that_runs_out_is_one_sentence(nodes, guarded, model, monkeypatch, error):
    def full(*_, **__):
        raise error

    monkeypatch.setattr(nodes.decode, "decode_pixels", full)
    state = TokenState(torch.zeros(1, 2).long(), torch.zeros(1, 2, 2).long())
    given = {"model": model, "tokens": state, "fill": "grey"}
    with pytest.raises(torch.OutOfMemoryError):  # ComfyUI frees its memory at that
        guarded["DecodeImage"].PREPARE_CLASS_CLONE(None).execute(**given)
    assert "ran out of memory" in refused(guarded["DecodeImage"], **given)


@pytest.mark.parametrize(
    "value",
    [
        *[7, -1, 2**70, math.nan, "4", "", "\0", "\ud800", [1, "a"], {}, None],
        f"{'x' * 300}.tokens.safetensors",
    ],
)
def test_any_widget_can_be_checked_when_it_is_queued(guarded, value):
    for node in guarded.values():
        if "validate_inputs" not in node.__dict__:
            continue
        code = node.__dict__["validate_inputs"].__func__.__code__
        for name in code.co_varnames[1 : code.co_argcount]:
            kind = next(i for i in node.define_schema().inputs if i.id == name).get_io_type()
            given = str(value) if kind == "STRING" and value is not None else value  # as ComfyUI
            said = node.validate_inputs(**{name: given})
            assert said is True or (isinstance(said, str) and "\n" not in said)


def test_a_node_runs_again_no_sooner_because_its_widgets_are_linked(guarded, nodes):
    """ComfyUI asks with None for what is linked, and runs again where that fails."""
    asked = []
    for node in guarded.values():
        if "fingerprint_inputs" not in node.__dict__:
            continue
        clone = node.PREPARE_CLASS_CLONE(None)
        linked = dict.fromkeys(i.id for i in node.define_schema().inputs)
        first, second = (json.dumps(clone.fingerprint_inputs(**linked)) for _ in range(2))
        assert first == second
        asked.append(node)
    assert len(asked) > 8
    before = nodes.training_run.begun_with(None, None)
    nodes.training_run._interruptions["any"] += 1
    assert nodes.training_run.begun_with(None, None) != before
