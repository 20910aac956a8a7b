"""Apply LoRA in the real ComfyUI: offered, applied, and applied anew once the file changes."""

import json

import numpy as np
import pytest
from mmada_parallel.mmp_core import load_checkpoint
from mmada_parallel.tests.training.adapted import stirred
from mmada_parallel.tests.workflow_api import WORKFLOWS, to_api
from mmada_parallel.training.weights.adapter_files import save_adapter
from mmada_parallel.training.weights.policies import LoRA

LOADER, APPLY = "MMaDAParallelLoader", "MMaDAParallelApplyLoRA"


def save_random(file, seed):
    save_adapter(file, stirred(LoRA(load_checkpoint("demo").transformer, rank=4), seed))


@pytest.fixture
def file(comfy):
    path = comfy.base / "models" / "loras" / "edit.safetensors"
    save_random(path, 1)
    yield path
    path.unlink()


def with_lora(prompt, name):
    """``prompt`` with Apply LoRA after its loader."""
    (loader,) = (key for key, node in prompt.items() if node["class_type"] == LOADER)
    adapted = json.loads(json.dumps(prompt))
    for node in adapted.values():
        for key, value in node["inputs"].items():
            if value == [loader, 0]:
                node["inputs"][key] = ["lora", 0]
    inputs = {"model": [loader, 0], "lora": name, "strength": 8.0}
    return adapted | {"lora": {"class_type": APPLY, "inputs": inputs}}


def test_an_adapter_is_offered_applied_and_read_again(comfy, object_info, file):
    (workflow,) = (path for path in WORKFLOWS if path.stem == "Edit an image")
    plain = to_api(json.loads(workflow.read_text()), object_info)
    (denoiser,) = (n for n in plain.values() if n["class_type"] == "MMaDAParallelDenoise")
    denoiser["inputs"] |= {"profile": "own values", "text_steps": 4, "image_steps": 4}
    adapted = with_lora(plain, file.name)
    assert file.name in comfy.object_info()[APPLY]["input"]["required"]["lora"][1]["options"]

    (shown,) = (key for key, n in plain.items() if n["class_type"] == "SaveImage")

    def picture(prompt):
        done = comfy.run(prompt)
        assert done.status == "success", done.error
        return np.asarray(comfy.view(done.history["outputs"][shown]["images"][0]))

    before, first = picture(plain), picture(adapted)
    assert not np.array_equal(first, before)
    save_random(file, 2)
    assert not np.array_equal(picture(adapted), first)
    denoiser["inputs"]["preview_every"] = 3  # the same picture, but not from the cache
    assert np.array_equal(picture(plain), before)
