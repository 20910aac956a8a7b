"""Half-denoised tokens on wires: picked, locked, fixed, extended, saved."""

import json
from dataclasses import replace

import pytest
import torch
from mmada_parallel.mmp_core import MASKED, InputError, TokenState
from safetensors import safe_open

KEEP = {"picture": "keep all", "text": "keep all", "words": "", "pattern": "", "coverage": 0.5}


@pytest.fixture(scope="module")
def trajectory(model):
    from mmada_parallel.mmp_core import SamplerSettings, denoise, encode_instruction

    prompt = encode_instruction(model.model, "remove the red star", batch=2)
    return denoise(model.model, prompt, SamplerSettings(joint_guidance=0.0))


@pytest.fixture
def remask(run_node, model):
    def node(tokens, mask=None, **changes):
        chosen = {**KEEP, **changes}
        return run_node("Remask", model=model, tokens=tokens, mask=mask, **chosen)[0]

    return node


def test_a_step_is_picked_by_fraction_or_by_index(run_node, trajectory):
    def pick(fraction=0.5, index=-1):
        return run_node("TrajectoryStep", trajectory=trajectory, fraction=fraction, index=index)

    tokens, guess, step = pick()
    assert step == round(0.5 * trajectory.total_steps)
    assert (tokens.text == MASKED).any() and not (guess.text == MASKED).any()
    assert pick(fraction=1.0)[0].text.equal(trajectory.final.text)
    assert (pick(fraction=0.0)[0].image == MASKED).all() and pick(fraction=0.0)[2] == 0
    assert pick(index=0)[2] == 1
    with pytest.raises(InputError, match="index is 999"):
        pick(index=999)


def test_a_run_that_recorded_nothing_says_how_to_record(run_node, model, trajectory):
    empty = replace(trajectory, steps=())
    with pytest.raises(InputError, match="record_steps"):
        run_node("TrajectoryStep", trajectory=empty, fraction=0.5, index=-1)


def test_the_sheet_and_its_frames(run_node, model, trajectory):
    own = {"steps": 5, "columns": 3, "confidence": False, "side": 64, "sample": 1}
    sheet, frames = run_node("TrajectorySheet", model=model, trajectory=trajectory, **own)
    assert frames.shape[0] == 5 and frames.shape[3] == 3 and frames.dtype == torch.float32
    assert sheet.shape == (1, 2 * frames.shape[1], 3 * frames.shape[2], 3)
    with pytest.raises(InputError, match="sample is 2"):
        run_node("TrajectorySheet", model=model, trajectory=trajectory, **{**own, "sample": 2})


def test_patches_are_reopened_or_kept_by_a_mask(remask, trajectory):
    tokens, mask = trajectory.final, torch.zeros(1, 10, 10)
    mask[:, :5] = 1
    opened = remask(tokens, mask, picture="reopen masked").image == MASKED
    kept = remask(tokens, mask, picture="keep masked").image == MASKED
    assert opened[:, :2].all() and not opened[:, 2:].any() and torch.equal(kept, ~opened)
    assert (remask(tokens, picture="reopen all").image == MASKED).all()
    assert torch.equal(remask(tokens, mask).image, tokens.image)
    assert torch.equal(remask(tokens, picture="reopen masked").image, tokens.image)


def said(output):
    """The sentences of a node's text, and its pictures."""
    ui = output.ui or {}
    return "".join(ui.get("text", ())), ui.get("images", [])


def test_masks_of_any_count_and_none_painted_are_fitted_and_said(run_node, model, trajectory):
    tokens, mask = trajectory.final, torch.zeros(3, 10, 10)
    mask[0, :5], mask[1, 5:] = 1, 1

    def run(mask, **changes):
        own = {**KEEP, "picture": "reopen masked", **changes}
        return run_node("Remask", model=model, tokens=tokens, mask=mask, **own)

    opened = run(mask)
    assert (opened[0].image[0, :2] == MASKED).all() and (opened[0].image[1, 2:] == MASKED).all()
    text, images = said(opened)
    assert "3 masks for 2 results: the others are not used." in text and len(images) == 2
    assert "8 of 16 image tokens are drawn anew" in text
    unpainted = run(torch.zeros(1, 64, 64))
    assert torch.equal(unpainted[0].image, tokens.image)
    assert "not painted: it selects nothing" in said(unpainted)[0]
    dot = torch.zeros(1, 64, 64)
    dot[:, 20, 20] = 1
    assert (run(dot, coverage=0.0)[0].image[:, 1, 1] == MASKED).all()
    grown = run(dot, coverage=0.0, grow=1)[0].image == MASKED
    assert grown[:, :3, :3].all() and grown.sum() == 2 * 9


def test_a_mask_of_the_originals_size_lies_on_the_original(run_node, model, encoded):
    picture, mask = torch.rand(1, 100, 1000, 3), torch.zeros(1, 100, 1000)
    mask[:, :, 640:] = 1  # the model sees 300 to 700
    tokens = encoded(picture).initial
    own = {**KEEP, "picture": "reopen masked", "coverage": 0.0, "model": model}
    own["tokens"] = replace(tokens, image=torch.zeros_like(tokens.image))
    assert tokens.grid == (2, 8) and tokens.placement[0].box == pytest.approx((300, 0, 700, 100))
    on_original = run_node("Remask", mask=mask, **own)[0].image[0, 0] == MASKED
    stretched = run_node("Remask", mask=mask[:, :50], **own)[0].image[0, 0] == MASKED
    assert on_original.tolist() == [False] * 6 + [True] * 2
    assert stretched.tolist() == [False] * 5 + [True] * 3


def test_words_are_reopened_or_kept_by_number_and_pattern(remask, model):
    ids = model.model.tokenizer("the red star goes away .", add_special_tokens=False)["input_ids"]
    tokens = TokenState(torch.tensor([ids]), torch.zeros(1, 2, 2, dtype=torch.int64))

    def opened(**chosen):
        return [i for i, t in enumerate(remask(tokens, **chosen).text[0].tolist()) if t == MASKED]

    assert opened(text="reopen selected", words="2-3") == [1, 2]
    assert opened(text="reopen selected", words="1", pattern="away") == [0, 4]
    assert opened(text="keep selected", pattern="red|star") == [0, 3, 4, 5]
    assert opened(text="keep all", words="9") == [] and opened(text="reopen all") == [*range(6)]
    with pytest.raises(InputError, match="6 words"):
        opened(text="reopen selected", words="9")


def test_own_text_is_drawn_without_the_instruction(run_node, model, encoded, denoised):
    own = {"model": model, "prompt": encoded(), "rest": "auto"}
    whole, gaps = "the red star goes away .", "the red ░ goes away ."
    (prompt,) = run_node("SetTokens", instruction="auto", text=whole, **own)
    assert torch.equal(prompt.instruction, prompt.unconditional)
    for given, instruction in ((gaps, "auto"), (whole, "keep")):
        (prompt,) = run_node("SetTokens", instruction=instruction, text=given, **own)
        assert torch.equal(prompt.instruction, encoded().instruction)
        final, _ = denoised(prompt)
        fixed = prompt.initial.text != MASKED
        assert fixed.sum() == prompt.initial.text.shape[1] - (given == gaps)
        assert torch.equal(final.text[fixed], prompt.initial.text[fixed])


def test_a_given_picture_is_explained(run_node, model, encoded, denoised):
    picture = torch.rand(1, 128, 128, 3)
    own = {"model": model, "text": "", "rest": "auto", "instruction": "auto"}
    (prompt,) = run_node("SetTokens", prompt=encoded(), image=picture, **own)
    assert torch.equal(prompt.instruction, encoded().instruction)
    final, _ = denoised(prompt)
    assert torch.equal(final.image, prompt.initial.image) and (final.text != MASKED).all()
    smaller = run_node("SetTokens", prompt=encoded(width=64, height=64), image=picture, **own)
    assert smaller[0].initial.grid == (2, 2) and (smaller[0].initial.image != MASKED).all()
    assert "from 128x128 to 64x64 pixels" in said(smaller)[0]
    large, mask = torch.rand(1, 600, 900, 3), torch.zeros(1, 600, 900)
    mask[:, 300:310, 400:420] = 1
    inputs = {"image": large, "mask": mask, "region": "mask", "width": 0, "height": 0}
    (about,) = run_node(
        "EncodeInstruction", model=model, instruction="go", text_length=0, **inputs
    ).result
    (prompt,) = run_node("SetTokens", prompt=about, image=large, **own)
    assert torch.equal(prompt.initial.image, about.image)
    several = run_node("SetTokens", prompt=encoded(), image=picture.repeat(3, 1, 1, 1), **own)
    assert "3 pictures for 1 result" in said(several)[0]


def test_inpainting_and_outpainting_keep_the_picture(run_node, classes, model, encoded, denoised):
    picture, mask = torch.rand(1, 128, 128, 3), torch.zeros(1, 128, 128)
    mask[:, :, :32] = 1
    prompt = encoded(picture, mask=mask)
    final, _ = denoised(prompt)
    assert (prompt.initial.image == MASKED).sum() == 4
    assert torch.equal(final.image[:, :, 1:], prompt.image[:, :, 1:])
    sides = {"left": 0, "top": 1, "right": 64, "bottom": 0}
    (wider,) = run_node("ExtendCanvas", model=model, prompt=encoded(picture), **sides)
    assert wider.initial.grid == (5, 6)
    final, _ = denoised(wider)
    assert torch.equal(final.image[:, 1:, :4], wider.image)


def test_undecided_parts_leave_as_a_mask_and_in_the_chosen_colour(run_node, model, trajectory):
    half = trajectory.at(0.6).after
    image, mask = run_node("DecodeImage", model=model, tokens=half, fill="magenta")
    assert mask.shape == image.shape[:3]
    open_cells = (half.image == MASKED).repeat_interleave(32, 1).repeat_interleave(32, 2)
    assert torch.equal(mask > 0, open_cells) and open_cells.any()
    assert (image[open_cells] == torch.tensor([1.0, 0.0, 1.0])).all()
    assert not run_node("DecodeImage", model=model, tokens=trajectory.final, fill="grey")[1].any()


def test_tokens_are_saved_found_and_loaded(
    run_node, folders, model, trajectory, tmp_path, monkeypatch
):
    import folder_paths

    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path / "out"))
    monkeypatch.setattr(folder_paths, "input_directory", str(tmp_path / "in"))
    half = trajectory.at(0.5).after
    for _ in range(2):
        run_node("SaveTokens", model=model, tokens=half, filename_prefix="a/b")
    names = ["a/b_00002_.tokens.safetensors [output]", "a/b_00001_.tokens.safetensors [output]"]
    assert sorted(folders.token_files()) == sorted(names)
    (again,) = run_node("LoadTokens", model=model, file=names[1])
    assert torch.equal(again.text, half.text) and torch.equal(again.image, half.image)
    json.dumps(folders.fingerprint(lambda: [folders.token_file(names[0])]))
    with pytest.raises(InputError, match="is neither in"):
        run_node("LoadTokens", model=model, file="../secret.tokens.safetensors")


@pytest.mark.parametrize(
    "extra",
    [
        *("text", [1], 7, {1: 2}, {"\ud800": 1}, {"a": {1}}, {"placement": "x", "format": "y"}),
        {"long": '"' * 30_000_000},
        {str(number): "x" * 10**6 for number in range(120)},
        {str(number): 0 for number in range(10**6)},
    ],
    ids=lambda extra: str(extra)[:40],
)
def test_tokens_are_saved_whatever_comes_with_the_workflow(
    nodes, classes, run_node, model, trajectory, tmp_path, monkeypatch, extra
):
    import folder_paths

    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    node = classes["MMaDAParallelSaveTokens"].PREPARE_CLASS_CLONE(None)
    node.hidden.prompt, node.hidden.extra_pnginfo = {"1": {}}, extra
    half = replace(trajectory.at(0.5).after, placement=None)
    node.execute(model=model, tokens=half, filename_prefix="a")
    name = "a_00001_.tokens.safetensors"
    with safe_open(tmp_path / name, framework="pt") as file:
        assert file.metadata()["prompt"] == '{"1": {}}'
    (again,) = run_node("LoadTokens", model=model, file=f"{name} [output]")
    assert torch.equal(again.image, half.image)


def test_tokens_that_could_not_be_loaded_again_are_not_saved(run_node, model):
    with pytest.raises(InputError, match="tokens holds 1025 samples of .* expected at most 1024"):
        run_node(
            "SaveTokens",
            model=model,
            tokens=TokenState.masked(1025, 1, (1, 1)),
            filename_prefix="a",
        )


def test_denoising_goes_on_from_any_step_with_other_settings(encoded, denoised):
    prompt = encoded()
    _, trajectory = denoised(prompt, seed=1)
    half = trajectory.at(0.5).after
    final, _ = denoised(prompt, tokens=half, seed=2, order="text_first", text_steps=3)
    for name in ("text", "image"):
        before, after = getattr(half, name), getattr(final, name)
        assert torch.equal(after[before != MASKED], before[before != MASKED])
        assert (after != MASKED).all()
