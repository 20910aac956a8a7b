"""Prompt strings and ids of variant A against the reference's."""

import json

import torch
from mmada_parallel.mmp_core import TokenState
from mmada_parallel.mmp_core.variants import mmada_parallel_a as variant_a
from mmada_parallel.tests.parity import golden


def test_prompts(recipe_model):
    content = json.loads(golden.golden_file("modules", "prompts.json").read_text())
    assert set(content) <= {"system", "end_ids", "cases"}
    model = recipe_model("micro-A", "fp32")
    layout, tokenizer = model.layout, model.tokenizer
    assert content["system"] == variant_a.EDIT
    assert content["end_ids"] == [layout.answer_end]
    image, initial = torch.zeros(1, 2, 2, dtype=torch.int64), TokenState.masked(1, 4, (2, 2))
    assert content["cases"]
    for case in content["cases"]:
        assert set(case) <= {"prompt", "cond", "uncond", "cond_ids", "uncond_ids", "decoded"}
        prompt = layout.encode(case["prompt"], image, initial)
        assert prompt.instruction[0].tolist() == case["cond_ids"]
        assert prompt.unconditional[0].tolist() == case["uncond_ids"]
        assert tokenizer(case["cond"])["input_ids"] == case["cond_ids"]
        assert tokenizer(case["uncond"])["input_ids"] == case["uncond_ids"]
        assert layout.decode_text(prompt.instruction) == [case["decoded"]]
