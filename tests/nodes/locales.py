"""The page's words in other languages, as ComfyUI reads them.

``locales/zh.json`` and ``locales/ja.json`` give the translation of each English sentence once.
``python -m mmada_parallel.tests.nodes.locales`` makes ``locales/*/nodeDefs.json`` and ``main.json``
of them, where COMFYUI_PATH is a checkout of ComfyUI, and prints what is missing.
"""

import ast
import asyncio
import itertools
import json
import re
import sys

from mmada_parallel.tests.hosts import PACK_ROOT, find_host
from mmada_parallel.tests.nodes.help_lists import (
    PAGES,
    default_of,
    entry,
    kinds,
    plain,
    replaced,
)
from mmada_parallel.training.data.registry import GENERATED

LOCALES = PACK_ROOT / "locales"
LANGUAGES = ("zh", "ja")
COMMAND = "python -m mmada_parallel.tests.nodes.locales"
CATEGORY = "MMaDA-Parallel"


def node_definitions(schemas):
    """``nodeDefs.json`` in English, in the order of the page: what a person sees of each node."""
    return {
        schema.node_id: {
            "display_name": schema.display_name,
            "description": schema.description,
            "inputs": {
                i.id: {"name": i.display_name or i.id, "tooltip": i.tooltip} for i in schema.inputs
            },
            "outputs": {
                str(number): {"name": output.display_name, "tooltip": output.tooltip}
                for number, output in enumerate(schema.outputs)
            },
        }
        for schema in schemas
    }


def main_words(schemas):
    """``main.json`` in English: the pack's categories, and the words of its own scripts."""
    categories = {part for schema in schemas for part in schema.category.split("/")} - {CATEGORY}
    return {
        "nodeCategories": {name: name for name in sorted(categories)},
        "mmada_parallel": {words: words for words in viewer_words()},
        "mmada_parallel_says": {words: words for words in said_words()},
        "mmada_parallel_choices": {words: words for words in choices(schemas)},
    }


NAMES = {"clip", "dtype", "family", "optimizer", "quantize"}
"""Inputs whose choices are names, which stay as they are."""
WITH_FILES = {
    "checkpoint": (),
    "existing_lora": ("none",),
    "file": (),
    "image_tokenizer": ("auto",),
    "lora": ("none",),
    "preferences": ("none",),
    "reward": ("your votes", "checker (toy world)"),
    "run": ("none",),
}
"""Inputs that offer files, too: of their choices, the words."""


def choices(schemas):
    """What inputs offer to choose, as far as it is words, in the order of the page."""
    inputs = [i for schema in schemas for i in schema.inputs if i.get_io_type() == "COMBO"]
    words = {**WITH_FILES, "dataset": [dataset.label for dataset in GENERATED.values()]}
    return list(
        {
            choice: None
            for each in inputs
            if each.id not in NAMES
            for choice in each.options
            if choice in words.get(each.id, each.options)
        }
    )


REFUSING = {
    "mmp_core": "batching compositing editing fitting instructions options outside pipeline "
    "target variation",
    "mmp_core/checkpoint": "adapters load places source tensors tokens",
    "mmp_core/image": "files modes",
    "mmp_core/sampler": "loop settings upstream",
    "mmp_core/variants": "base",
    "nodes": "collect compare decode denoise gate put_back score training_run trajectory vary",
    "nodes/host": "folders models training training_folders votes",
    "training": "cases",
    "training/data": "apart codes dataset fields items settings sources tables variations",
    "training/dpo": "preferences run",
    "training/loop": "folder run settings watch",
    "training/pararl": "run",
    "training/rewards": "registry",
    "training/sft": "settings",
    "training/weights": "policies",
}
"""Files of which refusals are translated, too: what somebody meets who edits, loads or trains."""
ERRORS = {"InputError", "CheckpointError", "OutOfMemory"}


def room_files(room):
    return sorted((PACK_ROOT / room).rglob("*.py"))


def said_words():
    """What the server says by ``sentence()``, or refuses in ``REFUSING``: {0}, … are values."""
    found = {}
    files = (file for room in ("mmp_core", "nodes", "training") for file in room_files(room))
    for file in files:
        folder = file.parent.relative_to(PACK_ROOT).as_posix()
        refuses = file.stem in REFUSING.get(folder, "").split()
        names = {"sentence", *ERRORS} if refuses else {"sentence"}
        for call in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(call, ast.Call) and getattr(call.func, "id", "") in names:
                found[_template(call.args[0])] = None
    return [text for text in found if text]


def _template(text):
    """ "" of what is not written where it is said."""
    if isinstance(text, ast.Constant):
        return text.value
    if not isinstance(text, ast.JoinedStr):
        return ""
    numbers = itertools.count()
    parts = (
        p.value if isinstance(p, ast.Constant) else f"{{{next(numbers)}}}" for p in text.values
    )
    return "".join(parts)


def viewer_words():
    """The sentences that scripts of ``web/`` give to ``localised()``, in the order of the files."""
    found = {}
    for file in sorted((PACK_ROOT / "web").glob("*.js")):
        for quoted in re.findall(r"\blocalised\(\s*'((?:[^'\\]|\\.)*)'", file.read_text("utf-8")):
            found[quoted.replace("\\'", "'")] = None
    return list(found)


def sentences(words):
    """Every text of a nested dictionary, once."""
    if isinstance(words, str):
        return {words: None}
    return {text: None for value in words.values() for text in sentences(value)}


def translated(words, catalogue):
    """``words`` with each text as ``catalogue`` has it, in English where it is not there."""
    if isinstance(words, str):
        return catalogue.get(words, words)
    return {key: translated(value, catalogue) for key, value in words.items()}


def files(schemas):
    """{file name: its content in English}."""
    return {"nodeDefs.json": node_definitions(schemas), "main.json": main_words(schemas)}


def catalogue_of(language):
    return json.loads((LOCALES / f"{language}.json").read_text(encoding="utf-8"))


def problems(schemas, language):
    """What has to be done so that ``language`` is complete, as lines; none if nothing has."""
    english, catalogue = files(schemas), catalogue_of(language)
    wanted = {text: None for words in english.values() for text in sentences(words) if text}
    lines = [
        f"missing: {json.dumps(text, ensure_ascii=False)}"
        for text in wanted
        if not catalogue.get(text)
    ]
    lines += [
        f"stale: {json.dumps(text, ensure_ascii=False)}" for text in catalogue if text not in wanted
    ]
    for name, words in english.items():
        file = LOCALES / language / name
        content = json.loads(file.read_text(encoding="utf-8")) if file.exists() else None
        if not lines and content != translated(words, catalogue):
            lines.append(f"{file.relative_to(PACK_ROOT)} is not what {language}.json gives")
    for file, text in pages(schemas, language):
        if not lines and file.read_text(encoding="utf-8") != text:
            lines.append(f"{file.relative_to(PACK_ROOT)} has other lists")
    return lines


WORDS = {
    "zh": ("输入", "输出", "默认值 `{}`。", "可选"),
    "ja": ("入力", "出力", "既定値は `{}`。", "任意"),
}
"""Of help pages: their headings, the default, and what is optional."""
FORM = "- {}\uff08{}\uff09\uff1a{}"


def localised_page(page, schema, language):
    """The text of a translated help page with the lists that the schema and the catalogue give."""
    inputs, outputs, default, optional = WORDS[language]
    catalogue = catalogue_of(language)
    taken = []
    for each in schema.inputs:
        value = default_of(each)
        shown = "" if value in (None, "") else default.format(plain(value))
        about = catalogue.get(each.tooltip, each.tooltip) + shown
        name = each.display_name or each.id
        name = f"{catalogue.get(name, name)} `{name}`"
        taken.append(entry(name, kinds(each, optional), about, FORM))
    given = [
        entry(
            f"{catalogue.get(o.display_name, o.display_name)} `{o.display_name}`",
            [o.io_type],
            catalogue.get(o.tooltip, o.tooltip),
            FORM,
        )
        for o in schema.outputs
    ]
    for title, content in ((inputs, taken), (outputs, given)):
        page, _ = replaced(page, title, "\n".join(content))
    return page


def pages(schemas, language):
    """(file, its text as it should be) of each translated help page."""
    known = {schema.node_id: schema for schema in schemas}
    for file in sorted(PAGES.glob(f"*/{language}.md")):
        text = file.read_text(encoding="utf-8")
        yield file, localised_page(text, known[file.parent.name], language)


def schemas_here():
    sys.path.insert(0, str(find_host("current").path))
    import comfy.cli_args

    comfy.cli_args.args.cpu = True
    from mmada_parallel.nodes import MMaDAParallelExtension

    listed = asyncio.run(MMaDAParallelExtension().get_node_list())
    return [node.define_schema() for node in listed]


def write():
    schemas = schemas_here()
    for language in LANGUAGES:
        catalogue = catalogue_of(language)
        for name, words in files(schemas).items():
            file = LOCALES / language / name
            file.parent.mkdir(parents=True, exist_ok=True)
            text = json.dumps(translated(words, catalogue), ensure_ascii=False, indent=1)
            file.write_text(f"{text}\n", encoding="utf-8")
        for file, text in pages(schemas, language):
            file.write_text(text, encoding="utf-8")
        for line in problems(schemas, language):
            print(f"locales/{language}.json: {line}")


if __name__ == "__main__":
    write()
