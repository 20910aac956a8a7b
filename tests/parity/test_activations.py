"""The transformer's hidden states and logits against the reference's, on the same weights."""

import re

import pytest
import torch
from mmada_parallel.tests.parity import golden
from safetensors.torch import load_file

FILES = golden.golden_files("modules/act_*.safetensors")
NAME = re.compile(r"act_(?P<model>[^_]+)(_len\d+)?_(?P<dtype>[^_]+)$")
WHOLE = {"hidden", "input_ids", "positions"} | {
    f"logits_{part}" for part in ("argmax", "every_61st", "image_slice", "lse_f64", "max")
}
ACCUMULATED = {"fp32": 64, "fp16": 8, "bf16": 8}
"""Multiples of the dtype's eps by which two correct runs may differ. Each of the some 50 roundings
on the way to the logits is off by up to eps / 2 of what is rounded, at random: that adds up to
about eps, as root mean square, and to five times as much at the worst of the 50,000 numbers. In
fp32 the sums of up to 256 products are rounded as often as they have terms, and in an order that
the processor chooses; half precision's are summed in fp32."""


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.stem)
def test_activations(file, recipe_model):
    named = NAME.fullmatch(file.stem)
    assert named, f"unknown activations {file.name}"
    model, case = recipe_model(named["model"], named["dtype"]), load_file(file)
    transformer, layout = model.transformer, model.layout
    ids = case["input_ids"].long()[None]
    layers = {name: name.split(".")[1] for name in case if name.startswith("block0.")}
    assert not set(case) - WHOLE - set(layers)
    outputs, states = {}, []
    hooks = [
        getattr(transformer.layers["blocks"][0], layer).register_forward_hook(
            lambda module, inputs, output, name=name: outputs.update({name: output[0]})
        )
        for name, layer in layers.items()
    ]
    hooks += [
        layer.register_forward_pre_hook(lambda module, inputs: states.append(inputs[0]))
        for layer in (*transformer.layers["blocks"], transformer.layers["ln_f"])
    ]
    with torch.no_grad():
        final = transformer(ids)
        logits = transformer.logits(final)[0]
        image = slice(layout.image_offset, layout.image_offset + layout.codebook_size)
        sliced = transformer.logits(final[0, case["positions"].long()], image)
    for hook in hooks:
        hook.remove()

    def compare(name, ours):
        assert_close(ours, case[name], named["dtype"], name)

    hidden = torch.cat([*states, final])
    for number, expected in enumerate(case["hidden"]):
        stride = -(-hidden.shape[1] // len(expected))
        assert_close(hidden[number, ::stride], expected, named["dtype"], f"hidden {number}")
    for name in layers:
        compare(name, outputs[name])
    at = logits[case["positions"].long()]
    compare("logits_every_61st", at[:, ::61])
    compare("logits_image_slice", at[:, image])
    compare("logits_image_slice", sliced)
    some = logits[:: -(-len(logits) // len(case["logits_argmax"]))]
    compare("logits_max", some.amax(-1))
    compare("logits_lse_f64", some.double().logsumexp(-1))
    if named["dtype"] == "fp32":
        assert torch.equal(some.argmax(-1), case["logits_argmax"].long())


def assert_close(ours, expected, dtype, name):
    """Compare relative to the values and to the tensor's scale: each is a sum of terms of it."""
    ours, expected = ours.double(), expected.double()
    tolerance = ACCUMULATED[dtype] * torch.finfo(golden.DTYPES[dtype]).eps
    scale = expected.square().mean().sqrt().item()
    torch.testing.assert_close(
        ours,
        expected,
        rtol=tolerance,
        atol=tolerance * scale,
        msg=lambda message: f"{name}: {message}",
    )
    error = (ours - expected).square().mean().sqrt().item()
    assert error <= tolerance / 4 * scale, f"{name}: root mean square error {error}"
