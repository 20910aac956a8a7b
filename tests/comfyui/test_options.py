"""ComfyUI's own options of memory and of what it keeps: the same results, interrupted or not."""

import pytest
from mmada_parallel.tests.hosts import ComfyServer, find_host
from mmada_parallel.tests.messages import progress_steps

from .test_workflows import DENOISE, WORKFLOWS, ids_of, prompt_of

EDIT, STOPPED = (
    next(path for path in WORKFLOWS if path.stem == name)
    for name in ("Edit an image", "Stop, keep and redraw")
)


def seen(result):
    assert result.status == "success", result.error
    texts = [text for text in result.texts if not text.endswith(".safetensors")]
    return [image.tobytes() for image in result.images], texts


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "options",
    [("--cache-none",), ("--cache-lru", "1"), ("--cache-classic",), ("--cache-ram", "999")],
    ids=" ".join,
)
@pytest.mark.parametrize("comfy", ["current"], indirect=True)
def test_what_a_server_keeps_changes_no_result(options, comfy, tmp_path):
    object_info = comfy.object_info()
    prompts = [prompt_of(path, object_info) for path in (EDIT, STOPPED)]
    wanted = [seen(comfy.run(prompt)) for prompt in prompts]
    with ComfyServer(find_host("current"), tmp_path / "base", options=options) as server:
        for prompt, expected in zip(prompts, wanted, strict=True):
            assert seen(server.run(prompt)) == expected
        other = prompt_of(EDIT, object_info, reseed=7)
        (node, *_) = ids_of(other, DENOISE)
        prompt_id = server.queue(other)
        server.wait(lambda m: any(0 < value < total for value, total in progress_steps([m], node)))
        server.interrupt(prompt_id)
        assert server.finish(prompt_id).status == "interrupted"
        for prompt, expected in zip(prompts, wanted, strict=True):
            assert seen(server.run(prompt)) == expected
        assert "Traceback" not in server.log()
