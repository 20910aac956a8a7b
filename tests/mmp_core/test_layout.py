import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmada_parallel.mmp_core.errors import CheckpointError, InputError
from mmada_parallel.mmp_core.state import MASKED, TokenState
from mmada_parallel.mmp_core.variants import mmada_parallel_a as variant_a
from mmada_parallel.mmp_core.variants.registry import variant_named, variant_of
from mmada_parallel.tests.mmp_core import tiny
from mmada_parallel.tests.mmp_core.parsing import answer_of, parse

LAYOUT = {
    name: variant_named(name).layout(tiny.tokenizer(name), tiny.config(name)) for name in "AM"
}
BACKBONE = ["model.transformer.wte.weight"]

grids = st.tuples(st.integers(1, 5), st.integers(1, 5))
instructions = st.lists(st.sampled_from(tiny.WORDS), max_size=6).map(" ".join)


@st.composite
def prompts(draw, variant):
    """A prompt with any grid, text, locked parts, batch, and with or without an input image."""
    layout = LAYOUT[variant]
    batch, grid, length = draw(st.integers(1, 3)), draw(grids), draw(st.integers(1, 6))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))

    def tokens(shape, size, locked):
        values = torch.randint(0, size, (batch, *shape), generator=generator)
        keep = torch.rand(values.shape, generator=generator) < locked
        return torch.where(keep, values, MASKED)

    locked = st.sampled_from((0.0, 0.3, 1.0))
    state = TokenState(
        tokens((length,), len(tiny.WORDS), draw(locked)),
        tokens(grid, layout.codebook_size, draw(locked)),
    )
    image = tokens(draw(grids), layout.codebook_size, 1.0) if draw(st.booleans()) else None
    return layout.encode(draw(instructions), image, state)


@pytest.mark.parametrize("variant", "AM")
@settings(max_examples=60)
@given(data=st.data())
def test_parse_inverts_sequence(variant, data):
    prompt = data.draw(prompts(variant))
    layout, state = LAYOUT[variant], prompt.initial
    sequence = layout.model_input(prompt, state)
    grids = {}
    if variant == "M":
        grids = {"grid": state.grid}
        grids["input_grid"] = None if prompt.image is None else prompt.image.shape[1:]
    parsed, found = parse(layout, variant, sequence.ids, **grids)
    assert torch.equal(found.text, state.text) and torch.equal(found.image, state.image)
    assert torch.equal(parsed.instruction, prompt.instruction)
    assert torch.equal(parsed.unconditional, prompt.unconditional)
    assert (parsed.image is None) == (prompt.image is None)
    if prompt.image is not None:
        assert torch.equal(parsed.image, prompt.image)


@pytest.mark.parametrize("variant", "AM")
@pytest.mark.parametrize("drop_text", [False, True])
@pytest.mark.parametrize("drop_image", [False, True])
@settings(max_examples=25)
@given(data=st.data())
def test_positions_hold_the_state_in_every_branch(variant, drop_text, drop_image, data):
    prompt = data.draw(prompts(variant))
    layout, state = LAYOUT[variant], prompt.initial
    drops = {"drop_text": drop_text, "drop_image": drop_image}
    sequence = layout.model_input(prompt, state, **drops)
    conditional = layout.model_input(prompt, state)
    text = sequence.ids[:, sequence.text_positions]
    image = sequence.ids[:, sequence.image_positions]
    codes = state.image.flatten(1)
    assert torch.equal(text, torch.where(state.text == MASKED, layout.mask_id, state.text))
    offset = codes + layout.image_offset
    assert torch.equal(image, torch.where(codes == MASKED, layout.mask_id, offset))
    assert torch.equal(answer_of(variant, sequence), answer_of(variant, conditional))


def test_variant_a_order():
    layout = LAYOUT["A"]
    state = TokenState(torch.tensor([[MASKED, 2]]), torch.tensor([[[3, MASKED]]]))
    prompt = layout.encode("make it red", torch.tensor([[[1], [2]]]), state)
    names = layout.tokenizer.convert_ids_to_tokens
    ids = layout.model_input(prompt, state).ids[0]
    words = names(ids.tolist())
    start = words.index("<user>") + 1
    code = layout.image_offset
    assert words[start : start + 3] == ["make", "it", "red"]
    assert words[start + 3] == "<boi>"
    rows = [code + 1, layout.newline, code + 2, layout.newline]
    assert ids[start + 4 : start + 8].tolist() == rows
    assert words[start + 8 : start + 12] == ["<eoi>", "</user>", "<answer>", "<boi>"]
    assert ids[start + 12 : start + 15].tolist() == [code + 3, layout.mask_id, layout.newline]
    assert words[start + 15 :] == ["<eoi>", "<|mdm_mask|>", "red", "</answer>"]
    without = names(
        layout.model_input(prompt, state, drop_text=True, drop_image=True).ids[0].tolist()
    )
    start = without.index("<user>")
    assert without[start + 1 : start + 4] == ["<uncondition>", "</user>", "<answer>"]


def test_variant_a_uses_the_trained_system_prompts():
    class Recorder:
        unk_token_id = None

        def __init__(self):
            self.texts = []

        def convert_tokens_to_ids(self, name):
            return None

        def __call__(self, text):
            self.texts.append(text)
            return {"input_ids": [1]}

    recorder = Recorder()
    layout = variant_a.LayoutA(recorder, {"mask_token_id": 126336})
    assert (layout.image_offset, layout.newline, layout.answer_end) == (126356, 126084, 126355)
    initial = TokenState.masked(1, 1, (1, 1))
    layout.encode("x", torch.zeros(1, 1, 1, dtype=torch.int64), initial)
    layout.encode("x", None, initial)
    blank_edit, blank, edit, generate = recorder.texts
    assert blank_edit == f"<system>{variant_a.EDIT}</system><user><uncondition></user>"
    assert edit == f"<system>{variant_a.EDIT}</system><user>x</user>"
    assert generate == f"<system>{variant_a.GENERATE}</system><user>x</user>"
    assert blank == f"<system>{variant_a.GENERATE}</system><user><uncondition></user>"


def test_variant_m_order():
    layout = LAYOUT["M"]
    state = TokenState(torch.tensor([[2, MASKED]]), torch.tensor([[[MASKED, 5]]]))
    prompt = layout.encode("make it", torch.tensor([[[7, 8]]]), state)
    code, mask = layout.image_offset, layout.mask_id
    words = layout.tokenizer.convert_tokens_to_ids(["make", "it"])
    answer = [layout.soi, mask, code + 5, layout.eoi, layout.bos, 2, mask]
    assert layout.model_input(prompt, state).ids[0].tolist() == [
        layout.edit_tag,
        layout.soi,
        code + 7,
        code + 8,
        layout.eoi,
        layout.bos,
        *words,
        layout.eos,
        *answer,
    ]
    joint = layout.model_input(prompt, state, drop_text=True, drop_image=True)
    assert joint.ids[0].tolist() == [
        layout.edit_tag,
        layout.soi,
        0,
        0,
        layout.eoi,
        layout.bos,
        layout.eos,
        layout.eos,
        layout.eos,
        *answer,
    ]
    generate = layout.model_input(layout.encode("make it", None, state), state)
    assert generate.ids[0, :5].tolist() == [layout.generate_tag, layout.soi, 0, 0, layout.eoi]


@pytest.mark.parametrize("variant", "AM")
def test_decode_text_marks_undecided(variant):
    layout = LAYOUT[variant]
    red, it = layout.tokenizer.convert_tokens_to_ids(["red", "it"])
    text = torch.tensor([[red, MASKED, it, layout.tokenizer.eos_token_id]])
    assert layout.decode_text(text) == ["red it"]
    assert layout.decode_text(text, masked="?") == ["red ? it"]


@pytest.mark.parametrize(
    "config, variant",
    [
        ({"architectures": ["LLaDAForMultiModalGeneration"]}, "A"),
        ({"architectures": ["MMadaModelLM"]}, "M"),
        ({"model_type": "mmada"}, "M"),
        ({"model_type": "llada", "llm_vocab_size": 126464}, "M"),
    ],
)
def test_a_checkpoint_is_of_the_family_that_recognises_it(config, variant):
    assert variant_of(config, BACKBONE).id == variant
    assert variant_of(config, BACKBONE, f"mmada-parallel-{variant}").id == variant
    other = {"A": "M", "M": "A"}[variant]
    with pytest.raises(CheckpointError, match=f"not a checkpoint of MMaDA-Parallel-{other}"):
        variant_of(config, BACKBONE, other)
    with pytest.raises(CheckpointError, match="wte"):
        variant_of(config, ["lm_head.weight"])


def test_unknown_families_and_checkpoints_are_refused():
    known = r"'B' is not a checkpoint family; expected A \(MMaDA-Parallel-A\), M \(MMaDA-Par"
    with pytest.raises(InputError, match=known):
        variant_of({"model_type": "mmada"}, BACKBONE, "B")
    with pytest.raises(CheckpointError, match="LlamaForCausalLM"):
        variant_of({"architectures": ["LlamaForCausalLM"]}, BACKBONE)


@pytest.mark.parametrize("variant", "AM")
def test_families_refuse_an_answer_that_they_do_not_give(variant):
    family = variant_named(variant)
    family.check_answer(1, (1, 1))
    for length, grid, answer in ((0, (2, 2), "image"), (3, (0, 0), "text"), (0, (0, 0), "nothing")):
        with pytest.raises(InputError, match=f"answers with text and image, not with {answer}"):
            family.check_answer(length, grid)
