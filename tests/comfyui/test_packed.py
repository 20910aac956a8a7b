"""A quantised file of our converter in the real ComfyUI: offered, loaded, and it edits."""

import json
import re

from mmada_parallel.mmp_core.checkpoint.convert import convert
from mmada_parallel.tests.workflow_api import WORKFLOWS, to_api

LOADER = "MMaDAParallelLoader"


def test_a_quantised_demo_edits(comfy, object_info):
    file = comfy.base / "models" / "mmada_parallel" / "demo-fp8.safetensors"
    file.parent.mkdir(exist_ok=True)
    convert("demo", file, quantize="fp8")
    (workflow,) = (path for path in WORKFLOWS if path.stem == "Edit an image")
    prompt = to_api(json.loads(workflow.read_text()), object_info)
    (loader,) = (node for node in prompt.values() if node["class_type"] == LOADER)
    loader["inputs"]["checkpoint"] = file.name
    done = comfy.run(prompt)
    assert done.status == "success", done.error
    assert done.images and any(text.strip() for text in done.texts)
    assert re.search(
        r"1 sample\(s\) at once. Memory: .* MB needed \(.* MB of it weights\)", comfy.log()
    )
