"""A third family is one file: registered here, it goes through all that the pack does."""

import pytest
import torch
from mmada_parallel.mmp_core import (
    MASKED,
    CheckpointError,
    InputError,
    SamplerSettings,
    Trajectory,
    decode_image,
    decode_pixels,
    decode_text,
    denoise,
    encode_instruction,
    load_checkpoint,
    masked_pixels,
)
from mmada_parallel.mmp_core.batching import denoise_in_batches
from mmada_parallel.mmp_core.checkpoint.convert import KINDS, convert
from mmada_parallel.mmp_core.checkpoint.load import open_checkpoint
from mmada_parallel.mmp_core.checkpoint.tokens import load_tokens, save_tokens
from mmada_parallel.mmp_core.editing import extended, reopened, text_pieces
from mmada_parallel.mmp_core.memory import denoising_estimate
from mmada_parallel.mmp_core.model.quantised import formats_of
from mmada_parallel.mmp_core.variants import registry
from mmada_parallel.tests.mmp_core import third_family, tiny
from PIL import Image

SPEEDS = ("exact", "cached", "fast", "fastest")
ANSWERS = {"image": {"text_length": 0}, "text": {"size": (0, 0)}}


@pytest.fixture(scope="module", autouse=True)
def registered():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "VARIANTS", [*registry.VARIANTS, third_family.Postcard()])
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return third_family.write_checkpoint(tmp_path_factory.mktemp("checkpoints") / "card")


@pytest.fixture(scope="module")
def model(folder):
    return load_checkpoint(folder, family="postcard")


@pytest.fixture(params=ANSWERS)
def prompt(request, model):
    picture = Image.linear_gradient("L").resize((20, 9)).convert("RGB")
    options = ANSWERS[request.param]
    return encode_instruction(model, "make it red", picture, batch=3, **options)


def test_the_user_says_what_the_files_cannot_tell(folder, model, tmp_path):
    assert (model.variant.id, str(model.variant), model.variant.name) == ("P", "P", "Postcard")
    with pytest.raises(CheckpointError, match="vqvae folder of MMaDA-Parallel-A"):
        load_checkpoint(folder)
    with pytest.raises(CheckpointError, match="not a checkpoint of MMaDA-Parallel-M"):
        load_checkpoint(folder, family="M")
    with pytest.raises(InputError, match="expected A .*, M .*, P \\(Postcard\\)"):
        load_checkpoint(folder, family="letter")
    (folder / "palette").rename(folder / "elsewhere")
    with pytest.raises(CheckpointError, match="put the palette folder into .*card"):
        load_checkpoint(folder, family="P")
    (folder / "elsewhere").rename(folder / "palette")


@pytest.mark.parametrize("kind", KINDS)
def test_one_file_remembers_the_family(folder, model, tmp_path, kind, prompt):
    convert(folder, tmp_path / "card.safetensors", quantize=kind, family="P")
    source = open_checkpoint(tmp_path / "card.safetensors")
    one = load_checkpoint(tmp_path / "card.safetensors")
    assert one.variant.name == "Postcard"
    assert bool(formats_of(source.weights)) == (kind != "none")
    final = denoise(one, prompt, SamplerSettings(text_steps=3, image_steps=3)).final
    if kind == "none":
        whole = denoise(model, prompt, SamplerSettings(text_steps=3, image_steps=3)).final
        assert torch.equal(final.text, whole.text)
        assert torch.equal(final.image, whole.image)


def test_it_answers_with_text_or_an_image(model):
    assert encode_instruction(model, "make it red").initial.text.shape == (1, 0)
    both, nothing = {"text_length": 3, "size": (6, 6)}, {"text_length": 0, "size": (0, 0)}
    for options, given in ((both, "text and image"), (nothing, "nothing")):
        with pytest.raises(InputError, match=f"answers with image or text, not with {given}"):
            encode_instruction(model, "make it red", **options)


def test_the_prompt_is_as_the_family_says(model, prompt):
    assert prompt.image.shape == (3, 3, 4)  # squashed to its own size
    assert (prompt.initial.text.shape[1] == 0) != (prompt.initial.image[0].numel() == 0)
    ids = model.layout.model_input(prompt, prompt.initial).ids
    text, cells = prompt.initial.text.shape[1], prompt.initial.image[0].numel()
    assert (ids[:, : text + cells] == model.layout.mask_id).all()
    assert (ids[:, text + cells] == model.layout.card).all()
    assert (ids[:, -12:] == prompt.image.flatten(1) + model.layout.image_offset).all()


@pytest.mark.parametrize("speed", SPEEDS)
@pytest.mark.parametrize("order", ["parallel", "text_first", "image_first"])
def test_every_speed_unmasks_all(model, prompt, speed, order):
    settings = SamplerSettings(
        text_steps=4,
        image_steps=4,
        text_temperature=0.5,
        image_guidance=1.0,
        reasoning_guidance=0.5,
        speed=speed,
        order=order,
        seed=[4, 5, 6],
    )
    trajectory = denoise(model, prompt, settings)
    final, (height, width) = trajectory.final, prompt.initial.grid
    assert final.text.shape == prompt.initial.text.shape
    assert final.image.shape == prompt.initial.image.shape
    assert not (final.text == MASKED).any()
    assert not (final.image == MASKED).any()
    assert 0 < len(trajectory) <= 4
    check_trajectory(trajectory)
    words = decode_text(model, final, masked="?")
    assert len(words) == 3
    assert "".join(words) or not final.text.shape[1]
    assert [picture.size for picture in decode_image(model, final)] == [(width * 3, height * 3)] * 3
    assert decode_pixels(model, final).shape == (3, height * 3, width * 3, 3)
    assert masked_pixels(model, final).shape == (3, height * 3, width * 3)
    assert len(text_pieces(model, final)[0]) == final.text.shape[1]
    alone = denoise(model, prompt[1:2], SamplerSettings(**{**vars(settings), "seed": 5})).final
    assert torch.equal(alone.text, final.text[1:2])
    assert torch.equal(alone.image, final.image[1:2])


def check_trajectory(trajectory: Trajectory):
    unmasked = 0
    for step in trajectory:
        unmasked += int(step.text_revealed.sum()) + int(step.image_revealed.sum())
        assert step.text_confidence.shape == step.state.text.shape
        assert step.image_confidence.shape == step.state.image.shape
    assert unmasked == trajectory.final.text.numel() + trajectory.final.image.numel()
    for fraction in (0, 0.5, 1):
        assert trajectory.at(fraction).after.batch == 3


def test_a_batch_is_denoised_as_memory_allows(model, prompt):
    settings = SamplerSettings(text_steps=3, image_steps=3)
    estimate = denoising_estimate(model, prompt, settings)
    assert estimate.total(2) > estimate.total(1) > 0

    class OneByOne:
        def samples(self, estimate, batch):
            return 1

        def prepare(self, estimate, samples):
            pass

    whole = denoise(model, prompt, settings).final
    batches = denoise_in_batches(model, prompt, settings, budget=OneByOne()).final
    assert torch.equal(batches.text, whole.text)
    assert torch.equal(batches.image, whole.image)


def test_tokens_are_saved_and_edited(model, prompt, tmp_path):
    final = denoise(model, prompt, SamplerSettings(text_steps=3, image_steps=3)).final
    save_tokens(tmp_path / "tokens.safetensors", final, model)
    loaded = load_tokens(tmp_path / "tokens.safetensors", model)
    assert torch.equal(loaded.text, final.text)
    assert torch.equal(loaded.image, final.image)
    masked = reopened(loaded, text=torch.rand(1, final.text.shape[1]) < 0.5)
    again = denoise(model, prompt.starting_from(masked), SamplerSettings(text_steps=2)).final
    assert not (again.text == MASKED).any()
    if final.image[0].numel():
        wider = extended(prompt.starting_from(final), left=1, top=0, right=0, bottom=0)
        assert wider.initial.grid == (3, 5)
    other = load_checkpoint(tiny.write_checkpoint(tmp_path / "other", "A"))
    with pytest.raises(InputError, match="another variant"):
        load_tokens(tmp_path / "tokens.safetensors", other)


def test_a_family_without_a_released_sampler_says_so(model, prompt):
    with pytest.raises(InputError, match="Postcard has no upstream preset"):
        denoise(model, prompt, SamplerSettings.upstream("postcard"))
