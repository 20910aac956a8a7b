"""The tables of the nodes' help pages, as their schemas give them.

``python -m mmada_parallel.tests.nodes.help_tables`` writes them into web/docs, where COMFYUI_PATH
is a checkout of ComfyUI.
"""

import asyncio
import re
import sys

from mmada_parallel.tests.hosts import PACK_ROOT, find_host

PAGES = PACK_ROOT / "web" / "docs"
LISTED = {
    "checkpoint": "`demo`, then what is in `models/mmada_parallel`",
    "image_tokenizer": "`auto`, then what is in `models/mmada_parallel`",
    "lora": "`none`, then the `.safetensors` files in `models/loras`",
    "existing_lora": "`none`, then the `.safetensors` files in `models/loras`",
    "clip": "`demo`, then the folders in `models/open_clip`",
    "reward": "`your votes`, `checker (toy world)`, then `clip: ` and `preference: ` and "
    "each of the CLIPs",
    "dataset": "`demo (toy world)`, `demo: open instructions`, `demo: a new word`, then what is in "
    "the input folder",
    "preferences": "`none`, or the folders in `output/mmada_parallel/preferences`",
    "run": "`none`, or the runs in `output/mmada_parallel/training` that kept adapters",
    "file": "files of tokens in the output and input folders",
}
"""What widgets offer whose values are the files of a user."""


def tables(schema):
    """The tables of inputs and of outputs, of those that a node has; without the text around."""
    rows = [
        (f"`{i.display_name or i.id}`", description(i), i.io_type, yes(i), span(i))
        for i in schema.inputs
    ]
    inputs = table(("Parameter", "Description", "Data Type", "Required", "Range"), rows)
    rows = [(f"`{o.display_name}`", o.tooltip, o.io_type) for o in schema.outputs]
    outputs = table(("Output Name", "Description", "Data Type"), rows)
    return {"Inputs": inputs, "Outputs": outputs} if rows else {"Inputs": inputs}


def table(head, rows):
    dashes = "|".join("-" * (len(name) + 2) for name in head)
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in (head, *rows)]
    first, *others = [f"| {' | '.join(row)} |" for row in escaped]
    return "\n".join((first, f"|{dashes}|", *others))


def description(socket):
    default = default_of(socket)
    if default is None or default == "":
        return socket.tooltip
    if isinstance(default, bool):
        default = "on" if default else "off"
    return f"{socket.tooltip} Default: `{plain(default)}`."


def default_of(socket):
    """What a node has that somebody adds to a graph: of a choice that has own values, the page sets
    the first (web/settings.js, web/tasks.js)."""
    default = getattr(socket, "default", None)
    return socket.options[0] if default == "own values" else default


def yes(socket):
    return "No" if socket.optional else "Yes"


def span(socket):
    if socket.id in LISTED and socket.io_type == "COMBO":
        return LISTED[socket.id]
    if options := getattr(socket, "options", None):
        return ", ".join(f"`{option}`" for option in options)
    if (low := getattr(socket, "min", None)) is None:
        return "-"
    return f"{plain(low)} to {plain(socket.max)}"


def plain(value):
    return f"{value:.10f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


def filled(page, schema):
    """The text of a page with the schema's tables in place of those there."""
    for title, content in tables(schema).items():
        pattern = rf"(?<=## {title}\n\n)(\|[^\n]*\n)*"
        page, count = re.subn(pattern, lambda _, content=content: f"{content}\n", page)
        assert count == 1, (
            f"The page of {schema.node_id} has no heading {title} with an empty line below it."
        )
    return page


def write():
    sys.path.insert(0, str(find_host("current").path))
    import comfy.cli_args

    comfy.cli_args.args.cpu = True
    from mmada_parallel.nodes import MMaDAParallelExtension

    for node in asyncio.run(MMaDAParallelExtension().get_node_list()):
        schema = node.define_schema()
        page = PAGES / f"{schema.node_id}.md"
        page.write_text(filled(page.read_text(encoding="utf-8"), schema), encoding="utf-8")


if __name__ == "__main__":
    write()
