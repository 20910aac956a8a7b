"""Names inside ComfyUI that the pack uses without a promise: it computes the same tokens with each
of them gone, and with each of them taking other arguments."""

import importlib.util
import sys
from types import SimpleNamespace

import pytest
import torch
from mmada_parallel.mmp_core import SamplerSettings, denoise, encode_instruction
from mmada_parallel.mmp_core.checkpoint.convert import convert
from mmada_parallel.mmp_core.model.quantised import WeightOnlyLinear
from mmada_parallel.mmp_core.model.transformer import sdpa_attention
from mmada_parallel.tests.nodes.hosted import prepare

NAMES = [
    ("comfy.ops", "cast_bias_weight"),
    ("comfy.ops", "uncast_bias_weight"),
    ("comfy.ops", "pick_operations"),
    ("comfy.ops", "mixed_precision_ops"),
    ("comfy.quant_ops", "QuantizedTensor"),
    ("comfy.quant_ops", "QUANT_ALGOS"),
    ("comfy.model_patcher", "CoreModelPatcher"),
    ("comfy.model_management", "unet_dtype"),
    ("comfy.model_management", "unet_manual_cast"),
    ("comfy_execution.progress", "get_progress_state"),
    ("comfy_kitchen", "dequantize_per_tensor_fp8"),
]


def changed(*, unheard_of):
    raise AssertionError("called with arguments that it does not take")


@pytest.fixture(params=["gone", "changed"])
def alter(request, monkeypatch):
    """Take a name away, or leave it with another signature. A class is only taken away."""

    def alter(place, name):
        value = getattr(place, name)
        if request.param == "gone" or not callable(value) or isinstance(value, type):
            monkeypatch.delattr(place, name)
        else:
            monkeypatch.setattr(place, name, changed)

    return alter


@pytest.fixture(scope="module")
def edit(host, model_folder):
    """Tokens of an edit, every layer of ours being asked for its weight as if it were streamed."""
    names = ["untrained"]
    for kind in ("fp8", "int8"):
        names.append(f"changes-{kind}.safetensors")
        convert(model_folder / "untrained", model_folder / names[-1], quantize=kind)

    def edit(name):
        hosted = host.load(name, "fp32", "auto")
        model = hosted.model
        for layer in model.transformer.modules():
            if isinstance(layer, (host.layers.StreamedRMSNorm, WeightOnlyLinear)):
                layer.comfy_cast_weights = True
        prompt = encode_instruction(model, "add a red star")
        prepare(hosted, prompt)
        host.Progress("1").show_text("words")
        return denoise(model, prompt, SamplerSettings(seed=3, text_steps=4, image_steps=4)).final

    wanted = {name: edit(name) for name in names}
    yield edit, wanted
    for name in names[1:]:
        (model_folder / name).unlink()


@pytest.mark.parametrize("module, name", NAMES)
@torch.inference_mode()  # as ComfyUI runs nodes
def test_the_tokens_are_the_same_without_it(alter, edit, module, name):
    run, wanted = edit
    place = pytest.importorskip(module)
    if not hasattr(place, name):
        pytest.skip(f"this ComfyUI has no {module}.{name}")
    alter(place, name)
    for checkpoint, before in wanted.items():
        after = run(checkpoint)
        assert torch.equal(after.text, before.text) and torch.equal(after.image, before.image)


def test_memory_is_counted_without_what_it_is_asked_of(host, alter):
    import comfy.model_management as management

    device = torch.device("cpu")
    alter(management, "extra_reserved_memory")
    assert host.core.reserved_bytes() == 0
    alter(management, "current_loaded_models")
    assert host.core.loaded_bytes(device) == 0


def test_an_entry_that_does_not_say_how_large_it_is_counts_as_nothing(host, monkeypatch):
    import comfy.model_management as management

    entries = [SimpleNamespace(model=object(), device=torch.device("cpu"))]
    monkeypatch.setattr(management, "current_loaded_models", entries)
    assert host.core.loaded_bytes(torch.device("cpu")) == 0


def test_attention_is_torchs_without_comfyuis(host, alter):
    from comfy.ldm.modules import attention

    assert host.layers.attention(torch.device("cuda")) is not sdpa_attention
    alter(attention, "optimized_attention")
    assert host.layers.attention(torch.device("cuda")) is sdpa_attention


def test_the_node_itself_is_shown_where_loops_are_not_known(host, alter):
    from comfy_execution import progress

    alter(progress, "get_progress_state")
    assert host.Progress("5.0.0.7").shown_id == "5.0.0.7"


def test_a_page_without_live_text_is_left_alone(host, monkeypatch):
    server = SimpleNamespace(client_id="page", sockets={"page": object()})
    monkeypatch.setattr(host.page.PromptServer, "instance", server, raising=False)
    host.Progress("5").show_text("words")


def test_classes_that_are_gone_before_the_pack_is_imported_are_stood_in_for(host, monkeypatch):
    import comfy.ops
    import comfy.patcher_extension

    monkeypatch.delattr(comfy.ops, "CastWeightBiasOp")
    monkeypatch.delattr(comfy.patcher_extension, "PatcherInjection")
    monkeypatch.setitem(sys.modules, "comfy.ldm.modules", None)  # so that it cannot be imported
    monkeypatch.setitem(sys.modules, "comfy.ldm.modules.attention", None)
    spec = importlib.util.spec_from_file_location(host.core.__name__, host.core.__file__)
    bare = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bare)

    class Layer(torch.nn.Linear, bare.Streamed):
        pass

    layer = Layer(2, 3, bias=False)
    assert layer.comfy_cast_weights is False and not layer.weight_function
    injection = bare.PatcherInjection(inject=print, eject=repr)
    assert (injection.inject, injection.eject) == (print, repr)
    assert bare.fused_attention() is None
