"""Load MMaDA-Parallel."""

from comfy_api.latest import io

from . import host
from .host import folders
from .types import Model, Schema


class LoadModel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return Schema(
            node_id="MMaDAParallelLoader",
            display_name="Load MMaDA-Parallel",
            description="Loads a MMaDA-Parallel checkpoint: transformer, tokenizer and image "
            "tokenizer. The small demo checkpoint comes with the pack.",
            search_aliases=["mmada", "load checkpoint", "diffusion language model"],
            inputs=[
                io.Combo.Input(
                    "checkpoint",
                    options=list(folders.checkpoints()),
                    default="demo",
                    tooltip="demo is small, comes with the pack and edits its own toy scenes. Put "
                    "the released checkpoints (the whole folder of MMaDA-Parallel-A or -M from "
                    "Hugging Face), or files that `mmada-parallel convert` made of them, into "
                    "models/mmada_parallel/, then press R. The help page of this node says how "
                    "much memory they need.",
                ),
                io.Combo.Input(
                    "dtype",
                    options=["auto", *host.DTYPES],
                    default="auto",
                    advanced=True,
                    tooltip="Precision of the transformer. auto: bf16 on a GPU that supports it; "
                    "on a CPU fp32 for small models, and as stored for large ones.",
                ),
                io.Combo.Input(
                    "image_tokenizer",
                    options=list(folders.image_tokenizers()),
                    default="auto",
                    advanced=True,
                    tooltip="Turns pictures into tokens and back. auto: the vqvae (A) or magvitv2 "
                    "(M) folder inside or beside the checkpoint. Variant M comes without one: put "
                    "showlab/magvitv2 from Hugging Face into models/mmada_parallel/magvitv2/.",
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
    def fingerprint_inputs(cls, checkpoint: str, dtype: str, image_tokenizer: str):
        return folders.fingerprint(lambda: folders.checkpoint_paths(checkpoint, image_tokenizer))

    @classmethod
    def execute(cls, checkpoint: str, dtype: str, image_tokenizer: str) -> io.NodeOutput:
        return io.NodeOutput(host.load(checkpoint, dtype, image_tokenizer))
