"""Apply LoRA."""

import logging

import torch
from comfy_api.latest import io

from ..mmp_core.checkpoint.adapters import adapter_state, doubt_about, read_adapter
from .host import HostedModel, folders, with_adapter
from .types import LoraModel, Model, Schema
from .widgets import between


class ApplyLoRA(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return Schema(
            node_id="MMaDAParallelApplyLoRA",
            display_name="Apply LoRA",
            description="Adds a trained adapter to what the model computes. Its weights, quantised "
            "or not, stay as they are, and so does the model for other branches of the graph.",
            search_aliases=["mmada", "load lora", "adapter", "finetune"],
            inputs=[
                Model.Input(
                    "model",
                    tooltip="From Load MMaDA-Parallel, or from another Apply LoRA: adapters add "
                    "up.",
                ),
                io.Combo.Input(
                    "lora",
                    options=folders.adapter_names(),
                    default=folders.NO_ADAPTER,
                    tooltip="An adapter in models/loras, written by a training node, Save LoRA or "
                    "PEFT (.safetensors). Press R after you put one there. none: the model as it "
                    "is. An adapter connected to lora_model is used instead.",
                ),
                io.Float.Input(
                    "strength",
                    **between(-10.0, 10.0, default=1.0, step=0.05),
                    tooltip="How much of the adapter is added. 0: nothing. 1: as it was trained. "
                    "Negative values push the other way.",
                ),
                LoraModel.Input(
                    "lora_model",
                    optional=True,
                    tooltip="An adapter straight from a training node. Used instead of the file "
                    "chosen in lora.",
                ),
            ],
            outputs=[
                Model.Output(
                    display_name="model",
                    tooltip="The model with the adapter, for all other MMaDA-Parallel nodes.",
                )
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, lora: str, strength: float, model=None, lora_model=None):
        return folders.fingerprint(lambda: folders.adapter_files(lora))

    @classmethod
    def execute(
        cls,
        model: HostedModel,
        lora: str,
        strength: float,
        lora_model: dict[str, torch.Tensor] | None = None,
    ) -> io.NodeOutput:
        if strength == 0 or (lora_model is None and lora == folders.NO_ADAPTER):
            return io.NodeOutput(model)
        if lora_model is None:
            name = lora
            state, metadata = read_adapter(folders.adapter_file(lora))
        else:
            name, state, metadata = "lora_model", adapter_state(lora_model, "lora_model"), {}
        if doubt := doubt_about(model.model, metadata, name):
            logging.warning(doubt)
        return io.NodeOutput(with_adapter(model, state, metadata, name, strength))
