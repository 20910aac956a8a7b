"""What each landed version's nodes declared: tests/comfyui/old_workflows/widgets.json.

``python -m mmada_parallel.tests.nodes.old_widgets INFO VERSION`` adds a version: INFO is what its
``/object_info`` gave, or our part of it.
"""

import json
import sys
from pathlib import Path

from mmada_parallel.tests.hosts import PACK_ROOT
from mmada_parallel.tests.workflow_api import _is_widget

FILE = PACK_ROOT / "tests" / "comfyui" / "old_workflows" / "widgets.json"
FILES = {
    "checkpoint", "image_tokenizer", "lora", "existing_lora", "file", "dataset", "clip", "reward",
    "preferences", "go_on_from",
}  # fmt: skip
"""Widgets whose choices are files."""


def declared(info):
    """{"widgets": [[name, kind, choices, min, max], …] in order, "slots": {name: type}, "outputs"}
    of a node."""
    widgets, slots = [], {}
    for group in ("required", "optional"):
        inputs = info["input"].get(group, {})
        for name in (info.get("input_order") or {}).get(group) or list(inputs):
            kind, options = (*inputs[name], {})[:2]
            choices = kind if isinstance(kind, list) else options.get("options")
            kind = "COMBO" if isinstance(kind, list) else kind
            if not _is_widget(kind, options):
                slots[name] = kind
                continue
            choices = choices if name not in FILES and kind == "COMBO" else None
            widgets.append([name, kind, choices, options.get("min"), options.get("max")])
    return {"widgets": widgets, "slots": slots, "outputs": info["output"]}


def main(info, version):
    kept = json.loads(FILE.read_text()) if FILE.exists() else {}
    nodes = json.loads(Path(info).read_text())
    kept[version] = {n: declared(i) for n, i in sorted(nodes.items()) if n.startswith("MMaDA")}
    FILE.write_text(json.dumps(kept, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
