"""ParaRL Finetune and SFT Finetune in the real ComfyUI: run, watched, interrupted and resumed."""

import json

import pytest
from mmada_parallel.mmp_core.checkpoint.adapters import read_adapter
from mmada_parallel.tests.workflow_api import WORKFLOWS, to_api

LOADER, DATASET = "MMaDAParallelLoader", "MMaDAParallelLoadEditDataset"
APPLY = "MMaDAParallelApplyLoRA"
TRAIN = {
    "pararl": {
        "class_type": "MMaDAParallelParaRLFinetune",
        "inputs": {
            "group_size": 4,
            "scored_steps": 2,
            "text_steps": 2,
            "image_steps": 2,
            "text_temperature": 3.0,
            "reward": "checker (toy world)",
        },
    },
    "sft": {"class_type": "MMaDAParallelSFTFinetune", "inputs": {}},
}


def training(object_info, kind, **changes):
    """A prompt that trains for two steps, plots the loss and saves the adapter, under a name
    that no shipped workflow gives its runs: all tests of a session share one output folder."""
    node = TRAIN[kind]
    declared = object_info[node["class_type"]]["input"]["required"]
    defaults = {n: v[1]["default"] for n, v in declared.items() if "default" in v[1]}
    own = {"batch_size": 2, "steps": 2, "preview_every": 1, "rank": 4}
    own["run_name"] = f"tried-{kind}"
    wires = {"model": ["load", 0], "dataset": ["data", 0]}
    return {
        "load": {
            "class_type": LOADER,
            "inputs": {"checkpoint": "demo", "dtype": "auto", "image_tokenizer": "auto"},
        },
        "data": {
            "class_type": DATASET,
            "inputs": {"dataset": "demo (toy world)", "bad_items": "skip", "limit": 4},
        },
        "train": {
            "class_type": node["class_type"],
            "inputs": defaults | own | node["inputs"] | wires | changes,
        },
        "save": {
            "class_type": "SaveLoRA",
            "inputs": {
                "lora": ["train", 0],
                "prefix": f"loras/tried-{kind}",
                "steps": ["train", 2],
            },
        },
        "plot": {
            "class_type": "LossGraphNode",
            "inputs": {"loss": ["train", 1], "filename_prefix": "loss"},
        },
        "curve": {"class_type": "PreviewImage", "inputs": {"images": ["train", 3]}},
    }


def edited(comfy, object_info, **inputs):
    """What ordinary inference makes."""
    (path,) = (path for path in WORKFLOWS if path.stem == "Edit an image")
    prompt = to_api(json.loads(path.read_text()), object_info)
    (denoise,) = (n for n in prompt.values() if n["class_type"] == "MMaDAParallelDenoise")
    quick = {"profile": "own values", "text_steps": 8, "image_steps": 8}
    denoise["inputs"] |= quick | inputs
    done = comfy.run(prompt)
    assert done.status == "success", done.error
    return [image.tobytes() for image in done.images], done.texts


@pytest.mark.parametrize("kind", TRAIN)
def test_it_trains_and_shows_how_and_core_nodes_take_it(comfy, object_info, kind):
    before = edited(comfy, object_info)
    prompt = training(object_info, kind)
    done = comfy.run(prompt)
    assert done.status == "success", done.error
    assert done.steps("train")[-1] == (2, 2)
    texts = done.live_texts("train")
    assert any("step 2 of 2" in text and "memory" in text for text in texts)
    assert "Done. The adapter is kept in" in texts[-1]
    assert len(done.previews("train")) == 2
    assert len(done.images) >= 3  # dataset, loss, curve
    folder = comfy.base / "output" / "mmada_parallel" / "training" / f"tried-{kind}_00001"
    state, about = read_adapter(folder / "adapter.safetensors")
    assert about["training"] == kind and about["steps"] == "2"
    (saved,) = (comfy.base / "output" / "loras").glob(f"tried-{kind}_2_steps_*.safetensors")
    assert read_adapter(saved)[0].keys() == state.keys()
    offered = comfy.object_info()[APPLY]["input"]["required"]["lora"][1]["options"]
    assert saved.name in offered
    assert comfy.run(prompt).started == []
    # Other options than in the first run, so that nothing comes from the cache.
    assert edited(comfy, object_info, preview_every=3) == before


def test_an_interruption_keeps_the_run_and_resume_goes_on(comfy, object_info):
    prompt = training(object_info, "pararl", steps=1000, run_name="stopped", preview_every=0)
    prompt_id = comfy.queue(prompt)
    comfy.wait(lambda m: m.kind == "text" and "after step 2 of" in m.text)
    comfy.interrupt(prompt_id)
    done = comfy.finish(prompt_id)
    assert done.status == "success", done.error  # what follows got the adapter so far
    assert list((comfy.base / "output" / "loras").glob("tried-pararl_*_steps_*.safetensors"))
    folder = comfy.base / "output" / "mmada_parallel" / "training" / "stopped_00001"
    last = done.live_texts("train")[-1]
    assert "Interrupted." in last and str(folder / "run.pt") in last
    steps = len((folder / "log.jsonl").read_text().splitlines())
    more = {"steps": steps + 1, "run_name": "stopped", "preview_every": 0, "resume": True}
    resumed = comfy.run(training(object_info, "pararl", **more))
    assert resumed.status == "success", resumed.error
    assert len((folder / "log.jsonl").read_text().splitlines()) == steps + 1


def test_what_cannot_be_trained_on_is_told_in_one_sentence(comfy, object_info):
    done = comfy.run(training(object_info, "pararl", run_name="../elsewhere"))
    (failure,) = done.of("execution_error")
    message = failure.data["exception_message"].strip()
    assert message.startswith("run_name is '../elsewhere'") and "\n" not in message
