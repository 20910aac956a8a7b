"""Run as ``python -m mmada_parallel.tests.mmp_core.large_tokenizer FOLDER``: prints as JSON what
the tokenizer there makes of some texts, with the transformers that is found first.

:func:`write` makes one like that of variant A: byte-level BPE of 126,356 words, those of the
template among them, beside a ``config.json``.
"""

import itertools
import json
import sys
from pathlib import Path

from ...mmp_core.checkpoint.source import read_tokenizer
from . import tiny

WORDS = 126_356
TEXTS = [
    "Make it winter, please!",
    "<system>\nGenerate an image\n</system>\n<user>\nadd a red star</user>",
    "  two  spaces\n\nand a tab\t, ümläut 冬 🎨",
    "DON'T don't 1234567",
]


def write(folder):
    """As ``save_pretrained`` of the released checkpoint left them, from its own words on."""
    from tokenizers.pre_tokenizers import ByteLevel

    tiny.write_checkpoint(folder, "A")
    file = folder / "tokenizer.json"
    special = [entry["content"] for entry in json.loads(file.read_text())["added_tokens"]]
    letters = sorted(ByteLevel.alphabet())
    pairs = ["".join(pair) for pair in itertools.product(letters, letters)]
    threes = ("".join(three) for three in itertools.product(pairs, letters))
    words = [*letters, *pairs, *itertools.islice(threes, WORDS - 256 - len(pairs) - len(special))]
    merges = [f"{word[:-1]} {word[-1]}" for word in words[256:]]
    added = [
        {"id": len(words) + number, "content": word, "special": True}
        | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        for number, word in enumerate(special)
    ]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    byte_level["use_regex"] = True
    model = {"type": "BPE", "vocab": {w: i for i, w in enumerate(words)}, "merges": merges}
    content = {"version": "1.0", "added_tokens": added, "model": model, "normalizer": None}
    content |= {"pre_tokenizer": byte_level, "decoder": byte_level, "post_processor": None}
    file.write_text(json.dumps(content), encoding="utf-8")
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "trust_remote_code": True}
    settings |= {"add_bos_token": False, "add_eos_token": False, "model_max_length": 10**30}
    settings |= {"clean_up_tokenization_spaces": False, "fast_tokenizer": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def seen(folder):
    tokenizer = read_tokenizer(folder)
    ids = [tokenizer(text)["input_ids"] for text in TEXTS]
    return {"words": len(tokenizer), "ids": ids, "texts": [tokenizer.decode(part) for part in ids]}


if __name__ == "__main__":
    import transformers

    print(json.dumps({"version": transformers.__version__, **seen(Path(sys.argv[1]))}))
