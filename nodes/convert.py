"""Convert Checkpoint."""

from comfy_api.v0_0_2 import io

from ..mmp_core.checkpoint.convert import convert
from ..mmp_core.files import readable_size
from ..mmp_core.model.formats import FORMATS
from . import host
from .host import Progress, folders
from .types import Schema
from .widgets import between


class ConvertCheckpoint(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        formats = list(FORMATS)
        return Schema(
            node_id="MMaDAParallelConvertCheckpoint",
            display_name="Convert Checkpoint (MMaDA)",
            category="MMaDA-Parallel/checkpoints",
            description="Packs a checkpoint folder into one file of about half the size and "
            "writes it to the model folder, where Load MMaDA-Parallel finds it. An "
            "adapter can be merged into it.",
            search_aliases=["mmada", "quantize", "fp8", "int8", "merge lora"],
            inputs=[
                io.Combo.Input(
                    "checkpoint",
                    options=list(folders.checkpoints(folders_only=True)),
                    default="demo",
                    tooltip="A checkpoint folder in models/mmada_parallel, as it was downloaded. "
                    "It is not changed.",
                ),
                io.Combo.Input(
                    "quantize",
                    options=[*formats, "none"],
                    default="int8",
                    tooltip="How the linear layers of the blocks are stored. int8 and fp8: one "
                    "byte per weight; int8 is closer to the original. nvfp4: four and a "
                    "half bits per weight, less close to the original. none: as they are.",
                ),
                io.String.Input(
                    "name",
                    default="",
                    tooltip="Name of the new file in models/mmada_parallel, without "
                    ".safetensors. Empty: the name of the checkpoint with the format "
                    "added.",
                ),
                io.Combo.Input(
                    "lora",
                    options=folders.adapter_names(),
                    default=folders.NO_ADAPTER,
                    tooltip="An adapter in models/loras to merge into the weights permanently. "
                    "none: the checkpoint as it is.",
                ),
                io.Float.Input(
                    "strength",
                    **between(-10.0, 10.0, default=1.0, step=0.05),
                    tooltip="How strongly the adapter is merged. 1: as it was trained.",
                ),
                io.Combo.Input(
                    "image_tokenizer",
                    options=list(folders.image_tokenizers()),
                    default="auto",
                    advanced=True,
                    tooltip="The image tokenizer to pack into the file. auto: the vqvae (A) or "
                    "magvitv2 (M) folder inside or next to the checkpoint.",
                ),
            ],
            outputs=[
                io.String.Output(
                    display_name="path",
                    tooltip="The path of the new file. Press R to list it in Load MMaDA-Parallel.",
                )
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(
        cls, checkpoint: str, image_tokenizer: str, lora: str | None = None, **_
    ):
        sources = folders.fingerprint(lambda: folders.checkpoint_paths(checkpoint, image_tokenizer))
        adapter = folders.fingerprint(lambda: folders.adapter_files(lora or folders.NO_ADAPTER))
        return sources, adapter, host.times_gone(cls.hidden.unique_id)

    @classmethod
    def execute(
        cls,
        checkpoint: str,
        quantize: str,
        name: str,
        lora: str,
        strength: float,
        image_tokenizer: str,
    ) -> io.NodeOutput:
        source, image_path = folders.checkpoint_paths(checkpoint, image_tokenizer)
        with_lora = lora != folders.NO_ADAPTER and strength != 0
        out = folders.new_checkpoint(name.strip() or f"{source.name}-{quantize}")
        progress = Progress(cls.hidden.unique_id)

        def show(written: int, total: int) -> None:
            host.stop_if_interrupted()
            progress.show(written, total)
            if progress.text_due:
                progress.show_text(f"{readable_size(written)} of {readable_size(total)} written")

        convert(
            checkpoint if checkpoint == "demo" else source,
            out,
            quantize=quantize,
            adapters=[(folders.adapter_file(lora), strength)] if with_lora else [],
            image_tokenizer_path=image_path,
            progress=show,
        )
        host.wrote(cls.hidden.unique_id, out)
        text = f"{out.name}: {readable_size(out.stat().st_size)}. Press R to list it."
        return io.NodeOutput(str(out), ui={"text": (text,)})
