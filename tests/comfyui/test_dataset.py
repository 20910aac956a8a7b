"""Load Edit Dataset in the real ComfyUI: offered after a refresh, shown, cached, run on changes."""

import numpy as np
from PIL import Image

NODE = "MMaDAParallelLoadEditDataset"


def test_a_folder_put_into_input_is_offered_and_read(comfy):
    folder = comfy.base / "input" / "pets"
    folder.mkdir(parents=True)
    for name in ("cat", "dog"):
        pixels = np.random.default_rng(len(name)).integers(0, 256, (48, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{name}.png")
    (folder / "cat.txt").write_text("give the cat a red collar")
    offered = comfy.object_info()[NODE]["input"]["required"]["dataset"]
    assert "pets" in str(offered)
    inputs = {"dataset": "pets", "bad_items": "skip", "limit": 0}
    prompt = {"1": {"class_type": NODE, "inputs": inputs}}
    done = comfy.run(prompt)
    assert done.status == "success", done.error
    (text,) = done.texts
    assert "1 item(s)" in text and "dog.png has no dog.txt beside it" in text and done.images
    assert comfy.run(prompt).started == []
    (folder / "dog.txt").write_text("put the dog on a beach")
    again = comfy.run(prompt)
    assert again.started == ["1"] and "2 item(s)" in again.texts[0]
