"""The lists of inputs and outputs of the nodes' help pages, as their schemas give them.

``python -m mmada_parallel.tests.nodes.help_lists`` writes them into web/docs, where COMFYUI_PATH
is a checkout of ComfyUI.
"""

import asyncio
import re
import sys

from mmada_parallel.tests.hosts import PACK_ROOT, find_host

PAGES = PACK_ROOT / "web" / "docs"
LISTED = {
    "checkpoint": "`demo`, `picture-book`, `demo-lumina`, then what is in `models/mmada_parallel`",
    "image_tokenizer": "`auto`, then what is in `models/mmada_parallel`",
    "lora": "`none`, then the `.safetensors` files in `models/loras`",
    "existing_lora": "`none`, then the `.safetensors` files in `models/loras`",
    "clip": "`demo`, then the folders in `models/open_clip`",
    "reward": "`your votes`, `checker (toy world)`, then `clip: ` and `preference: ` and "
    "each of the CLIPs",
    "dataset": "`demo (toy world)`, `demo: open instructions`, `demo: a new word`, `picture book`, "
    "then what is in the input folder",
    "preferences": "`none`, or the folders of `preferences` in `output/mmada_parallel`",
    "run": "`none`, or the runs of `training` in `output/mmada_parallel` that kept adapters",
    "file": "files of tokens in the output and input folders",
}
"""What widgets offer whose values are the files of a user."""


OPTIONAL = "optional"


def lists(schema):
    """The lists of inputs and of outputs, of those that a node has; without the text around."""
    inputs = [
        entry(f"`{i.display_name or i.id}`", kinds(i, OPTIONAL), description(i))
        for i in schema.inputs
    ]
    outputs = [entry(f"`{o.display_name}`", [o.io_type], o.tooltip) for o in schema.outputs]
    named = {"Inputs": "\n".join(inputs)}
    return {**named, "Outputs": "\n".join(outputs)} if outputs else named


def entry(name, kinds, about, form="- {} ({}): {}"):
    """A line of a list, which the page's narrow panel shows whole, unlike a table."""
    return form.format(name, "; ".join(kinds), about)


def kinds(socket, optional):
    """Type, range or choices, and ``optional`` where it is."""
    return [part for part in (socket.io_type, span(socket), optional * socket.optional) if part]


def replaced(page, title, content):
    """``page`` with ``content`` as the list or table below a heading, and how many there are."""
    pattern = rf"(?<=## {title}\n\n)([-|][^\n]*\n)*"
    return re.subn(pattern, lambda _: f"{content}\n", page)


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


def span(socket):
    if socket.id in LISTED and socket.io_type == "COMBO":
        return LISTED[socket.id]
    if options := getattr(socket, "options", None):
        return ", ".join(f"`{option}`" for option in options)
    if (low := getattr(socket, "min", None)) is None:
        return ""
    return f"{plain(low)} to {plain(socket.max)}"


def plain(value):
    return f"{value:.10f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


def filled(page, schema):
    """The text of a page with the schema's lists in place of those there."""
    for title, content in lists(schema).items():
        page, count = replaced(page, title, content)
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
