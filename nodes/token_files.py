"""Save Tokens and Load Tokens."""

import json
from collections.abc import Mapping
from contextlib import suppress
from itertools import islice
from typing import Any

from comfy_api.v0_0_2 import io

from ..mmp_core import InputError, TokenState
from ..mmp_core.checkpoint.tokens import check_size, load_tokens, save_tokens
from ..mmp_core.outside import checked_text
from . import host
from .host import folders
from .types import Model, Schema, Tokens

_MOST_PARTS, _MOST_WRITTEN = 1000, 2**24
"""Parts of a workflow that are saved with tokens, and characters of all: a longer header than
100 MB, in which quotation marks are written as up to four, cannot be read again."""


class SaveTokens(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return Schema(
            node_id="MMaDAParallelSaveTokens",
            display_name="Save Tokens (MMaDA)",
            category="MMaDA-Parallel/tokens",
            description="Saves text and picture tokens, finished or half denoised, to a file in "
            "the output folder.",
            search_aliases=["mmada", "save latent"],
            inputs=[
                Model.Input("model", tooltip="The checkpoint that made the tokens."),
                Tokens.Input("tokens", tooltip="The tokens to save."),
                io.String.Input(
                    "filename_prefix",
                    default="MMaDA-Parallel/tokens",
                    tooltip="Folder and file name in the output folder. A number is added.",
                ),
            ],
            outputs=[],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls, model: host.HostedModel, tokens: TokenState, filename_prefix: str
    ) -> io.NodeOutput:
        shapes = {"text": tokens.text.shape, "image": tokens.image.shape}
        check_size(shapes, model.model, "tokens")  # of what Load Tokens would refuse
        model.prepare_decoding(tokens.grid)
        about = _written(cls.hidden.prompt, cls.hidden.extra_pnginfo)
        notes = about if host.metadata_wanted() else None
        path = folders.write_numbered(
            lambda file: save_tokens(file, tokens, model.model, notes, new=True),
            filename_prefix,
            folders.TOKENS_ENDING,
        )
        return io.NodeOutput(ui={"text": (path.name,)})


def _written(prompt: Any, extra: Any) -> dict[str, str]:
    """A workflow as JSON by the names of its parts; without what another pack or the API put there
    that cannot be written, or is too long."""
    about = {"prompt": prompt, **(extra if isinstance(extra, Mapping) else {})}
    written, left = {}, _MOST_WRITTEN
    for name, value in islice(about.items(), _MOST_PARTS):
        with suppress(TypeError, ValueError, RecursionError):
            text = json.dumps(value)
            if value is not None and len(text) <= left:
                written[checked_text(name, "extra_pnginfo")] = text
                left -= len(text)
    return written


class LoadTokens(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return Schema(
            node_id="MMaDAParallelLoadTokens",
            display_name="Load Tokens (MMaDA)",
            category="MMaDA-Parallel/tokens",
            description="Loads tokens that Save Tokens has written. Tokens of a checkpoint with "
            "another variant, vocabulary or codebook are refused.",
            search_aliases=["mmada", "load latent", "go on", "resume"],
            inputs=[
                Model.Input("model", tooltip="The checkpoint that made the tokens."),
                io.Combo.Input(
                    "file",
                    options=folders.token_files(),
                    tooltip="Files that Save Tokens has written to the output folder, or that "
                    "you have put into the input folder, at most one folder deep. Press "
                    "R to update the list.",
                ),
            ],
            outputs=[Tokens.Output(display_name="tokens", tooltip="For Parallel Denoise.")],
        )

    @classmethod
    def validate_inputs(cls, file: str):
        """A file in a deeper folder, or newer than the list, may be named, too."""
        try:
            folders.token_file(file)
        except InputError as problem:
            return str(problem)
        return True

    @classmethod
    def fingerprint_inputs(cls, file: str, **_):
        return folders.fingerprint(lambda: [folders.token_file(file)])

    @classmethod
    def execute(cls, model: host.HostedModel, file: str) -> io.NodeOutput:
        model.prepare_decoding((1, 1))
        return io.NodeOutput(load_tokens(folders.token_file(file), model.model))
