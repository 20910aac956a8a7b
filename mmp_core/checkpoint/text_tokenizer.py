"""The text tokenizer of a checkpoint: checked before the library reads it, and asked in one place.

Of what ``tokenizer.json`` can hold, byte-level BPE and lists of words are read, which are all that
the families have. A stranger's file could otherwise make texts grow without end or search for
minutes; the library itself ends in a panic, which no ``except Exception`` sees.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, InputError, shortened, shown
from ..outside import check_fields, checked_text, field, parsed_json

FILE, _CONFIG = "tokenizer.json", "tokenizer_config.json"
FILE_BYTES = 2**26
MOST_IDS = 2**20

_SETTINGS = {"model_max_length": field(float, 1), "clean_up_tokenization_spaces": field(bool)}
_MODELS = ("BPE", "WordLevel")
_NORMALIZERS = ("Lowercase", "NFC", "NFD", "NFKC", "NFKD", "Strip", "StripAccents")
_SPLITTERS = ("ByteLevel", "Whitespace", "WhitespaceSplit", "Digits", "Punctuation", "Split")
_DECODERS = ("ByteLevel", "ByteFallback", "Fuse", "BPEDecoder")
_PROCESSORS = ("ByteLevel", "TemplateProcessing")
_PARTS = {
    "normalizer": (_NORMALIZERS, "normalizers"),
    "pre_tokenizer": (_SPLITTERS, "pretokenizers"),
    "decoder": (_DECODERS, "decoders"),
    "post_processor": (_PROCESSORS, "processors"),
}
_LONGEST_PUT, _MOST_PUT = 4, 3
"""Characters that a step may put in place of others, and how many steps may put more than one."""
_MOST_PARTS, _LONGEST_TOKEN, _LONGEST_PATTERN, _REPEATS_IN_A_ROW = 16, 1000, 500, 2
_MOST_ADDED, _ADDED_CHARACTERS = 2**14, 2**20
"""Tokens beside the vocabulary, and their characters: the library searches texts for all of them
at once, and takes minutes and gigabytes to prepare that."""
_SETTINGS_CHARACTERS = 2**22


class TextTokenizer:
    """A tokenizer of transformers whose texts are checked. All else is the tokenizer's own."""

    def __init__(self, tokenizer: Any, name: str, highest_id: int):
        """``name``: of the checkpoint, for messages. ``highest_id``: the largest that it gives."""
        self._tokenizer, self._name, self.highest_id = tokenizer, name, highest_id

    def __call__(self, text: str, **options: Any) -> Any:
        """As the tokenizer's own. Raises ``InputError`` for a text that is none or too long,
        ``CheckpointError`` where the tokenizer fails on it."""
        checked_text(text, "The text")
        with reading(self._name):
            return self._tokenizer(text, **options)

    def decode(self, ids: Sequence[int], **options: Any) -> str:
        with reading(self._name):
            return self._tokenizer.decode(ids, **options)

    def __len__(self) -> int:
        return len(self._tokenizer)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "_tokenizer":  # not there yet while it is copied
            raise AttributeError(name)
        return getattr(self._tokenizer, name)


@contextmanager
def reading(name: str) -> Iterator[None]:
    """Turn whatever the library raises into ``CheckpointError``, its panics included."""
    try:
        yield
    except InputError:
        raise
    except BaseException as error:
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise CheckpointError(
                f"The tokenizer in {name} cannot be read ({shortened(str(error))})."
            ) from None
        raise


def tokenizer_of(texts: Mapping[str, str], name: str) -> TextTokenizer:
    """The tokenizer of files' ``texts`` by file name, without the model's config.json beside them:
    transformers 4.57.2 cannot read large vocabularies next to one. Raises ``CheckpointError``."""
    if FILE not in texts:
        raise CheckpointError(
            f"{FILE} is missing in {name}: put the tokenizer files of the checkpoint's repository "
            "there."
        )
    highest = check_tokenizer(texts[FILE], f"{FILE} in {name}")
    from transformers import PreTrainedTokenizerFast

    with tempfile.TemporaryDirectory() as folder, reading(name):
        for file, text in texts.items():
            if file.endswith(".json"):
                if file != FILE:
                    check_settings(text, f"{file} in {name}")
                content = parsed_json(text, f"{file} in {name}")
                check_fields(content, _SETTINGS, f"{file} in {name}")
                if file == _CONFIG:  # older versions of transformers read the files that it names
                    text = json.dumps({k: v for k, v in content.items() if not _names_file(k)})
            Path(folder, file).write_text(text, encoding="utf-8", newline="")
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    return TextTokenizer(tokenizer, name, highest)


def _names_file(key: str) -> bool:
    return key.endswith("_file") or key == "tokenizer_object"


def check_any_tokenizer(text: str, name: str) -> None:
    """Check the text of a ``tokenizer.json`` that may be of any kind, for what would never end.
    Raises ``CheckpointError``."""
    longer, content = 0, parsed_json(text, name)
    check_added(content.get("added_tokens"), name)
    for step in objects_in(content):
        check_pattern(step.get("pattern"), name)
        content = step.get("content") if step.get("type") == "Replace" else ""
        longer += isinstance(content, str) and len(content) > 1
        if not isinstance(content, str) or len(content) > _LONGEST_PUT or longer > _MOST_PUT:
            raise CheckpointError(f"{name} makes texts longer than this pack reads.")


def check_settings(text: str, name: str) -> None:
    """Check the text of a file beside ``tokenizer.json``, which may add tokens, too. Raises
    ``CheckpointError``."""
    if len(text) > _SETTINGS_CHARACTERS:
        raise CheckpointError(
            f"{name} has {len(text)} characters; expected at most {_SETTINGS_CHARACTERS}."
        )
    content = parsed_json(text, name)
    for values in objects_in(content):
        check_added(list(values), name)
    check_added([text for text in _nested(content) if isinstance(text, str)], name)


def check_added(tokens: Any, name: str) -> None:
    """Raises ``CheckpointError`` for more ``tokens``, texts or objects of one, than can be added
    in no time."""
    tokens = tokens if isinstance(tokens, list) else []
    said = [token.get("content") if isinstance(token, dict) else token for token in tokens]
    characters = sum(len(token) for token in said if isinstance(token, str))
    if len(said) > _MOST_ADDED or characters > _ADDED_CHARACTERS:
        raise CheckpointError(
            f"{name} adds {len(said)} tokens of {characters} characters; expected at most "
            f"{_MOST_ADDED} of {_ADDED_CHARACTERS} together."
        )


def objects_in(value: Any) -> Iterator[dict[str, Any]]:
    """All that are nested in ``value``."""
    return (each for each in _nested(value) if isinstance(each, dict))


def _nested(value: Any) -> Iterator[Any]:
    """``value`` and all that is in it."""
    waiting = [value]
    while waiting:
        value = waiting.pop()
        yield value
        if isinstance(value, dict):
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value


def check_pattern(pattern: Any, where: str) -> None:
    """Raises ``CheckpointError`` for a pattern of a step that could take forever."""
    said = pattern.get("Regex") if isinstance(pattern, dict) else None
    if isinstance(said, str) and not is_quick(said):
        raise CheckpointError(
            f"{where} splits texts by the pattern {shown(said)}, which could take forever: take "
            "the tokenizer files of the checkpoint's repository."
        )


def check_tokenizer(text: str, name: str) -> int:
    """Check the text of a ``tokenizer.json``; the highest id that it gives. Raises
    ``CheckpointError`` for what is not read here, and why."""
    content = parsed_json(text, name)
    model, added = content.get("model"), content.get("added_tokens") or []
    kind = model.get("type", "BPE") if isinstance(model, dict) else None
    if not isinstance(model, dict) or kind not in _MODELS:
        raise CheckpointError(
            f"{name} cannot be read: its model is {shown(kind)}; expected {_either(_MODELS)}."
        )
    for part, (kinds, several) in _PARTS.items():
        for step in _steps(content.get(part), several, name, part):
            _check_step(step, kinds, f"the {part} of {name}")
    if not isinstance(added, list) or not all(isinstance(token, dict) for token in added):
        raise CheckpointError(f"{name} has added_tokens that are not a list of tokens.")
    check_added(added, name)
    words = model.get("vocab")
    if not isinstance(words, dict):
        raise CheckpointError(f"{name} has no vocab of words and ids.")
    ids = [*words.values(), *(token.get("id") for token in added)]
    for token in (*words, *(token.get("content") for token in added)):
        if not isinstance(token, str) or len(token) > _LONGEST_TOKEN:
            raise CheckpointError(f"{name} has the token {shown(token)}; expected a short text.")
    for number in ids:
        if type(number) is not int or not 0 <= number < MOST_IDS:
            raise CheckpointError(
                f"{name} has the id {shown(number)}; expected 0 to {MOST_IDS - 1}."
            )
    return max(ids, default=0)


def _steps(part: Any, several: str, name: str, what: str) -> list[dict[str, Any]]:
    if part is None:
        return []
    steps: Any = [part]
    if isinstance(part, dict) and part.get("type") == "Sequence":
        steps = part.get(several)
    valid = isinstance(steps, list) and len(steps) <= _MOST_PARTS
    if not valid or not all(isinstance(step, dict) for step in steps):
        raise CheckpointError(
            f"{name} has the {what} {shown(part)}, which this pack does not read."
        )
    return steps


def _check_step(step: Mapping[str, Any], kinds: Sequence[str], where: str) -> None:
    if step.get("type") not in kinds:
        raise CheckpointError(
            f"{where} has the step {shown(step.get('type'))}, which this pack does not read; "
            f"expected {_either(kinds)}: take the tokenizer files of the checkpoint's repository."
        )
    check_pattern(step.get("pattern"), where)
    for form in ("single", "pair", "special_tokens"):
        if len(json.dumps(step.get(form))) > _LONGEST_TOKEN:
            raise CheckpointError(f"{where} adds more tokens to a text than this pack reads.")


def is_quick(pattern: str) -> bool:
    """Whether a search for a regular expression takes no more than about the square of the text's
    length: no group is repeated, there are no references, and what follows two repetitions in a
    row may always be left out, so that they never have to be divided in another way."""
    if len(pattern) > _LONGEST_PATTERN or re.search(r"\\[1-9kg]|\(\?[R&0-9(~]", pattern):
        return False
    plain = re.sub(r"\\[pP]\{\^?\w+\}|\\x\{\w+\}|\\.", "a", pattern, flags=re.DOTALL)
    plain = re.sub(r"\[[^\[\]]*\]", "a", plain)
    plain = re.sub(r"\(\?[imsx-]+\)", "", plain)
    if "[" in plain:
        return False
    parts = _PARTS_OF_PATTERN.findall(plain)
    try:
        _, end = _repetitions(parts, 0, 0)
    except ValueError:
        return False
    return end == len(parts)


_PARTS_OF_PATTERN = re.compile(
    r"\(\?[imsx-]*[:=!>]|\(\?<[=!]|\(\?<\w+>|[()|]|(?:[*+?]|\{\d*,?\d*\})[?+]?|.", re.DOTALL
)


def _repetitions(parts: Sequence[str], place: int, before: int) -> tuple[int, int]:
    """How many repetitions in a row the alternatives from ``place`` end with at most, of which
    ``before`` stand before them, and where they end. Raises ``ValueError`` for what is slow."""
    most = row = before
    while place < len(parts) and (part := parts[place]) != ")":
        place += 1
        if part == "|":
            most, row = max(most, row), before
            continue
        group = part[0] == "("
        last = _end_of(parts, place) if group else place - 1
        sign = parts[last + 1] if last + 1 < len(parts) else ""
        sign = sign if sign[:1] in ("*", "+", "?", "{") else ""
        optional, repeated = sign.startswith(("*", "?", "{0", "{,")), sign[:1] in ("*", "+", "{")
        if repeated and (group or re.search(r"\d{3}", sign)):
            raise ValueError("it repeats a group, or something too often")
        if row >= _REPEATS_IN_A_ROW and not optional and (not group or part[-1] in "=!"):
            raise ValueError("what must follow divides repetitions anew")
        if group:
            inner, _ = _repetitions(parts, place, 0 if optional else row)
            row = row + inner if optional else inner
        row += repeated
        place = last + 1 + bool(sign)
    return max(most, row), place


def _end_of(parts: Sequence[str], place: int) -> int:
    """Where the group ends whose content begins at ``place``."""
    depth = 1
    for end in range(place, len(parts)):
        depth += (parts[end][0] == "(") - (parts[end] == ")")
        if not depth:
            return end
    raise ValueError("a group does not end")


def _either(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"
