"""Image tokenizers, crops and painting masks against what the reference computed."""

import json
import random

import numpy as np
import pytest
import torch
from mmada_parallel.mmp_core.image import pictures as images
from mmada_parallel.mmp_core.image.amused import AmusedVQ
from mmada_parallel.mmp_core.image.magvit import MagvitV2
from mmada_parallel.mmp_core.image.tokenizer import ImageTokenizer
from mmada_parallel.tests.parity import golden
from PIL import Image
from safetensors.torch import load_file


def recipe_vq(**overrides):
    vq = AmusedVQ(golden.VQ_CONFIG | overrides)
    shapes = {name: tuple(tensor.shape) for name, tensor in vq.state_dict().items()}
    vq.load_state_dict(as_tensors(golden.vq_fill(shapes)))
    return vq


def as_tensors(arrays):
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


@pytest.fixture(scope="module")
def vq():
    return recipe_vq()


@pytest.fixture(scope="module")
def magvit_weights():
    listed = json.loads(golden.golden_file("modules", "magvit_weights.json").read_text())
    return golden.magvit_fill({name: tuple(entry["shape"]) for name, entry in listed.items()})


@pytest.fixture(scope="module")
def magvit(magvit_weights):
    model = MagvitV2(device="meta")
    model.load_state_dict(as_tensors(magvit_weights), assign=True)
    return model


def test_recipe_rebuilds_the_weights(magvit_weights):
    sums = golden.weight_sums()
    assert {n: golden.sha256(a) for n, a in golden.model_weights("micro-A")} == sums["micro-A"]
    filled = golden.vq_fill(golden.vq_shapes())
    assert {n: golden.sha256(a) for n, a in filled.items()} == sums["micro-A/vqvae"]
    listed = json.loads(golden.golden_file("modules", "magvit_weights.json").read_text())
    for name in ("encoder.conv_in.weight", "decoder.up.4.upsample.conv.bias"):
        assert golden.sha256(magvit_weights[name]) == listed[name]["sha256"]


def test_vq_encodes_as_the_reference(vq):
    case = load_file(golden.golden_file("modules", "vq.safetensors"))
    with torch.no_grad():
        latents = vq.latents(case["pixels_in"])
    assert torch.allclose(latents, case["latents"], rtol=1e-4, atol=1e-4)
    assert torch.equal(vq.encode(case["pixels_in"])[0], case["indices"].long())


def test_vq_decodes_as_the_reference(vq):
    case = load_file(golden.golden_file("modules", "vq.safetensors"))
    codes = case["decode_codes"].view(1, *case["indices"].shape)
    with torch.no_grad():
        sample = vq.decode_vectors(vq.vectors(codes))
    assert torch.allclose(sample, case["decode_sample"], rtol=1e-4, atol=1e-4)
    picture = images.to_pil(vq.decode(codes), vq.pixel_range)[0]
    off = np.asarray(picture).astype(int) - case["decode_uint8"].numpy().astype(int)
    assert np.abs(off).max() <= 1


def test_vq_reads_the_golden_picture_to_the_same_pixels(vq):
    case = load_file(golden.golden_file("modules", "vq.safetensors"))
    picture = images.load_image(golden.golden_file("modules", "image.png"))
    height, width = case["pixels_in"].shape[2:]
    pixels = images.to_pixels(picture.crop((0, 0, width, height)), vq.pixel_range)
    assert torch.equal(pixels, case["pixels_in"])


def test_magvit_encodes_as_the_reference(magvit):
    case = load_file(golden.golden_file("modules", "magvit.safetensors"))
    with torch.no_grad():
        latents = magvit.latents(case["pixels_in"])
    assert torch.allclose(latents, case["encoder_out"], rtol=1e-4, atol=1e-4)
    assert torch.equal(magvit.encode(case["pixels_in"]).flatten(), case["codes"][0].long())


@pytest.mark.parametrize("name", ["decode", "decode_2x4"])
def test_magvit_decodes_as_the_reference(magvit, name):
    case = load_file(golden.golden_file("modules", "magvit.safetensors"))
    height, width = (side // magvit.downsample for side in case[name].shape[2:])
    codes = case["decode_codes"][:, : height * width].view(1, height, width)
    with torch.no_grad():
        sample = magvit.decode_vectors(magvit.vectors(codes))
    assert torch.allclose(sample, case[name], rtol=1e-4, atol=1e-4)
    assert torch.allclose(magvit.decode(codes), case[name].clamp(-1, 1), atol=1e-4)


def test_magvit_loads_the_released_file_with_its_constant_tables(magvit_weights):
    codes = torch.arange(8192)
    places = torch.arange(12, -1, -1)
    tables = {
        "quantize.embedding": ((codes[:, None] >> places) & 1).float() * 2 - 1,
        "quantize.power_vals": 2**places,
    }
    model = MagvitV2(device="meta")
    model.load_state_dict(as_tensors(magvit_weights) | tables, assign=True)
    tables["quantize.power_vals"] = tables["quantize.power_vals"].flip(0)
    with pytest.raises(RuntimeError, match="power_vals is not the table"):
        model.load_state_dict(as_tensors(magvit_weights) | tables, assign=True)


def test_crops_are_those_of_the_reference():
    listed = json.loads(golden.golden_file("modules", "crop.json").read_text())
    sizes = images.crop_sizes(256, 32)
    assert sizes == [tuple(size) for size in listed["crop_size_list"]]
    for case in listed["cases"]:
        picture = Image.fromarray(golden.picture(case["img_seed"], *case["in_wh"]))
        crop = images.fit_image(picture, sizes, offset=random.Random(case["python_seed"]))
        assert crop.size == tuple(case["out_wh"])
        assert golden.sha256(np.asarray(crop)) == case["sha256"], case


def test_painting_masks_are_those_of_the_reference():
    for case in json.loads(golden.golden_file("modules", "painting.json").read_text()):
        width, height = case["size_wh"]
        mask = images.painting_mask(
            height,
            width,
            height // 16,
            width // 16,
            case["mode"],
            case["mask_h_ratio"],
            case["mask_w_ratio"],
        )
        assert mask.flatten().int().tolist() == case["masked"], case


@pytest.mark.parametrize("attention", [False, True])
@pytest.mark.parametrize("width", [None, 4])
def test_vq_equals_diffusers(attention, width):
    diffusers = pytest.importorskip("diffusers")
    changed = dict(
        mid_block_add_attention=attention,
        vq_embed_dim=width,
        num_vq_embeddings=64,
        block_out_channels=[16, 24],
        norm_num_groups=8,
        layers_per_block=2,
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
    )
    ours = recipe_vq(**changed)
    config = {k: v for k, v in (golden.VQ_CONFIG | changed).items() if not k.startswith("_")}
    theirs = diffusers.VQModel(**config)
    theirs.load_state_dict(ours.state_dict())
    pixels = torch.from_numpy(golden.picture(5, 24, 16)).permute(2, 0, 1)[None].float() / 255
    with torch.no_grad():
        latents = theirs.encode(pixels).latents
        codes = theirs.quantize(latents)[2][2].view(1, 8, 12)
        sample = theirs.decode(
            codes, force_not_quantize=True, shape=(1, 8, 12, latents.shape[1])
        ).sample
        assert torch.allclose(ours.latents(pixels), latents, rtol=1e-4, atol=1e-5)
        assert torch.equal(ours.encode(pixels), codes)
        assert torch.allclose(ours.decode_vectors(ours.vectors(codes)), sample, atol=1e-4)


def test_picture_levels_are_those_of_diffusers():
    processors = pytest.importorskip("diffusers.image_processor")
    pixels = torch.linspace(-0.2, 1.2, 3 * 64 * 64).view(1, 3, 64, 64)
    processor = processors.VaeImageProcessor(vae_scale_factor=16, do_normalize=False)
    theirs = processor.postprocess(pixels.clip(0, 1), output_type="pil")[0]
    assert np.array_equal(np.asarray(images.to_pil(pixels, (0.0, 1.0))[0]), np.asarray(theirs))


@pytest.mark.parametrize("size", [(40, 30), (700, 900)])
def test_squash_equals_torchvision(size):
    transforms = pytest.importorskip("torchvision.transforms")
    picture = Image.fromarray(golden.picture(6, *size))
    theirs = transforms.Compose(
        [
            transforms.Resize((96, 96), transforms.InterpolationMode.BICUBIC),
            transforms.ToTensor(),
            transforms.Normalize(mean=[0.5] * 3, std=[0.5] * 3),
        ]
    )(picture)
    ours = images.to_pixels(images.squash_image(picture, (96, 96)), (-1.0, 1.0))
    assert torch.equal(ours[0], theirs)


def test_both_keep_the_interface(vq, magvit):
    assert isinstance(vq, ImageTokenizer) and isinstance(magvit, ImageTokenizer)
    assert (vq.downsample, vq.codebook_size) == (16, 8192)
    assert (magvit.downsample, magvit.codebook_size) == (16, 8192)
