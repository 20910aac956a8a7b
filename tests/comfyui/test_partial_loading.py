"""ComfyUI's classic partial loading on a card in Python (card.py): weights that do not fit are
streamed, layer by layer, batches that do not fit are split, and the tokens stay the same. That
proves nothing about DynamicVRAM."""

import json

import pytest
from mmada_parallel.tests.comfyui.on_card import run_on_card

LAYERS = {"Conv2d", "Embedding", "GroupNorm", "Linear", "StreamedRMSNorm"}
QUANTISED = ("fp8.safetensors", "int8.safetensors", "nvfp4.safetensors")


@pytest.fixture(
    scope="module", params=["current", pytest.param("oldest", marks=pytest.mark.exhaustive)]
)
def observed(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(f"streaming-{request.param}")
    printed = run_on_card("streaming", request.param, folder)
    return json.loads(printed.strip().rpartition("\n")[2])


@pytest.fixture(scope="module")
def found(observed):
    """What each checkpoint did with room for "all", "some" and "none" of its weights."""
    return observed["checkpoints"]


@pytest.fixture(scope="module")
def batches(observed):
    """What a batch of five did with room for all of it, for less, and for not even one sample."""
    return observed["batches"]


def test_the_tokens_do_not_depend_on_where_the_weights_are(found):
    for runs in found.values():
        for run in runs.values():
            assert run["tokens"] == runs["all"]["tokens"]
            assert run["pixels"] == runs["all"]["pixels"]


def test_only_what_fits_is_on_the_card(found):
    for name, runs in found.items():
        size, some = runs["all"]["size"], runs["some"]
        assert runs["all"]["claimed"] == size and not runs["all"]["streamed"]
        assert size / 4 < some["claimed"] < 3 * size / 4 and some["streamed"]
        assert runs["none"]["claimed"] == runs["none"]["resident"] == 0
        for run in runs.values():
            assert run["resident"] == pytest.approx(run["claimed"], rel=2e-3), name


def test_every_kind_of_layer_streams(found):
    for name, runs in found.items():
        more = {"StreamedQuantisedLinear"} if name in QUANTISED else set()
        assert set(runs["none"]["streamed"]) == LAYERS | more


def test_a_run_leaves_nothing_on_the_card(found):
    for runs in found.values():
        for run in runs.values():
            assert run["after"] == run["unloaded"] == 0


def test_a_batch_is_split_rather_than_the_weights_streamed(batches):
    assert batches["whole"]["parts"] == [[0, 5]]
    assert batches["split"]["parts"] == [[0, 2], [2, 4], [4, 5]]
    assert len(batches["streamed"]["parts"]) > 1


def test_what_was_estimated_is_enough(batches):
    for name in ("whole", "split", "streamed"):
        assert batches[name]["most"] <= batches[name]["capacity"]
        assert "error" not in batches[name]


def test_a_part_that_does_not_fit_is_halved_once(batches):
    halved = batches["halved"]
    assert halved["parts"] == [[0, 4], [0, 2], [2, 4], [4, 5]]
    assert halved["most"] > halved["capacity"]


def test_parts_give_the_tokens_of_the_whole(batches):
    for name in ("split", "streamed", "halved"):
        assert batches[name]["tokens"] == batches["whole"]["tokens"]


def test_too_little_for_one_sample_is_told_with_numbers_and_frees_the_models(batches):
    failed = batches["too small"]
    assert failed["parts"] == [[0, 1]] and failed["is_oom"]
    assert "1 result of 4x4 image tokens and 21 text tokens need about 0.2 MB" in failed["error"]
    assert "\n" not in failed["error"]
    assert all(run["after"] == 0 for run in batches.values())
