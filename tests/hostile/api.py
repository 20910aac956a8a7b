"""Prompts for ComfyUI's API with inputs that are spoilt, run by its own executor in this process.

``Api(folder)`` loads ComfyUI, this pack and a node that gives any object, and runs each shipped
workflow once; a case changes one to three inputs of one of them, and runs it again.
"""

import asyncio
import contextlib
import copy
import json
import logging
import math
import os
import random
import sys
from pathlib import Path

import torch
from mmada_parallel.mmp_core.errors import InputError
from mmada_parallel.tests.hosts import PACK_FOLDER, PACK_ROOT, find_host
from mmada_parallel.tests.workflow_api import WORKFLOWS, to_api

from . import mutations

SENTENCES = ("InputError", "CheckpointError", "OutOfMemory")
OURS, ODD = "MMaDAParallel", "OddObject"
FEW = {
    "text_steps": 2, "image_steps": 2, "profile": "own values", "steps": 1, "batch_size": 1,
    "group_size": 2, "rank": 2, "limit": 3, "dataset": "demo (toy world)", "held_out": 0.0,
    "rehearsal": 0.0,
}  # fmt: skip
"""What makes the workflows short."""
OBJECTS = {
    "none": lambda: None,
    "a number": lambda: 7,
    "minus one": lambda: -1,
    "2**63": lambda: 2**63,
    "nan": lambda: math.nan,
    "text": lambda: "text",
    "a surrogate": lambda: "\ud800",
    "a long text": lambda: "x" * 10**6,
    "bytes": lambda: b"x",
    "a list": lambda: [1, "a"],
    "a dict": lambda: {"samples": torch.zeros(1, 4, 8, 8)},
    "an object": object,
    "a class": lambda: int,
    "true": lambda: True,
    "a path": lambda: Path("/etc/passwd"),
    "a picture": lambda: torch.rand(1, 64, 64, 3),
    "three pictures": lambda: torch.rand(3, 32, 40, 3),
    "one channel": lambda: torch.rand(1, 64, 64, 1),
    "two channels": lambda: torch.rand(1, 64, 64, 2),
    "four channels": lambda: torch.rand(1, 64, 64, 4),
    "100 channels": lambda: torch.rand(1, 8, 8, 100),
    "no pictures": lambda: torch.rand(0, 64, 64, 3),
    "one pixel": lambda: torch.rand(1, 1, 1, 3),
    "no width": lambda: torch.rand(1, 64, 0, 3),
    "a line": lambda: torch.rand(1, 1, 16_000, 3),
    "a video": lambda: torch.rand(1, 2, 8, 8, 3),
    "bytes of a picture": lambda: torch.zeros(1, 64, 64, 3, dtype=torch.uint8),
    "half": lambda: torch.rand(1, 64, 64, 3).half(),
    "complex": lambda: torch.zeros(1, 64, 64, 3, dtype=torch.complex64),
    "not finite": lambda: torch.full((1, 64, 64, 3), math.nan),
    "out of range": lambda: torch.full((1, 64, 64, 3), 1e30),
    "on meta": lambda: torch.zeros(1, 64, 64, 3, device="meta"),
    "sparse": lambda: torch.rand(1, 4, 4, 3).to_sparse(),
    "not contiguous": lambda: torch.rand(1, 3, 64, 64).permute(0, 2, 3, 1),
    "with gradient": lambda: torch.rand(1, 64, 64, 3, requires_grad=True),
    "a mask": lambda: torch.ones(1, 64, 64),
    "a mask of no samples": lambda: torch.ones(0, 64, 64),
    "a mask 2-d": lambda: torch.ones(64, 64),
    "a mask 1-d": lambda: torch.ones(64),
    "an empty mask": lambda: torch.zeros(1, 64, 64),
    "a mask of bools": lambda: torch.ones(1, 64, 64, dtype=torch.bool),
    "many masks": lambda: torch.ones(300, 8, 8),
    "a scalar": lambda: torch.tensor(1.0),
    "indices": lambda: torch.zeros(4, dtype=torch.long),
    "an adapter": lambda: {"x.lora_up.weight": torch.ones(2, 2)},
    "an adapter of numbers": lambda: {"a": 1},
    "an empty adapter": dict,
}  # fmt: skip


class Any(str):
    """A type that fits every input, as other packs have it."""

    def __ne__(self, other):
        return False

    __hash__ = str.__hash__


class OddObject:
    RETURN_TYPES, FUNCTION, CATEGORY = (Any("*"),), "give", "test"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"which": (list(OBJECTS),)}}

    def give(self, which):
        return (OBJECTS[which](),)


class Api:
    """ComfyUI with the pack, in this process, on folders of its own."""

    def __init__(self, folder):
        self.base = Path(folder)
        sys.path.insert(0, str(find_host("current").path))
        import comfy.cli_args

        comfy.cli_args.args.cpu = True
        comfy.cli_args.args.base_directory = str(self.base)
        for name in ("custom_nodes", "models/loras", "input", "output", "temp", "user"):
            (self.base / name).mkdir(parents=True)
        (self.base / "custom_nodes" / PACK_FOLDER).symlink_to(PACK_ROOT)
        import folder_paths

        folder_paths.base_path = str(self.base)
        for name in ("output", "temp", "input", "user"):
            getattr(folder_paths, f"set_{name}_directory")(str(self.base / name))
        folder_paths.models_dir = str(self.base / "models")
        folder_paths.add_model_folder_path("loras", str(self.base / "models/loras"), True)
        import execution
        import server

        import nodes

        self.execution, self.nodes = execution, nodes
        self.loop = asyncio.new_event_loop()
        asyncio.set_event_loop(self.loop)
        self.server = server.PromptServer(self.loop)
        self.loop.run_until_complete(nodes.init_builtin_extra_nodes())
        pack = self.base / "custom_nodes" / PACK_FOLDER
        assert self.loop.run_until_complete(nodes.load_custom_node(str(pack)))
        nodes.NODE_CLASS_MAPPINGS[ODD] = OddObject
        logging.disable(logging.CRITICAL)
        self.info = {name: _info(node) for name, node in nodes.NODE_CLASS_MAPPINGS.items()}
        self.executor = execution.PromptExecutor(
            self.server, cache_args={"ram": 0, "ram_inactive": 0}
        )
        self.prompts = {}
        for path in WORKFLOWS:
            prompt = _short(to_api(json.loads(path.read_text()), self.info))
            self.prompts[path.stem] = prompt
            self.run(prompt)

    def run(self, prompt):
        """ "" or what the executor said, an ``InputError`` where that is one sentence of ours."""
        valid, error, outputs, problems = self.loop.run_until_complete(
            self.execution.validate_prompt("fuzz", prompt, None)
        )
        for each in [error or {}, *(e for node in problems.values() for e in node["errors"])]:
            if str(each.get("type", "")).startswith("exception_during"):
                about = each.get("extra_info", {})
                ours = PACK_FOLDER in about.get("traceback", [""])[-1]
                if ours and about["exception_type"].rpartition(".")[2] not in SENTENCES:
                    raise RuntimeError(f"while it was validated: {each}")
        if not valid:
            return "refused"
        self.executor.execute(prompt, "fuzz", {}, outputs)
        for kind, data in self.executor.status_messages:
            if kind == "execution_error":
                if data["exception_type"].rpartition(".")[2] in SENTENCES:
                    raise InputError(data["exception_message"].strip())
                if data["node_type"].startswith(OURS):
                    said = [data[key] for key in ("node_type", "exception_type")]
                    said += [data["exception_message"], *data["traceback"][-3:]]
                    raise RuntimeError(" ".join(said))
                return "another node refused it"
        return ""

    def case(self, seed, work):
        def run():
            rng = random.Random(seed)
            prompt = copy.deepcopy(self.prompts[rng.choice(list(self.prompts))])
            for _ in range(rng.choice([1, 1, 1, 2, 3])):
                self._spoil(rng, prompt)
            os.chdir(work)
            import folder_paths

            for name in ("output", "temp"):
                getattr(folder_paths, f"set_{name}_directory")(str(Path(work)))
            self.run(prompt)

        return run

    def _spoil(self, rng, prompt):
        ours = [key for key, node in prompt.items() if node["class_type"].startswith(OURS)]
        key = rng.choice(ours)
        node = prompt[key]
        declared = self.info[node["class_type"]]["input"]
        names = [n for group in ("required", "optional") for n in declared.get(group, {})]
        name, kind = rng.choice(names or ["x"]), rng.random()
        if kind < 0.35:
            prompt[f"odd{len(prompt)}"] = {
                "class_type": ODD, "inputs": {"which": rng.choice(list(OBJECTS))}
            }  # fmt: skip
            node["inputs"][name] = [f"odd{len(prompt) - 1}", 0]
        elif kind < 0.45:
            other = rng.choice(list(prompt))
            node["inputs"][name] = [other, rng.choice([0, 0, 1, 2, 3, -1, 99])]
        elif kind < 0.55:
            value = declared.get("required", {}).get(name) or declared.get("optional", {}).get(name)
            options = (value or ["", {}])[1] if len(value or ()) > 1 else {}
            values = [options[k] for k in ("min", "max", "default") if k in options]
            values += options.get("options", [])
            node["inputs"][name] = rng.choice(values or [None])
        elif kind < 0.62:
            node["inputs"].pop(name, None)
        elif kind < 0.7:
            node["inputs"][name] = mutations.strange_name(rng)
        else:
            node["inputs"][name] = rng.choice(mutations.STRANGE)


def _info(node):
    if hasattr(node, "GET_NODE_INFO_V1"):
        with contextlib.suppress(Exception):
            return node.GET_NODE_INFO_V1()
    return {"input": node.INPUT_TYPES(), "output": getattr(node, "RETURN_TYPES", ())}


def _short(prompt):
    for node in prompt.values():
        if node["class_type"].startswith(OURS):
            inputs = node["inputs"]
            inputs |= {k: v for k, v in FEW.items() if not isinstance(inputs.get(k, []), list)}
    return prompt
