"""Checkpoints, a folder in the released layout or one file, to a model ready to denoise."""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import CheckpointError, InputError, shortened, shown
from ..files import Tell, accessing, checked_path
from ..image.tokenizer import ImageTokenizer
from ..memory import computes_in_float32
from ..model.config import ModelConfig
from ..model.formats import FORMATS
from ..model.quantised import WeightOnlyLinear, formats_of, replace_linears
from ..model.transformer import (
    Attention,
    MaskedDiffusionTransformer,
    TorchOperations,
    sdpa_attention,
)
from ..variants.base import Layout, Variant
from ..variants.registry import variant_named
from .packed import open_packed
from .read_ahead import read_ahead
from .report import report_of
from .source import Family, Source, assumption, open_folder
from .tensors import Outline, outline_of
from .text_tokenizer import TextTokenizer, reading

_COMPUTED_IN = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_log = logging.getLogger(__name__)

DEMO = Path(__file__).parents[2] / "demo" / "checkpoint"
"""The embedded checkpoint, named ``demo``."""
DEMO_LUMINA = DEMO / "lumina"
"""The embedded one of Lumina-DiMOO's family, named ``demo-lumina``; beside the demo's image
tokenizer."""
PICTURE_BOOK = DEMO.parent / "picture_book" / "checkpoint"
"""The embedded one that draws little scenes, named ``picture-book``."""
EMBEDDED = {"demo": DEMO, "picture-book": PICTURE_BOOK, "demo-lumina": DEMO_LUMINA}


@dataclass
class Model:
    """A loaded checkpoint. ``device``: where its inputs go; change it with the modules' own.
    ``config``: the raw ``config.json``. ``place``: its folder or file. ``doubt``: a sentence where
    its family may be another. ``default_image_size``: side in pixels of a square image;
    ``downsample``: pixels per image code."""

    transformer: MaskedDiffusionTransformer
    image_tokenizer: ImageTokenizer
    layout: Layout
    tokenizer: Any
    config: Mapping[str, Any]
    variant: Variant
    device: torch.device
    place: Path | None = None
    doubt: str | None = None
    default_image_size: int = field(init=False)
    default_text_length: int = field(init=False)

    def __post_init__(self) -> None:
        self.default_image_size = self.config.get("default_image_size", self.variant.image_size)
        self.default_text_length = self.config.get("default_text_length", self.variant.text_length)

    @property
    def downsample(self) -> int:
        return self.image_tokenizer.downsample


@accessing(CheckpointError)
def load_checkpoint(
    path: str | Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    operations: Any = TorchOperations,
    attention: Attention = sdpa_attention,
    image_tokenizer_path: str | Path | None = None,
    family: Family = None,
) -> Model:
    """Load a checkpoint folder or file, or the embedded one by the name ``demo``.

    ``dtype``: of the transformer, where it is not quantised, and of its results; ``None`` keeps the
    stored one, but takes float32 on a CPU for a model of less than a billion parameters, which is
    faster there, a hundredfold on processors without AVX-512. So does ``torch.int8``, with which
    layers stored as int8 multiply as int8. The image tokenizer is always float32, as in the
    reference.
    ``image_tokenizer_path``: file or folder of the image tokenizer where it is not inside or beside
    the checkpoint. ``family``: its id or name, where the files cannot tell (see
    ``variants.registry``). Raises ``CheckpointError``: one sentence naming what is missing or
    wrong, and where it goes; ``InputError`` for an unknown family, and for a device or dtype that
    cannot be used.
    """
    source = open_checkpoint(path, image_tokenizer_path=image_tokenizer_path, family=family)
    return load_source(
        source, device=device, dtype=dtype, operations=operations, attention=attention
    )


@accessing(CheckpointError)
def load_source(
    source: Source,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    operations: Any = TorchOperations,
    attention: Attention = sdpa_attention,
) -> Model:
    """:func:`load_checkpoint` of one that :func:`open_checkpoint` has found and checked."""
    device = _usable(device)
    whole = dtype is torch.int8
    if whole:
        dtype = None
    elif not isinstance(dtype, torch.dtype | None) or dtype not in (None, *_COMPUTED_IN):
        raise InputError(
            f"dtype is {shown(dtype)}; expected None, torch.float32, torch.bfloat16, torch.float16 "
            "or torch.int8."
        )
    if not hasattr(operations, "Linear") or not callable(attention):
        raise InputError("operations or attention is of no use: leave them out.")
    check_formats(source, device)
    read_ahead(source.weights, source.image_weights)
    dtype = dtype or fitting_dtype(source, device)
    model = build_model(source, operations=operations, attention=attention, dtype=dtype)
    if whole:
        multiply_as_int8(model.transformer, str(source.path))
    load_weights(model, source, device)
    model.device = device
    return model


def _usable(device: torch.device | str) -> torch.device:
    """Raises ``InputError`` for a device that does not exist, or that this machine lacks."""
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, TypeError, ValueError, AssertionError) as error:
        raise InputError(
            f"device is {shown(device)}, which cannot be used here ({shortened(str(error))}): give "
            "cpu, or that of a GPU which this PyTorch finds."
        ) from None
    return found


@accessing(CheckpointError)
def open_checkpoint(
    path: str | Path, *, image_tokenizer_path: str | Path | None = None, family: Family = None
) -> Source:
    """Find and check a checkpoint's files without reading weights."""
    if not isinstance(family, str | None) or family:
        family = variant_named(family)
    known = EMBEDDED.get(path) if isinstance(path, str) else None
    place = known or checked_path(path, "The checkpoint")
    given = None
    if image_tokenizer_path is not None:
        given = checked_path(image_tokenizer_path, "The image tokenizer")
    if place.is_file():
        return open_packed(place, given, family)
    if place.is_dir():
        source = open_folder(place, given, family)
        known = place in EMBEDDED.values()
        return replace(source, licences={"with the pack": "Apache-2.0"}) if known else source
    raise CheckpointError(
        f"No checkpoint at {shortened(str(place))}: expected a folder with config.json, "
        "model.safetensors (or its shards and index) and tokenizer files, or a file that "
        "Convert Checkpoint wrote."
    )


def build_model(
    source: Source,
    *,
    operations: Any = TorchOperations,
    attention: Attention = sdpa_attention,
    dtype: torch.dtype | None = None,
) -> Model:
    """The modules of ``source`` on the meta device, without weights: see :func:`load_weights`.

    ``operations``: where layers are taken from (plain torch or a host's own); of a quantised
    checkpoint, ``operations.QuantisedLinear`` for the layers that are. ``dtype``: as for
    :func:`load_checkpoint`.
    """
    stored = stored_dtype(source)
    transformer = MaskedDiffusionTransformer(
        ModelConfig.from_dict(source.config),
        operations=operations,
        attention=attention,
        dtype=dtype or stored,
        device="meta",
    )
    if formats := formats_of(source.weights):
        replace_linears(transformer, formats, operations.QuantisedLinear)
    image_tokenizer = source.variant.image_tokenizer(
        source.image_config, operations=operations, dtype=torch.float32, device="meta"
    )
    check_shapes(transformer, source.weights, str(source.path))
    check_shapes(image_tokenizer, source.image_weights, str(source.image_path))
    with reading(str(source.path)):
        layout = source.variant.layout(source.tokenizer, source.config)
    _check_sizes(layout, transformer, image_tokenizer)
    model = Model(
        transformer=transformer.requires_grad_(False).train(False),
        image_tokenizer=image_tokenizer.requires_grad_(False).train(False),
        layout=layout,
        tokenizer=source.tokenizer,
        config=source.config,
        variant=source.variant,
        device=torch.device("meta"),
        place=source.path,
        doubt=source.doubt or assumption(source),
    )
    if model.doubt:
        _log.warning("%s: %s", source.path, model.doubt)
    _log.info("MMaDA-Parallel: %s", "; ".join(report_of(source, model).lines()))
    return model


def stored_dtype(source: Source) -> torch.dtype:
    """Dtype of the transformer as stored, where one can compute in it; bfloat16 where the file
    holds plain float8."""
    name = "model.transformer.ln_f.weight"
    if name not in source.weights:
        raise CheckpointError(f"{source.path} lacks {name}: it is incomplete or another model.")
    stored = outline_of(source.weights, name).dtype
    if not stored.is_floating_point:
        raise CheckpointError(
            f"{source.path} holds {name} as {stored}: it is damaged or another model."
        )
    return torch.bfloat16 if stored.itemsize == 1 else stored


def fitting_dtype(source: Source, device: torch.device) -> torch.dtype:
    """:func:`stored_dtype`, but float32 on a CPU where the model is small."""
    stored = stored_dtype(source)
    if device.type != "cpu":
        return stored
    parameters = sum(math.prod(outline_of(source.weights, n).shape) for n in source.weights)
    return torch.float32 if computes_in_float32(parameters) else stored


def check_formats(source: Source, device: torch.device) -> None:
    """Raises ``CheckpointError`` for float8 on Apple's GPUs, which have no such tensors."""
    forms = formats_of(source.weights).values()
    if device.type == "mps" and any(form.name != FORMATS["int8"].name for form in forms):
        raise CheckpointError(
            f"{source.path} is quantised with float8, which this device cannot hold: convert the "
            "original checkpoint to int8 (Convert Checkpoint)."
        )


def multiply_as_int8(module: nn.Module, name: str) -> None:
    """Let the layers of ``module`` that are stored as int8 multiply so. Raises ``CheckpointError``
    where there are none; ``name`` says where its weights come from."""
    layers = [m for m in module.modules() if isinstance(m, WeightOnlyLinear)]
    layers = [layer for layer in layers if layer.stored["weight"][0] == torch.int8]
    if not layers:
        raise CheckpointError(
            f"{name} holds no int8 weights, so that dtype int8 is not possible: convert it to int8 "
            "(Convert Checkpoint), or choose another dtype."
        )
    for layer in layers:
        layer.as_int8 = True


def load_weights(
    model: Model, source: Source, device: torch.device | str, tell: Tell = lambda: None
) -> None:
    """Read the weights of ``source`` into the modules of ``model``, on ``device``. ``tell`` is
    called before each tensor, and may raise."""
    load_module(model.transformer, source.weights, device, str(source.path), tell)
    load_module(model.image_tokenizer, source.image_weights, device, str(source.image_path), tell)


def load_module(
    module: nn.Module,
    weights: Mapping[str, Tensor],
    device: torch.device | str,
    name: str,
    tell: Tell = lambda: None,
) -> None:
    """Assign ``weights`` to ``module`` tensor by tensor, so that memory holds them once.

    Floats take the dtype of the parameter they replace. Layers load their own part, so that those
    of a host may read a format of their own. Raises ``CheckpointError`` for tensors that are
    missing, unexpected or of another shape; ``name`` tells where they come from. ``tell`` is called
    before each, and may raise.
    """
    check_complete(module, weights, name)
    expected = module.state_dict()
    layers = dict(module.named_modules())
    unexpected = []
    for owner, keys in _by_layer(weights, layers).items():
        part = {}
        for key in keys:
            tell()
            like = expected.get(key)
            part[key[len(owner) :].lstrip(".")] = _fitting(weights[key], like, key, device, name)
        try:
            loaded = layers[owner].load_state_dict(part, strict=False, assign=True)
        except RuntimeError as error:
            raise CheckpointError(f"{name} does not fit: {error}") from None
        unexpected += [f"{owner}.{key}".lstrip(".") for key in loaded.unexpected_keys]
    _refuse_unexpected(unexpected, name)


def check_shapes(module: nn.Module, weights: Mapping[str, Tensor], name: str) -> None:
    """Raises ``CheckpointError`` where one of ``weights`` has another shape than ``module`` asks
    for, or holds no numbers of its kind; nothing is read."""
    for key, like in module.state_dict().items():
        if key in weights:
            _check_fitting(outline_of(weights, key), like, key, name)


def check_complete(module: nn.Module, names: Collection[str], name: str) -> None:
    """Raises ``CheckpointError`` where ``names`` lack tensors of ``module``."""
    missing = sorted(module.state_dict().keys() - set(names))
    if missing:
        raise CheckpointError(f"{name} lacks {_some(missing)}: it is incomplete or another model.")


def check_nothing_more(module: nn.Module, weights: Mapping[str, Tensor], name: str) -> None:
    """Raises ``CheckpointError`` where ``weights`` hold tensors that ``module``, which is on the
    meta device, does not have; nothing is read."""
    outlines = {key: outline_of(weights, key) for key in weights}
    empty = {k: torch.empty(o.shape, dtype=o.dtype, device="meta") for k, o in outlines.items()}
    loaded = module.load_state_dict(empty, strict=False, assign=True)
    _refuse_unexpected(loaded.unexpected_keys, name)


def _refuse_unexpected(keys: Collection[str], name: str) -> None:
    if keys:
        raise CheckpointError(
            f"{name} holds {_some(sorted(keys))}, which this model does not have: it is another "
            "model."
        )


def _check_sizes(
    layout: Layout, transformer: MaskedDiffusionTransformer, image_tokenizer: ImageTokenizer
) -> None:
    codes, rows = layout.codebook_size, transformer.config.embedding_size
    if codes > image_tokenizer.codebook_size:
        raise CheckpointError(
            f"The transformer has {codes} image codes, its image tokenizer "
            f"{image_tokenizer.codebook_size}: they do not match."
        )
    ids = {name: value for name, value in vars(layout).items() if type(value) is int}
    if isinstance(layout.tokenizer, TextTokenizer):
        ids["the tokenizer's highest id"] = layout.tokenizer.highest_id
    for name, value in ids.items():
        if name not in ("image_offset", "codebook_size") and not 0 <= value < rows:
            raise CheckpointError(
                f"{name} is {value}, the embedding has {rows} rows: config.json, tokenizer and "
                "weights do not match."
            )
    if layout.image_offset + codes > rows:
        raise CheckpointError(
            f"Image codes {layout.image_offset} to {layout.image_offset + codes - 1} do not fit "
            f"an embedding of {rows} rows: config.json and tokenizer do not match."
        )


def _by_layer(names: Mapping[str, Tensor], layers: Mapping[str, nn.Module]) -> dict[str, list]:
    """Tensor names by the innermost of ``layers`` that each lies in."""
    groups: dict[str, list] = {}
    for name in names:
        owner = name.rpartition(".")[0]
        while owner not in layers:
            owner = owner.rpartition(".")[0]
        groups.setdefault(owner, []).append(name)
    return groups


def _fitting(
    tensor: Tensor, like: Tensor | None, key: str, device: torch.device | str, name: str
) -> Tensor:
    if like is None:
        return tensor.to(device)
    _check_fitting(Outline(tensor.dtype, tuple(tensor.shape)), like, key, name)
    return tensor.to(device=device, dtype=like.dtype if tensor.is_floating_point() else None)


def _check_fitting(stored: Outline, like: Tensor, key: str, name: str) -> None:
    if stored.shape != tuple(like.shape):
        raise CheckpointError(
            f"{key} in {name} has shape {stored.shape}; the configuration asks for "
            f"{tuple(like.shape)}."
        )
    if stored.dtype.is_floating_point != like.dtype.is_floating_point or stored.dtype.is_complex:
        raise CheckpointError(
            f"{key} in {name} holds {str(stored.dtype).removeprefix('torch.')}; expected "
            f"{'floating-point' if like.dtype.is_floating_point else 'whole'} numbers."
        )


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more tensors" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
