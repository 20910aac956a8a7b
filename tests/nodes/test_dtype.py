"""The dtype that "auto" gives, by ComfyUI's start options and by what a card computes in."""

from types import SimpleNamespace

import pytest
import torch
from mmada_parallel.mmp_core import memory

CUDA, CPU = torch.device("cuda:0"), torch.device("cpu")
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
NEW, TURING = ("NVIDIA GeForce RTX 4090", 8, 9), ("NVIDIA GeForce RTX 2080", 7, 5)
WITHOUT_HALF, PASCAL = ("NVIDIA GeForce GTX 1660", 7, 5), ("NVIDIA GeForce GTX 1080", 6, 1)


def source(stored):
    return SimpleNamespace(weights={"model.transformer.ln_f.weight": torch.ones(1, dtype=stored)})


@pytest.fixture
def fitting(host, monkeypatch):
    """``fitting(card, option, stored)``: what "auto" gives on a card that is made believe in."""
    import comfy.cli_args
    import comfy.model_management as management

    def fitting(card, option=None, stored=BF16, device=CUDA):
        name, major, minor = card
        properties = SimpleNamespace(name=name, major=major, minor=minor)
        monkeypatch.setattr(management, "cpu_state", management.CPUState.GPU)
        monkeypatch.setattr(management, "maximum_vram_for_weights", lambda device: 0)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)  # counts emulation
        if option:
            monkeypatch.setattr(comfy.cli_args.args, option, True)
        return host.models._fitting_dtype(source(stored), device)

    return fitting


@pytest.mark.parametrize(
    "card, stored, expected",
    [
        (NEW, BF16, BF16),
        (NEW, FP16, FP16),
        (NEW, FP32, BF16),
        (TURING, BF16, FP16),
        (WITHOUT_HALF, BF16, FP32),
        (PASCAL, BF16, FP32),
        (PASCAL, FP16, FP32),
    ],
)
def test_half_precision_only_where_the_card_computes_in_it(fitting, card, stored, expected):
    assert fitting(card, stored=stored) == expected


@pytest.mark.parametrize(
    "option, expected",
    [
        ("force_fp32", FP32),
        ("fp32_unet", FP32),
        ("fp64_unet", FP32),
        ("force_fp16", FP16),
        ("fp16_unet", FP16),
        ("bf16_unet", BF16),
        ("fp8_e4m3fn_unet", BF16),
        ("fp8_e5m2_unet", BF16),
    ],
)
def test_start_options_are_followed_and_never_give_8_or_64_bits(fitting, option, expected):
    assert fitting(NEW, option) == expected


@pytest.mark.parametrize(
    "card, option, expected",
    [(TURING, "bf16_unet", FP16), (WITHOUT_HALF, "fp16_unet", FP32), (TURING, "force_fp32", FP32)],
)
def test_an_option_that_the_card_cannot_follow_is_not_emulated(fitting, card, option, expected):
    assert fitting(card, option) == expected


@pytest.mark.parametrize("option, expected", [(None, BF16), ("force_fp32", FP32)])
def test_a_large_model_on_a_cpu_is_widened_only_if_asked(fitting, monkeypatch, option, expected):
    monkeypatch.setattr(memory, "_SMALL", 0)
    assert fitting(NEW, option, device=CPU) == expected
