"""What the documents say of nodes and options is there."""

import re

import pytest
from mmada_parallel.cli.main import build_parser
from mmada_parallel.tests.hosts import PACK_ROOT

SCRIPT = PACK_ROOT / "docs" / "from-the-research-script.md"
ARGUMENTS = """checkpoint prompt image_path height width timesteps text_steps text_gen_length
    text_block_length cfg_scale cfg_img temperature text_temperature seed vae_ckpt output_dir
    remasking painting_mode mask_h_ratio mask_w_ratio debug_tokens ref_image_path edit_type steps
    gen_length block_length painting_image use-cache cache_ratio warmup_ratio refresh_interval
    prompt_path batch_size output_json"""
"""Those of tyfeld/MMaDA-Parallel 5cf8978, MMaDA-Parallel-A/inference.py, and of
Alpha-VLLM/Lumina-DiMOO 81344e6, inference/inference_*.py."""


@pytest.fixture(scope="module")
def widgets(classes):
    """Ids and shown names of inputs by the display name of the node, without its mark."""
    found = {}
    for node in classes.values():
        schema = node.define_schema()
        names = {name for i in schema.inputs for name in (i.id, i.display_name) if name}
        found[schema.display_name.removesuffix(" (MMaDA)")] = names
    return found


def options():
    """Those of the commands, subcommands included."""
    found, parsers = set(), [build_parser()]
    for parser in parsers:
        for action in parser._actions:
            found |= set(action.option_strings)
            parsers += action.choices.values() if isinstance(action.choices, dict) else ()
    return found


def rows():
    text = SCRIPT.read_text(encoding="utf-8")
    return [line.strip("|").split(" | ") for line in text.splitlines() if line.startswith("| `")]


def test_every_argument_of_the_authors_scripts_has_its_place():
    named = {name for row in rows() for name in re.findall(r"`--([\w-]+)`", row[0])}
    assert named == set(ARGUMENTS.split())


def test_the_places_are_there(widgets):
    known, nodes, places = options(), "|".join(map(re.escape, widgets)), 0
    for row in rows():
        for node, names in re.findall(rf"({nodes}): ((?:`\w+`(?:, )?)+)", row[1]):
            assert set(re.findall(r"`(\w+)`", names)) <= widgets[node], row
            places += 1
        assert set(re.findall(r"`(--[\w-]+)`", row[-1])) <= known, row
    assert places > 30


def test_settings_named_as_a_cure_are_there(widgets):
    """`docs/when-it-looks-wrong.md` writes them as `name` of **Node**."""
    text = (PACK_ROOT / "docs" / "when-it-looks-wrong.md").read_text(encoding="utf-8")
    named = re.findall(r"((?:`\w+`(?:,| and)? ?)+)\s*of\s+(?:another\s+)?\*\*([\w /-]+)\*\*", text)
    assert len(named) >= 5
    for names, node in named:
        assert set(re.findall(r"`(\w+)`", names)) <= widgets[node], (names, node)
