import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmada_parallel.mmp_core.image.amused import AmusedVQ
from mmada_parallel.mmp_core.image.magvit import MagvitV2
from mmada_parallel.mmp_core.image.tokenizer import ImageTokenizer

SMALL = dict(
    block_out_channels=[8, 16],
    norm_num_groups=4,
    latent_channels=4,
    num_vq_embeddings=32,
    lookup_from_codebook=True,
    mid_block_add_attention=True,
)


class CountedLayers:
    """Stands for an injected set of layers: torch's own, counting what is made."""

    def __init__(self):
        self.made = []

    def __getattr__(self, name):
        def make(*args, **options):
            assert options["dtype"] is torch.float64 and options["device"] == "cpu"
            self.made.append(name)
            return getattr(torch.nn, name)(*args, **options)

        return make


@pytest.fixture(scope="module", params=["amused", "magvit"])
def tokenizer(request):
    torch.manual_seed(0)
    return AmusedVQ(SMALL) if request.param == "amused" else MagvitV2({"ch": 32})


@pytest.mark.parametrize(
    "build, kinds",
    [
        (lambda **o: AmusedVQ(SMALL, **o), {"Conv2d", "GroupNorm", "Linear", "Embedding"}),
        (lambda **o: MagvitV2({"ch": 32}, **o), {"Conv2d", "GroupNorm"}),
    ],
)
def test_every_parameter_comes_from_the_injected_layers(build, kinds):
    operations = CountedLayers()
    model = build(operations=operations, dtype=torch.float64, device="cpu")
    leaves = [module for module in model.modules() if list(module.parameters(recurse=False))]
    assert len(leaves) == len(operations.made) and set(operations.made) == kinds
    codes = model.encode(torch.rand(1, 3, 32, 16))
    assert model.decode(codes).dtype == torch.float64


@settings(max_examples=8)
@given(st.integers(1, 2), st.integers(1, 3), st.integers(1, 3))
def test_shapes_types_and_ranges(tokenizer, batch, height, width):
    assert isinstance(tokenizer, ImageTokenizer)
    f, (low, high) = tokenizer.downsample, tokenizer.pixel_range
    codes = tokenizer.encode(torch.rand(batch, 3, height * f, width * f) * (high - low) + low)
    assert codes.shape == (batch, height, width) and codes.dtype == torch.int64
    assert 0 <= codes.min() and codes.max() < tokenizer.codebook_size
    pixels = tokenizer.decode(codes)
    assert pixels.shape == (batch, 3, height * f, width * f)
    assert low <= pixels.min() and pixels.max() <= high


def test_every_code_is_nearest_to_its_own_vector(tokenizer):
    codes = torch.arange(tokenizer.codebook_size).view(1, 4, -1)
    vectors = tokenizer.vectors(codes)
    assert vectors.shape == (1, tokenizer.vector_width, *codes.shape[1:])
    assert torch.equal(tokenizer.nearest(vectors), codes)


def test_gradients_reach_encoder_codebook_and_decoder():
    vq = AmusedVQ(SMALL)
    latents = vq.latents(torch.rand(1, 3, 16, 16))
    vectors = vq.vectors(vq.nearest(latents))
    (vq.decode_vectors(vectors + latents).mean() + vectors.square().mean()).backward()
    assert all(parameter.grad is not None for parameter in vq.parameters())


def test_more_cells_than_one_round_of_distances():
    vq = AmusedVQ(SMALL)
    latents = torch.randn(5, 4, 32, 32)
    whole = (
        torch.cdist(latents.permute(0, 2, 3, 1).reshape(-1, 4), vq.quantize.embedding.weight)
        .argmin(1)
        .view(5, 32, 32)
    )
    assert torch.equal(vq.nearest(latents), whole)


def test_low_precision_weights_take_any_float_pixels():
    vq = AmusedVQ(SMALL, dtype=torch.bfloat16)
    codes = vq.encode(torch.rand(1, 3, 16, 16))
    assert vq.decode(codes.int()).dtype == torch.bfloat16


@pytest.mark.parametrize(
    "call, named",
    [
        (lambda t: t.encode(torch.zeros(3, 32, 32)), r"shape \(3, 32, 32\)"),
        (lambda t: t.encode(torch.zeros(1, 3, 32, 32).int()), "int32"),
        (lambda t: t.encode(torch.zeros(1, 3, 32, 33)), "33x32.*multiples of"),
        (lambda t: t.encode(torch.zeros(1, 3, 0, 32)), "32x0"),
        (lambda t: t.decode(torch.zeros(1, 2)), r"shape \(1, 2\)"),
        (lambda t: t.decode(torch.zeros(1, 2, 2)), "float32"),
        (lambda t: t.decode(torch.zeros(1, 0, 2).long()), "codes is empty"),
        (lambda t: t.decode(torch.full((1, 2, 2), -1)), "-1..-1"),
        (lambda t: t.decode(torch.full((1, 2, 2), t.codebook_size)), "expected 0.."),
        (lambda t: t.nearest(torch.zeros(1, 1, 2, 2)), r"shape \(1, 1, 2, 2\)"),
        (lambda t: t.decode_vectors(torch.zeros(1, 1, 2, 2)), r"shape \(1, 1, 2, 2\)"),
    ],
)
def test_bad_input_is_named(tokenizer, call, named):
    with pytest.raises(ValueError, match=named):
        call(tokenizer)


@pytest.mark.parametrize(
    "field, value",
    [
        ("act_fn", "gelu"),
        ("norm_type", "spatial"),
        ("in_channels", 4),
        ("out_channels", 1),
        ("lookup_from_codebook", False),
        ("block_out_channels", []),
        ("block_out_channels", 8),
        ("block_out_channels", [8, 6]),
        ("layers_per_block", 0),
        ("latent_channels", "4"),
        ("norm_num_groups", None),
        ("num_vq_embeddings", True),
        ("vq_embed_dim", -1),
        ("mid_block_add_attention", 1),
        ("down_block_types", ["AttnDownEncoderBlock2D"] * 2),
        ("up_block_types", 7),
    ],
)
def test_unsupported_config_fields_are_named(field, value):
    with pytest.raises(ValueError, match=field):
        AmusedVQ(SMALL | {field: value}, device="meta")


@pytest.mark.parametrize(
    "ignored",
    [
        dict(force_upcast=True),
        dict(scaling_factor=1.0),
        dict(sample_size=64),
        dict(_class_name="VQModel"),
        dict(patch_size=2),
    ],
)
def test_fields_without_influence_are_ignored(ignored):
    AmusedVQ(SMALL | ignored, device="meta")


@pytest.mark.parametrize("width", [0, 33, "128", True])
def test_unsupported_magvit_width_is_named(width):
    with pytest.raises(ValueError, match="ch is"):
        MagvitV2({"ch": width})
