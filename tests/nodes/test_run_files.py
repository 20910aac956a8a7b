"""The run file of a node's training: whether it says what the command would do alike."""

from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest
from mmada_parallel.cli.main import build_parser
from mmada_parallel.demo.items import world_dataset
from mmada_parallel.mmp_core.variants.registry import variant_named
from mmada_parallel.training.data.settings import DataSettings
from mmada_parallel.training.sft.settings import SFTSettings
from mmada_parallel.training.weights.adapter_files import save_adapter
from mmada_parallel.training.weights.policies import LoRA


@pytest.fixture
def written(nodes, model, tmp_path):
    """``written(on=…, watched=…)``: the text of the file of an SFT run, ``None`` for no file."""
    run = SimpleNamespace(
        kind="sft", settings=SFTSettings(), folder=SimpleNamespace(path=tmp_path / "run")
    )
    run.folder.path.mkdir()
    own = {"output": tmp_path / "a.safetensors"}
    file = run.folder.path / "run.toml"

    def write(on=model, dataset=None, **watched):
        file.write_text("of a run before")
        dataset = dataset or listed("mine", mirrored=True, crops=1)
        nodes.run_files.write_run_file_of(run, on, dataset, watched, own)
        return file.read_text() if file.exists() else None

    return write


def listed(place, repeats=1, cases=None, **settings):
    options = {"data": (f"{place}={repeats}",), "cases": cases, "bad_items": "skip"}
    return replace(world_dataset(1), options=options | asdict(DataSettings(**settings)))


@pytest.fixture
def adapter(model, tmp_path):
    with LoRA(model.model.transformer, rank=2) as lora:
        save_adapter(tmp_path / "b.safetensors", lora)
        return lora.state_dict(), tmp_path / "b.safetensors"


def test_it_loads_what_the_nodes_loaded(written, host, adapter):
    state, file = adapter
    loaded = host.load("untrained", "bf16", "auto", variant_named("A"))
    on = host.with_adapter(loaded, state, {}, "b", 0.0000123456789, file)
    text = written(on)
    assert 'dtype = "bfloat16"' in text and 'family = "A"' in text
    value = text.partition('lora = ["')[2].partition('"')[0]
    parsed = build_parser().parse_args(["edit", "a.png", "b", "--lora", value])
    assert parsed.lora == [(file, 0.0000123456789)]


def test_watched_items_are_said_where_the_command_reads_them_alike(written):
    text = written(held_out_data=listed("held"), guard=listed("kept"), samples=listed("x", cases=8))
    for line in ('held_out_data = "held"', 'guard = "kept"', 'samples = "x"'):
        assert line in text


@pytest.mark.parametrize(
    "watched",
    [
        {"held_out_data": listed("held", mirrored=True)},
        {"held_out_data": listed("held", trigger_word="sks")},
        {"held_out_data": listed("held", cases=3)},
        {"guard": listed("kept", trigger_word="sks")},
        {"guard": listed("kept", repeats=2)},
        {"guard": world_dataset(1)},
        {"samples": listed("x", cases=7)},
        {"dataset": world_dataset(1)},
    ],
)
def test_without_options_for_all_there_is_none(written, watched, caplog):
    assert written(**watched) is None
    assert "run.toml is not written" in caplog.text


def test_of_an_adapter_that_is_in_no_file_there_is_none(written, host, model, adapter, caplog):
    assert written(host.with_adapter(model, adapter[0], {}, "lora_model", 1.0)) is None
    assert "comes from a node" in caplog.text
