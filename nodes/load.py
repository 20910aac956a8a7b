"""Load MMaDA-Parallel and Apply LoRA."""

import logging

import torch
from comfy_api.v0_0_2 import io

from ..mmp_core.checkpoint.adapters import adapter_state, doubt_about, read_adapter
from ..mmp_core.variants.registry import VARIANTS, variant_named
from . import host
from .host import folders
from .types import LoraModel, Model, Schema
from .widgets import between

AUTO = "auto"
_WORTH_SAYING = 10**9
"""Bytes of weights from which on the node says what they need of the memory."""


class LoadModel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return Schema(
            node_id="MMaDAParallelLoader",
            display_name="Load MMaDA-Parallel",
            description="Loads a checkpoint of MMaDA-Parallel, Lumina-DiMOO or MMaDA-8B: "
            "transformer, tokenizer and image tokenizer. The small demo checkpoints come with the "
            "pack.",
            search_aliases=["mmada", "load checkpoint", "model", "diffusion language model"],
            inputs=[
                io.Combo.Input(
                    "checkpoint",
                    options=list(folders.checkpoints()),
                    default="picture-book",
                    tooltip="demo: a small model that comes with the pack and edits its own toy "
                    "scenes. picture-book: another one, which edits little scenes of houses, "
                    "trees, boats and sky. demo-lumina: a model of Lumina-DiMOO's family for toy "
                    "scenes, which answers with a picture or with a text. Put released checkpoints "
                    "(the whole folder of MMaDA-Parallel-A, MMaDA-Parallel-M, "
                    "Lumina-DiMOO or MMaDA-8B from Hugging Face), or files made by "
                    "Convert Checkpoint, into models/mmada_parallel/, then press R. The "
                    "help page of this node lists how much memory they need.",
                ),
                io.Combo.Input(
                    "dtype",
                    options=["auto", *host.DTYPES, host.INT8],
                    default="auto",
                    advanced=True,
                    tooltip="Precision of the transformer. auto: bf16 on a GPU that supports it; "
                    "on a CPU, fp32 for small models and the stored precision for large "
                    "ones. int8: as auto, but the layers of a checkpoint converted to int8 "
                    "are multiplied as int8, which is faster and slightly less accurate.",
                ),
                io.Combo.Input(
                    "image_tokenizer",
                    options=list(folders.image_tokenizers()),
                    default="auto",
                    advanced=True,
                    tooltip="Converts pictures to tokens and back. auto: the vqvae (A) or "
                    "magvitv2 (M, MMaDA-8B) folder inside or next to the checkpoint. Those "
                    "two do not include one: download showlab/magvitv2 from Hugging Face "
                    "into models/mmada_parallel/magvitv2/.",
                ),
                io.Combo.Input(
                    "family",
                    options=[AUTO, *(variant.name for variant in VARIANTS)],
                    default=AUTO,
                    optional=True,
                    advanced=True,
                    tooltip="The model family of the checkpoint. auto: recognised from its "
                    "files, its name or your earlier choice. Lumina-DiMOO and "
                    "MMaDA-Parallel-A cannot be told apart by their files, nor MMaDA-8B and "
                    "MMaDA-Parallel-M: choose the family here if the name of the folder does "
                    "not say it. Your choice is saved in a small file next to the checkpoint.",
                ),
            ],
            outputs=[
                Model.Output(
                    display_name="model",
                    tooltip="The loaded checkpoint, for all other MMaDA-Parallel nodes.",
                )
            ],
        )

    @classmethod
    def fingerprint_inputs(
        cls, checkpoint: str, dtype: str, image_tokenizer: str, family: str = AUTO
    ):
        return folders.fingerprint(lambda: folders.checkpoint_paths(checkpoint, image_tokenizer))

    @classmethod
    def execute(
        cls, checkpoint: str, dtype: str, image_tokenizer: str, family: str = AUTO
    ) -> io.NodeOutput:
        chosen = None if family == AUTO else variant_named(family)
        model = host.load(checkpoint, dtype, image_tokenizer, chosen)
        cost = host.memory_cost(model.patcher.load_device, model.weights, 0, loading=True)
        logging.info("MMaDA-Parallel: %s. %s", checkpoint, cost)
        notes = [model.model.doubt, cost if model.weights > _WORTH_SAYING else None]
        text = "\n".join(filter(None, notes))
        return io.NodeOutput(model, ui={"text": (text,)} if text else None)


class ApplyLoRA(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return Schema(
            node_id="MMaDAParallelApplyLoRA",
            display_name="Apply LoRA (MMaDA)",
            category="MMaDA-Parallel/checkpoints",
            description="Applies a trained adapter to the model. The model's own weights, "
            "quantised or not, do not change, and other branches of the graph are "
            "not affected.",
            search_aliases=["mmada", "lora", "load lora", "adapter"],
            inputs=[
                Model.Input(
                    "model",
                    tooltip="From Load MMaDA-Parallel, or from another Apply LoRA: several "
                    "adapters are added together.",
                ),
                io.Combo.Input(
                    "lora",
                    options=folders.adapter_names(),
                    default=folders.NO_ADAPTER,
                    tooltip="An adapter in models/loras, written by a training node, Save LoRA "
                    "or PEFT (.safetensors). Press R after adding a file. none: no "
                    "adapter. If lora_model is connected, it is used instead.",
                ),
                io.Float.Input(
                    "strength",
                    **between(-10.0, 10.0, default=1.0, step=0.05),
                    tooltip="How strongly the adapter is applied. 0: not at all. 1: as it was "
                    "trained. Negative values have the opposite effect.",
                ),
                LoraModel.Input(
                    "lora_model",
                    optional=True,
                    tooltip="An adapter directly from a training node. It is used instead of the "
                    "file chosen in lora.",
                ),
            ],
            outputs=[
                Model.Output(
                    display_name="model",
                    tooltip="The model with the adapter applied, for all other MMaDA-Parallel "
                    "nodes.",
                )
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, lora: str, strength: float, model=None, lora_model=None):
        return folders.fingerprint(lambda: folders.adapter_files(lora))

    @classmethod
    def execute(
        cls,
        model: host.HostedModel,
        lora: str,
        strength: float,
        lora_model: dict[str, torch.Tensor] | None = None,
    ) -> io.NodeOutput:
        if strength == 0 or (lora_model is None and lora == folders.NO_ADAPTER):
            return io.NodeOutput(model)
        file = None
        if lora_model is None:
            name, file = lora, folders.adapter_file(lora)
            state, metadata = read_adapter(file, host.stop_if_interrupted)
        else:
            name, metadata = "lora_model", {}
            state = adapter_state(lora_model, name, tell=host.stop_if_interrupted)
        if doubt := doubt_about(model.model, metadata, name):
            logging.warning(doubt)
        return io.NodeOutput(host.with_adapter(model, state, metadata, name, strength, file))
