"""UI-format workflows to API format, as the page's "Export (API)" does it, for plain graphs.

Plain: widgets in order, links, notes. Subgraphs, muted or bypassed nodes, reroutes and primitives
are refused, and so is any node type that the server does not know.
"""

import copy

from .hosts import PACK_ROOT

WORKFLOWS = sorted((PACK_ROOT / "workflows").glob("*.json"))
CONTROLS = {"fixed", "increment", "decrement", "randomize"}
WIDGET_TYPES = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", "COMFY_DYNAMICCOMBO_V3"}
NOTES = {"Note", "MarkdownNote"}
PAGE_WIDGETS = {"PreviewAny"}  # its widgets are the page's own: the server declares none


def of_demo(workflow):
    """The same of the toy's checkpoint and scene, whose edits take a third of the time."""
    workflow = copy.deepcopy(workflow)
    for node in workflow["nodes"]:
        values = node.get("widgets_values")
        if node["type"] == "MMaDAParallelLoader":
            values[0] = "demo"
        elif node["type"] == "MMaDAParallelDemoScene":
            values[:] = [3, "fixed", "recolour", "scene", "demo"]
        elif node["type"] == "MMaDAParallelEncodeInstruction" and values[0]:
            values[0] = "make the circle the colour of grapes"
        elif node["type"] == "MMaDAParallelDenoise":
            values[4] = 3.5  # joint_guidance, as the page fills it in
    return workflow


def to_api(workflow, object_info):
    if workflow.get("definitions", {}).get("subgraphs"):
        raise ValueError("subgraphs are not converted")
    sources = {link[0]: [str(link[1]), link[2]] for link in workflow["links"]}
    prompt = {}
    for node in workflow["nodes"]:
        if node["type"] in NOTES:
            continue
        if node["type"] not in object_info:
            raise ValueError(f"missing node type: {node['type']}")
        if node.get("mode", 0) != 0:
            raise ValueError(f"{node['type']} #{node['id']} is muted or bypassed")
        inputs = _widgets(node, object_info[node["type"]])
        for slot in node.get("inputs", []):
            if slot.get("link") is not None:
                inputs[slot["name"]] = sources[slot["link"]]
        prompt[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    return prompt


def _widgets(node, info):
    """Names to values. Widgets that a file older than the node lacks get their defaults."""
    values, inputs = list(node.get("widgets_values") or []), {}
    _take(info["input"], info.get("input_order"), "", values, inputs)
    if values and node["type"] not in PAGE_WIDGETS:
        raise ValueError(f"{node['type']} #{node['id']} has values without widget: {values}")
    return inputs


def _take(declared, order, prefix, values, inputs):
    for group in ("required", "optional"):
        names = (order or {}).get(group) or list(declared.get(group, {}))
        for name in names:
            kind, options = (*declared[group][name], {})[:2]
            if kind == "IMAGECOMPARE":  # what it shows; nothing of it is saved
                inputs[prefix + name] = {"__value__": ["", ""]}
            elif _is_widget(kind, options):
                _take_one(prefix + name, kind, options, values, inputs)


def _is_widget(kind, options):
    return (isinstance(kind, list) or kind in WIDGET_TYPES) and not options.get("forceInput")


def _take_one(name, kind, options, values, inputs):
    if not values:
        inputs[name] = _default(kind, options)
        return
    inputs[name] = values.pop(0)
    seeds = kind == "INT" and name in ("seed", "noise_seed")
    if (options.get("control_after_generate") or seeds) and values and values[0] in CONTROLS:
        values.pop(0)
    if options.get("image_upload") and values[:1] == ["image"]:  # the upload button
        values.pop(0)
    if kind == "COMFY_DYNAMICCOMBO_V3":
        chosen = next(o for o in options["options"] if o["key"] == inputs[name])
        _take(chosen["inputs"], None, f"{name}.", values, inputs)


def _default(kind, options):
    if "default" in options:
        return options["default"]
    choices = kind if isinstance(kind, list) else options.get("options")
    return choices[0] if choices else {"STRING": "", "BOOLEAN": False}.get(kind, 0)
