"""The transformer's hidden states and logits against the reference's, on the same weights."""

import re

import pytest
import torch
from mmada_parallel.tests.parity import golden
from safetensors.torch import load_file

FILES = sorted((golden.golden_folder() / "modules").glob("act_*.safetensors"))
NAME = re.compile(r"act_(?P<model>[^_]+)(_len\d+)?_(?P<dtype>[^_]+)$")
WHOLE = {"hidden", "input_ids", "positions"} | {
    f"logits_{part}" for part in ("argmax", "every_61st", "image_slice", "lse_f64", "max")
}
TOLERANCE = {
    "fp32": {"rtol": 1e-4, "atol": 1e-4},
    "fp16": {"rtol": 1e-2, "atol": 1e-2},
    "bf16": {"rtol": 2e-2, "atol": 5e-2},
}


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.stem)
def test_activations(file, recipe_model):
    named = NAME.fullmatch(file.stem)
    assert named, f"unknown activations {file.name}"
    model, case = recipe_model(named["model"], named["dtype"]), load_file(file)
    transformer, layout = model.transformer, model.layout
    ids = case["input_ids"].long()[None]
    layers = {name: name.split(".")[1] for name in case if name.startswith("block0.")}
    assert not set(case) - WHOLE - set(layers)
    outputs = {}
    hooks = [
        getattr(transformer.layers["blocks"][0], layer).register_forward_hook(
            lambda module, inputs, output, name=name: outputs.update({name: output[0]})
        )
        for name, layer in layers.items()
    ]
    with torch.no_grad():
        states = transformer.hidden_states(ids, every_block=True)
        final = transformer(ids)
        logits = transformer.logits(final)[0]
        image = slice(layout.image_offset, layout.image_offset + layout.codebook_size)
        sliced = transformer.logits(final[0, case["positions"].long()], image)
    for hook in hooks:
        hook.remove()

    def compare(name, own):
        expected = case[name]
        stride = -(-own.shape[-2] // expected.shape[-2]) if name == "hidden" else 1
        torch.testing.assert_close(
            own[..., ::stride, :], expected, **TOLERANCE[named["dtype"]], check_dtype=False
        )

    compare("hidden", torch.cat([*states, final]))
    for name in layers:
        compare(name, outputs[name])
    at = logits[case["positions"].long()]
    compare("logits_every_61st", at[:, ::61])
    compare("logits_image_slice", at[:, image])
    compare("logits_image_slice", sliced)
    some = logits[:: -(-len(logits) // len(case["logits_argmax"]))]
    close = TOLERANCE[named["dtype"]] | {"check_dtype": False}
    torch.testing.assert_close(some.amax(-1), case["logits_max"], **close)
    torch.testing.assert_close(some.double().logsumexp(-1), case["logits_lse_f64"], **close)
    if named["dtype"] == "fp32":
        assert torch.equal(some.argmax(-1), case["logits_argmax"].long())
