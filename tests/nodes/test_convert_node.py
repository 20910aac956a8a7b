"""Convert Checkpoint: what it writes, shows and refuses."""

import pytest
from mmada_parallel.mmp_core import InputError, load_checkpoint
from mmada_parallel.mmp_core.checkpoint.inspect import inspect_checkpoint


@pytest.fixture
def convert_node(run_node, model_folder):
    """The node on the untrained checkpoint; what it wrote is deleted in the end."""
    before = set(model_folder.iterdir())
    defaults = {"checkpoint": "untrained", "quantize": "fp8", "name": "", "lora": "none"}
    defaults |= {"strength": 1.0, "image_tokenizer": "auto"}
    yield lambda **changes: run_node("ConvertCheckpoint", **{**defaults, **changes})
    for path in set(model_folder.iterdir()) - before:
        path.unlink()


def test_the_file_is_in_the_model_folder_and_loads(convert_node, model_folder, folders, host):
    done = convert_node()
    path = model_folder / "untrained-fp8.safetensors"
    assert done[0] == str(path)
    (text,) = done.ui["text"]
    assert text.startswith("untrained-fp8.safetensors: ") and "MB" in text
    assert inspect_checkpoint(path).quantized == ["float8_e4m3fn"]
    assert "untrained-fp8.safetensors" in folders.checkpoints()
    assert "untrained-fp8.safetensors" not in folders.checkpoints(folders_only=True)
    host.load("untrained-fp8.safetensors", "bf16", "auto")


def test_a_file_that_is_there_is_not_replaced(convert_node, model_folder):
    convert_node(name="mine", quantize="none")
    content = (model_folder / "mine.safetensors").read_bytes()
    with pytest.raises(InputError, match="already exists: give another name"):
        convert_node(name="mine")
    assert (model_folder / "mine.safetensors").read_bytes() == content


@pytest.mark.parametrize("name", ["../out", "a/b", ".", "a."])
def test_names_stay_in_the_folder(convert_node, name):
    with pytest.raises(InputError, match="give a name of"):
        convert_node(name=name)


def test_an_interrupt_leaves_nothing_and_progress_is_shown(
    convert_node, model_folder, host, monkeypatch
):
    import comfy.model_management as management

    shown, before = [], set(model_folder.iterdir())

    def show(self, done, total, picture=None):
        shown.append((done, total))
        if len(shown) == 5:
            management.interrupt_current_processing()

    monkeypatch.setattr(host.Progress, "show", show)
    with pytest.raises(management.InterruptProcessingException):
        convert_node()
    assert set(model_folder.iterdir()) == before
    assert shown == sorted(shown) and shown[-1][0] < shown[-1][1]


def test_the_demo_can_be_converted(convert_node):
    assert load_checkpoint(convert_node(checkpoint="demo", name="a demo")[0]).variant.id == "A"


def test_an_adapter_that_is_not_there_is_one_sentence(convert_node):
    with pytest.raises(InputError, match="put it there, then refresh"):
        convert_node(lora="gone.safetensors")
