"""What a checkpoint can read of an instruction, and what it cannot."""

from dataclasses import replace

import pytest
from mmada_parallel.mmp_core import InputError, load_checkpoint
from mmada_parallel.mmp_core.instructions import (
    instruction_notes,
    longest_instruction,
    unknown_words,
)


@pytest.fixture(scope="module")
def demo():
    return load_checkpoint("demo")


class SpellingTokenizer:
    """Knows every word, letter by letter."""

    unk_token_id, model_max_length = None, 10**30

    def __call__(self, text, **_):
        return {"input_ids": list(text.encode())}


@pytest.mark.parametrize("text", ["make the circle red", "Make the circle blue.", "grapes !"])
def test_words_that_it_knows_need_no_word(demo, text):
    assert instruction_notes(demo, text) == []


@pytest.mark.parametrize(
    "text, named",
    [("make it winter", "it, winter"), ("turn turn the cat red", "cat"), ("red, naïve", "naïve")],
)
def test_words_that_it_does_not_know_are_named(demo, text, named):
    assert [
        word for word in named.split(", ") if word not in unknown_words(demo.tokenizer, text)
    ] == []
    (note,) = instruction_notes(demo, text)
    assert "does not know" in note and all(word in note for word in named.split(", "))


def test_words_are_named_without_their_commas_and_with_their_instruction(demo):
    (note,) = instruction_notes(demo, "make it, shiny,, red, it")
    assert note == (
        "The checkpoint does not know: it, shiny. Of “make it, shiny,, red, it” it follows the "
        "other words."
    )


@pytest.mark.parametrize("text", ["fais-le en hiver", "winter", "it snows .", "冬にする"])
def test_an_instruction_without_a_known_word_is_refused(demo, text):
    with pytest.raises(InputError, match="does not know any of these words") as told:
        instruction_notes(demo, text)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("text", ["", "  \n"])
def test_an_empty_instruction_is_refused(demo, text):
    with pytest.raises(InputError, match="empty"):
        instruction_notes(demo, text)


@pytest.mark.parametrize("words, fits", [(256, True), (257, False), (4000, False)])
def test_an_instruction_longer_than_it_reads_is_refused(demo, words, fits):
    assert longest_instruction(demo) == 256
    text = "red " * words
    if fits:
        assert instruction_notes(demo, text) == []
        return
    with pytest.raises(InputError, match=f"has {words} tokens; this checkpoint reads at most 256"):
        instruction_notes(demo, text)


def test_a_checkpoint_that_spells_its_words_knows_all_of_them(demo):
    spelling = replace(demo, tokenizer=SpellingTokenizer())
    assert instruction_notes(spelling, "make it winter") == []
    assert unknown_words(spelling.tokenizer, "冬にする") == []
