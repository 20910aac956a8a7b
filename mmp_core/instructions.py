"""What a checkpoint can read of an instruction."""

from __future__ import annotations

from typing import Any

from .checkpoint.load import Model
from .errors import InputError, sentence, shortened
from .outside import checked_text

_PUNCTUATION = ".,;:!?…\"'“”()[]"


def unknown_words(tokenizer: Any, text: str) -> list[str]:
    """The words of ``text`` that a tokenizer of whole words does not know, each once; none of one
    that spells every word."""
    unknown = tokenizer.unk_token_id
    if unknown is None:
        return []
    words = dict.fromkeys(text.split())
    return [w for w in words if unknown in tokenizer(w, add_special_tokens=False)["input_ids"]]


def instruction_notes(
    model: Model, instruction: str, task: str = "", what: str = "instruction"
) -> list[str]:
    """Say what a user should know of an instruction, called ``what``. Raises ``InputError`` for one
    that is empty, longer than the checkpoint can read, or without a word that it knows. ``task``:
    the family's, which may have words of its own."""
    checked_text(instruction, f"The {what}")
    if task and not model.variant.tasks[task].reads_instruction:
        return []
    words = [word for word in instruction.split() if any(map(str.isalnum, word))]
    if not instruction.strip():
        raise InputError(f"The {what} is empty: say what to change, or what to show.")
    tokenizer, longest = model.tokenizer, longest_instruction(model)
    tokens = len(tokenizer(instruction, add_special_tokens=False, verbose=False)["input_ids"])
    if tokens > longest:
        raise InputError(
            f"The {what} has {tokens} tokens; this checkpoint reads at most {longest}: shorten it."
        )
    unknown = unknown_words(tokenizer, " ".join(words))
    if not unknown:
        return []
    bare = list(dict.fromkeys(word.strip(_PUNCTUATION) or word for word in unknown))
    named = ", ".join(map(shortened, bare[:20])) + (", …" if len(bare) > 20 else "")
    if set(words) == set(unknown):
        raise InputError(
            f"The checkpoint does not know any of these words: {named}. Use other words, such "
            "as those of the instructions that Demo Scene suggests."
        )
    asked = shortened(instruction.strip())
    return [
        sentence(f"The checkpoint does not know: {named}. Of “{asked}” it follows the other words.")
    ]


def longest_instruction(model: Model) -> int:
    """Tokens of the longest instruction that a checkpoint can read: what its tokenizer and its
    transformer were made for, whichever is less."""
    limits = model.tokenizer.model_max_length, model.config.get("max_sequence_length")
    return min(int(limit) for limit in limits if limit)
