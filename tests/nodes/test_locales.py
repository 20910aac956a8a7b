"""The page's words in Chinese and Japanese are whole, and no more than there are."""

import json
import re

import pytest
from mmada_parallel.tests.nodes import locales
from mmada_parallel.tests.nodes.help_lists import PAGES
from mmada_parallel.tests.nodes.locales import COMMAND, LANGUAGES, LOCALES, problems

MAIN_NODES = [
    "Loader",
    "EncodeInstruction",
    "Denoise",
    "DecodeText",
    "DecodeImage",
    "ParaRLFinetune",
]


@pytest.fixture(scope="module")
def schemas(classes):
    return [node.define_schema() for node in classes.values()]


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_sentence_is_translated_and_none_is_stale(schemas, language):
    lines = problems(schemas, language)
    assert not lines, (
        f"locales/{language}.json has English sentences as keys. Add a translation of each missing "
        f"one, remove the stale ones, then run {COMMAND}:\n" + "\n".join(lines)
    )


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_page_takes_the_translations_as_they_are(language):
    """It reads them by vue-i18n, to which these characters are syntax."""
    definitions = (LOCALES / language / "nodeDefs.json").read_text(encoding="utf-8")
    texts = locales.sentences(json.loads(definitions))
    assert [text for text in texts if re.search(r"[{}|@]", text)] == []


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_main_nodes_have_a_page(language):
    nodes = {file.parent.name for file in PAGES.glob(f"*/{language}.md")}
    assert nodes == {f"MMaDAParallel{name}" for name in MAIN_NODES}
    for file in PAGES.glob(f"*/{language}.md"):
        assert file.read_text("utf-8").count("\n- ") > 2


@pytest.mark.parametrize("language", LANGUAGES)
def test_values_stay_in_their_places(language):
    with_values = {*locales.viewer_words(), *locales.said_words()}
    for english, text in locales.catalogue_of(language).items():
        if english in with_values:
            assert sorted(re.findall(r"\{\w+\}", text)) == sorted(re.findall(r"\{\w+\}", english))


def test_what_is_missing_or_stale_is_found(schemas, monkeypatch):
    whole = locales.catalogue_of("zh")
    changed = {**whole, "No longer here.": "…"}
    del changed["Parallel Denoise"]
    monkeypatch.setattr(locales, "catalogue_of", lambda language: changed)
    assert problems(schemas, "zh") == ['missing: "Parallel Denoise"', 'stale: "No longer here."']
    monkeypatch.setattr(locales, "catalogue_of", lambda language: whole)
    monkeypatch.setattr(locales, "translated", lambda words, catalogue: {})
    assert problems(schemas, "zh") == ["locales/zh/nodeDefs.json is not what zh.json gives"]
