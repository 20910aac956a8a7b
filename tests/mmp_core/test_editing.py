from types import SimpleNamespace

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from mmada_parallel.mmp_core import (
    MASKED,
    MASKED_TEXT,
    InputError,
    SamplerSettings,
    TokenState,
    denoise,
    encode_instruction,
    load_checkpoint,
)
from mmada_parallel.mmp_core.editing import (
    extended,
    fixed_text,
    pattern_selected,
    reopened,
    text_pieces,
    words_selected,
)
from mmada_parallel.mmp_core.image.masks import cells_of
from mmada_parallel.mmp_core.variants.base import decode_ids, pieces_of
from mmada_parallel.tests.mmp_core import tiny

MODEL = {variant: tiny.TinyModel(variant) for variant in "AM"}
SENTENCE = ("make", "it", "red", "left", "of", "the", "circle", ".")
seeds = st.integers(0, 2**32)


@pytest.fixture(scope="module")
def demo():
    return load_checkpoint("demo", dtype=torch.float32)


def ids_of(words):
    return MODEL["A"].layout.tokenizer.convert_tokens_to_ids(list(words))


def pieces(words=SENTENCE):
    tokenizer = MODEL["A"].layout.tokenizer
    known = iter(ids_of([w for w in words if w != MASKED_TEXT]))
    return pieces_of(tokenizer, [MASKED if w == MASKED_TEXT else next(known) for w in words])


@settings(max_examples=300)
@given(st.lists(st.sampled_from(("a", "red", "<|endoftext|>", MASKED_TEXT)), max_size=12))
def test_pieces_read_as_the_decoded_text(words):
    tokenizer = MODEL["A"].layout.tokenizer
    ids = [MASKED if w == MASKED_TEXT else tokenizer.convert_tokens_to_ids(w) for w in words]
    found = pieces_of(tokenizer, ids)
    assert len(found) == len(ids)
    assert "".join(found).split() == decode_ids(tokenizer, ids, MASKED_TEXT).split()


def byte_tokenizer():
    """As the released checkpoints have it, but without merges: a token is a byte."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = pre_tokenizers.ByteLevel.alphabet()
    built = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    built.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    built.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=built)


BYTES = byte_tokenizer()


@given(st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")), max_size=12))
@example("a\ufffd")  # what stands for half a letter can be a letter, too
def test_letters_of_several_tokens_come_whole(text):
    assert "".join(pieces_of(BYTES, BYTES(text)["input_ids"])) == text


@given(st.lists(st.sampled_from(("ab", "c", MASKED_TEXT)), min_size=1, max_size=12))
def test_a_copied_text_has_as_many_gaps_as_it_had(words):
    """Decode Text puts spaces around ░; they are no tokens of the text."""
    model = SimpleNamespace(tokenizer=BYTES, layout=SimpleNamespace(pads_text=False, end_of_text=0))
    ids = fixed_text(model, " ".join(words), 100)[0].tolist()
    assert ids.count(MASKED) == words.count(MASKED_TEXT)
    shown = "".join(pieces_of(BYTES, ids))
    assert shown.replace(" ", "") == "".join(words)
    spaces = [BYTES.decode([i]) for i in ids if i != MASKED].count(" ")
    assert spaces == sum(w != MASKED_TEXT for w in words[1:])


@pytest.mark.parametrize(
    "spans, expected",
    [
        ("", ""),
        ("1", "make"),
        ("2-4", "it red left"),
        (" 7 , 1", "make circle"),
        ("6-", "the circle ."),
    ],
)
def test_words_are_selected_by_number(spans, expected):
    chosen = words_selected(pieces(), spans)
    assert " ".join(w for w, c in zip(SENTENCE, chosen, strict=True) if c) == expected


@pytest.mark.parametrize("spans", ["0", "9", "4-2", "x", "1-2-3", "-3", "1" * 5000])
def test_spans_that_cannot_be_are_refused(spans):
    with pytest.raises(InputError, match="words has"):
        words_selected(pieces(), spans)


def test_an_open_span_takes_the_end_of_the_text_along():
    words = (*SENTENCE[:3], "<|endoftext|>", "<|endoftext|>")
    tokenizer = MODEL["A"].layout.tokenizer
    found = pieces_of(tokenizer, tokenizer.convert_tokens_to_ids(list(words)))
    assert words_selected(found, "2-") == [False, True, True, True, True]
    assert words_selected(found, "2-3") == [False, True, True, False, False]


def test_undecided_words_count_and_can_be_selected():
    words = ("make", MASKED_TEXT, "red")
    assert words_selected(pieces(words), "2") == [False, True, False]
    assert pattern_selected(pieces(words), MASKED_TEXT) == [False, True, False]


@pytest.mark.parametrize(
    "pattern, expected",
    [
        ("re", "red"),
        (r"red|circle", "red circle"),
        ("^make it", "make it"),
        ("nothing", ""),
        (r"left\s", "left"),
    ],
)
def test_words_are_selected_by_pattern(pattern, expected):
    chosen = pattern_selected(pieces(), pattern)
    assert " ".join(w for w, c in zip(SENTENCE, chosen, strict=True) if c) == expected


def test_patterns_that_cannot_be_are_refused():
    with pytest.raises(InputError, match="expected a regular expression"):
        pattern_selected(pieces(), "(")
    with pytest.raises(InputError, match="simplify|expected at most 500"):
        pattern_selected(["a" * 40 + "b"], r"(a|aa)+$")
    for costly in ("a{9999999}", "(a{99}){,99}", "a" * 501):
        with pytest.raises(InputError, match="simplify|expected at most 500"):
            pattern_selected(pieces(), costly)
    assert pattern_selected(pieces(), "e{1,20}") == pattern_selected(pieces(), "e")


@given(
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
    seeds,
)
def test_a_mask_of_any_size_covers_the_grid(size, grid, seed):
    mask = (torch.rand(2, *size, generator=torch.Generator().manual_seed(seed)) > 0.5).float()
    cells = cells_of(mask, grid)
    assert cells.shape == (2, *grid) and cells.dtype == torch.bool
    assert cells_of(torch.ones(1, *size), grid).all() and not cells_of(mask * 0, grid).any()
    assert (cells_of(mask, grid, 0.0) | ~cells).all()


def test_coverage_decides_about_patches_that_are_cut():
    mask = torch.zeros(1, 8, 8)
    mask[:, :, :3] = 1  # three quarters of the left column of a 2x2 grid
    assert cells_of(mask, (2, 2), 0.5).tolist() == [[[True, False], [True, False]]]
    assert not cells_of(mask, (2, 2), 0.8).any()


@settings(max_examples=80)
@given(
    variant=st.sampled_from("AM"),
    grid=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    size=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    fraction=st.floats(0, 1),
    order=st.sampled_from(("parallel", "text_first", "image_first")),
    guidance=st.sampled_from((0.0, 3.5)),
    seed=seeds,
)
def test_any_mask_span_and_step_leaves_nothing_undecided_and_what_is_locked_alone(
    variant, grid, size, fraction, order, guidance, seed
):
    model, rng = MODEL[variant], torch.Generator().manual_seed(seed)
    start = model.layout.encode("make it red", None, TokenState.masked(2, 5, grid))
    own = SamplerSettings(joint_guidance=0.0, text_steps=4, image_steps=3, seed=seed)
    tokens = denoise(model, start, own).at(fraction).after
    mask = (torch.rand(2, *size, generator=rng) > 0.5).float()
    texts = [pieces_of(model.layout.tokenizer, row.tolist()) for row in tokens.text]
    last = [len("".join(text).split()) for text in texts]
    spans = [f"{1 + seed % n}-" if n else "" for n in last]
    words = [words_selected(text, span) for text, span in zip(texts, spans, strict=True)]
    again = reopened(tokens, text=torch.tensor(words), image=cells_of(mask, grid))
    own = SamplerSettings(
        joint_guidance=guidance, text_steps=3, image_steps=2, seed=seed + 1, order=order
    )
    final = denoise(model, start.starting_from(again), own).final
    for name in ("text", "image"):
        before, after = getattr(again, name), getattr(final, name)
        locked = before != MASKED
        assert torch.equal(after[locked], before[locked])
        assert (after != MASKED).all()


@settings(max_examples=40)
@given(st.sampled_from("AM"), st.lists(st.integers(0, 3), min_size=4, max_size=4), seeds)
def test_an_extended_canvas_keeps_its_picture(variant, sides, seed):
    model, rng = MODEL[variant], torch.Generator().manual_seed(seed)
    codes = torch.randint(0, model.layout.codebook_size, (1, 2, 3), generator=rng)
    start = model.layout.encode("make it red", codes, TokenState.masked(1, 3, (2, 3)))
    left, top, right, bottom = sides
    named = dict(left=left, top=top, right=right, bottom=bottom)
    if not any(sides):
        with pytest.raises(InputError, match="Nothing is added"):
            extended(start, **named)
        return
    wider = extended(start, **named)
    assert wider.initial.grid == (2 + top + bottom, 3 + left + right)
    final = denoise(model, wider, SamplerSettings(text_steps=2, image_steps=2, seed=seed)).final
    assert torch.equal(final.image[:, top : top + 2, left : left + 3], codes)
    assert (final.image != MASKED).all()


def test_nothing_to_extend():
    start = MODEL["A"].layout.encode("make it", None, TokenState.masked(1, 3, (2, 2)))
    with pytest.raises(InputError, match="no picture to extend"):
        extended(start, left=1, top=0, right=0, bottom=0)


def test_given_text_is_fixed_with_its_gaps(demo):
    words = "the red ░ at row 1 column ░ becomes blue ."
    ids = fixed_text(demo, words, 21)
    assert ids.shape == (1, 21) and (ids == MASKED).sum() == 2
    shown = "".join(text_pieces(demo, TokenState(ids, torch.zeros(1, 1, 1, dtype=torch.int64)))[0])
    assert shown.split() == words.split()
    assert (ids[0, 11:] == demo.layout.end_of_text).all()
    assert (fixed_text(demo, words, 21, "undecided")[0, 11:] == MASKED).all()
    with pytest.raises(InputError, match="11 tokens; expected 1 to 10"):
        fixed_text(demo, words, 10)
    with pytest.raises(InputError, match="does not know: unicorn, flies"):
        fixed_text(demo, "the unicorn flies", 21)


def test_given_text_of_a_checkpoint_that_takes_any_length_is_not_filled_up(demo, monkeypatch):
    monkeypatch.setattr(demo.layout, "pads_text", False)
    assert fixed_text(demo, "the red star", 21).shape == (1, 3)
    assert fixed_text(demo, "the red star", 21, "end").shape == (1, 21)


def test_inpainting_keeps_what_is_not_masked(demo):
    from mmada_parallel.demo import world
    from mmada_parallel.demo.render import render
    from PIL import Image

    scene = world.task(10**9 + 3, kinds=("recolour",)).before
    picture, mask = render(scene), Image.new("L", (64, 64))
    mask.paste(255, (0, 0, 32, 64))  # the left half, of another size than the picture
    start = encode_instruction(demo, "make the background black", picture, mask=mask)
    undecided = start.initial.image == MASKED
    assert undecided[:, :, :2].all() and not undecided[:, :, 2:].any()
    assert torch.equal(start.initial.image[:, :, 2:], start.image[:, :, 2:])
    final = denoise(demo, start).final
    assert torch.equal(final.image[:, :, 2:], start.image[:, :, 2:])
    for wrong in ({"image": None}, {"size": (96, 96)}):
        with pytest.raises(InputError, match="mask"):
            encode_instruction(demo, "x", **{"image": picture, "mask": mask, **wrong})
    unpainted = Image.new("L", (64, 64))
    assert (encode_instruction(demo, "x", picture, mask=unpainted).initial.image == MASKED).all()


def test_a_mask_is_cropped_as_its_picture_is(demo):
    from PIL import Image

    picture, mask = Image.new("RGB", (300, 100)), Image.new("L", (300, 100))
    mask.paste(255, (0, 0, 150, 100))
    start = encode_instruction(demo, "remove the star", picture, mask=mask)
    height, width = start.initial.grid
    assert (height, width) != (4, 4)
    undecided = (start.initial.image == MASKED)[0]
    assert undecided[:, : width // 2].all() and not undecided[:, (width + 1) // 2 :].any()


def test_a_mask_is_cropped_where_its_picture_is_at_random(demo, monkeypatch):
    import random

    from mmada_parallel.mmp_core.variants import mmada_parallel_a
    from PIL import Image

    seen, fit = [], mmada_parallel_a.fit_image
    monkeypatch.setattr(
        mmada_parallel_a,
        "fit_image",
        lambda *a, offset: seen.append(fit(*a, offset=offset)) or seen[-1],
    )
    picture = Image.new("RGB", (1000, 100))
    for left in (250, 750):
        picture.paste("white", (left, 0, left + 250, 100))
    for seed in range(3):
        start = random.Random(seed)
        prompt = encode_instruction(
            demo, "x", picture, mask=picture.convert("L"), coverage=0.5, offset=start
        )
        small = seen[-1].convert("L").resize(prompt.initial.grid[::-1], Image.Resampling.BOX)
        levels = torch.tensor(list(small.tobytes()))
        assert torch.equal(prompt.initial.image[0].flatten() == MASKED, levels > 127)
