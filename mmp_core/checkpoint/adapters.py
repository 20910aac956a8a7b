"""Adapter files: the matrices of :class:`~.lora.Adapter` in one safetensors file.

Tensors are named as PEFT names them, ``base_model.model.<layer>.lora_A.weight`` and ``…lora_B…``,
with DoRA ``<layer>.lora_magnitude_vector`` besides, and are added as they are (alpha = rank), so
that a file says all without the settings beside it. ``<layer>.dora_scale``, which says the same to
ComfyUI's loader, is not read. Files of others are read, too: PEFT's folder,
and the names ``lora_down``, ``lora_up`` and ``alpha`` that ComfyUI and kohya write.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from ..errors import CheckpointError, InputError, shortened, shown
from ..files import Tell, accessing, checked_path
from ..model.lora import Adapter, CastOperations, LayerShape, adaptable_layers
from ..outside import check_fields, check_kind, field
from .load import Model, load_module
from .tensors import SafetensorsFiles, holds_values, read_json

PREFIX = "base_model.model."
PEFT_CONFIG, PEFT_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

_PREFIXES = (PREFIX, "diffusion_model.")
_NAME = re.compile(r"(?P<layer>.+)\.lora_(?P<part>A|B|down|up)(\.default)?\.weight")
_PARTS = {"A": "A", "down": "A", "B": "B", "up": "B"}
_MAGNITUDE = re.compile(r"(?P<layer>.+)\.lora_magnitude_vector(\.default)?(\.weight)?")
_SCALE = ".dora_scale"
_NOT_PLAIN = (
    *("rank_pattern", "alpha_pattern", "fan_in_fan_out", "layer_replication"),
    *("alora_invocation_tokens", "use_qalora", "use_bdlora", "kasa_config", "monteclora_config"),
)


_CHANGES_BASE = ("pissa", "olora", "loftq", "corda", "lora_ga")
"""PEFT's ways to start an adapter that subtract it from the base model's weights."""
_LARGEST_ALPHA = 1e6
_SWITCHES = {"use_rslora": field(bool), "use_dora": field(bool)}
_ENDS = ("wte", "ff_out", "lm_head")
"""Last parts of the names of embedding and output layer; of a block's layer in ``blocks``."""


def adapter_file(path: str | Path) -> Path:
    """Where the tensors of a file or of a folder of PEFT are. Raises ``InputError``."""
    file = checked_path(path, "The adapter")
    return file / PEFT_WEIGHTS if file.is_dir() else file


@accessing()
def read_adapter(
    path: str | Path, tell: Tell = lambda: None
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a file or PEFT folder: the state of an :class:`~.lora.Adapter` of scale 1, and metadata.
    ``tell`` is called for each layer, and may raise. Raises ``InputError`` for a file that is
    missing, damaged, pickled or holds no plain LoRA."""
    file = adapter_file(path)
    if not file.is_file():
        raise InputError(f"No adapter at {file}: give a .safetensors file, or a folder of PEFT.")
    if file.suffix != ".safetensors":
        raise InputError(
            f"{file} is not a .safetensors file: pickled adapters can run code and are not read; "
            "save the adapter as .safetensors."
        )
    try:
        tensors = SafetensorsFiles.of(file)
        alpha, rslora, dora = None, False, False
        if file.name == PEFT_WEIGHTS or _renamed(file, tensors.metadata(file)):
            alpha, rslora, dora = _peft_settings(file.with_name(PEFT_CONFIG))
        state = adapter_state(dict(tensors), str(file), alpha, rslora=rslora, tell=tell)
        if dora and 3 * sum(".lora_magnitude" in key for key in state) != len(state):
            raise InputError(f"{file} lacks magnitudes of DoRA, which its settings promise.")
        return state, tensors.metadata(file)
    except CheckpointError as error:
        raise InputError(str(error)) from None


def adapter_state(
    tensors: Mapping[str, Tensor],
    name: str,
    alpha: float | None = None,
    *,
    rslora: bool = False,
    tell: Tell = lambda: None,
) -> dict[str, Tensor]:
    """Name ``tensors`` as :class:`~.lora.Adapter` does, with alpha / rank multiplied into B.
    ``name``: of the file, for messages. ``alpha``: of all layers; by default what ``tensors`` say,
    else the rank. ``rslora``: alpha / √rank is multiplied, as PEFT's rsLoRA means it. ``tell`` is
    called for each layer, and may raise. Raises ``InputError`` where they are not the pairs of
    plain LoRA."""
    matrices, magnitudes, alphas = _parts_of(tensors, name)
    state = {}
    for layer, pair in matrices.items():
        tell()
        if pair.keys() != {"A", "B"} or pair["A"].shape[0] != pair["B"].shape[1]:
            raise InputError(f"{name} lacks a matching pair of matrices for {layer}.")
        rank = pair["A"].shape[0]
        if not rank:
            raise InputError(f"{name} has rank 0 for {layer}: it holds nothing.")
        scale = (alphas.get(layer, rank) if alpha is None else alpha) / (
            rank**0.5 if rslora else rank
        )
        b = pair["B"] if scale == 1 else _plain(pair["B"]) * scale
        if not all(_plain(matrix).isfinite().all() for matrix in (pair["A"], b)):
            raise InputError(f"{name} has values for {layer} that are not finite numbers.")
        state |= {f"{layer}.lora_A.weight": pair["A"], f"{layer}.lora_B.weight": b}
    _add_magnitudes(state, magnitudes, name)
    return state


def _parts_of(
    tensors: Mapping[str, Tensor], name: str
) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor], dict[str, float]]:
    """By layer: matrices A and B, magnitudes of DoRA, and alphas."""
    matrices: dict[str, dict[str, Tensor]] = {}
    magnitudes: dict[str, Tensor] = {}
    alphas: dict[str, float] = {}
    _check_tensors(tensors, name)
    scaled = {_layer_of(key.removesuffix(_SCALE)) for key in tensors if key.endswith(_SCALE)}
    magnified = {_layer_of(match["layer"]) for match in map(_MAGNITUDE.fullmatch, tensors) if match}
    for key, tensor in tensors.items():
        if key.endswith(".alpha") and tensor.numel() == 1:
            layer, value = _layer_of(key.removesuffix(".alpha")), _alpha(tensor, f"{name}: {key}")
            if alphas.setdefault(layer, value) != value:
                raise InputError(f"{name} has two values of alpha for {layer}, by two names.")
        elif (match := _NAME.fullmatch(key)) and tensor.ndim == 2 and tensor.is_floating_point():
            layer, part = _layer_of(match["layer"]), _PARTS[match["part"]]
            if part in matrices.setdefault(layer, {}):
                raise InputError(f"{name} holds matrix {part} of {layer} twice, by two names.")
            matrices[layer][part] = tensor
        elif (match := _MAGNITUDE.fullmatch(key)) and tensor.ndim == 1:
            layer = _layer_of(match["layer"])
            if layer in magnitudes:
                raise InputError(f"{name} holds the magnitudes of {layer} twice, by two names.")
            magnitudes[layer] = tensor
        elif key.endswith(_SCALE) and scaled <= magnified:
            continue
        else:
            raise _not_of_lora(key, name)
    if not matrices:
        raise InputError(f"{name} holds no LoRA.")
    return matrices, magnitudes, alphas


def _not_of_lora(key: Any, name: str) -> InputError:
    if isinstance(key, str) and key.endswith((".weight", ".bias")) and ".lora_" not in key:
        layer = _layer_of(key.rpartition(".")[0].partition(".modules_to_save")[0])
        return InputError(
            f"{name} contains weights of its own for {shortened(layer)}, which is "
            "not supported: train it as a LoRA of the layers of the blocks alone."
        )
    said = shortened(key) if isinstance(key, str) and key else shown(key)
    return InputError(f"{name} holds {said}, which is not a LoRA matrix that can be read here.")


def _check_tensors(tensors: Mapping[Any, Any], name: str) -> None:
    """Raises ``InputError`` where another node gave no names of tensors with values of their own:
    an expanded one can be far larger than memory."""
    check_kind(tensors, Mapping, shortened(str(name)), "tensors of a LoRA by their names")
    for key, tensor in tensors.items():
        if not isinstance(key, str) or not holds_values(tensor) or tensor.nbytes > _held(tensor):
            raise InputError(
                f"{name} holds {shown(key)}, which is not a LoRA matrix that can be read here."
            )


def _held(tensor: Tensor) -> int:
    return tensor.untyped_storage().nbytes()


def _add_magnitudes(state: dict[str, Tensor], magnitudes: dict[str, Tensor], name: str) -> None:
    for layer, magnitude in magnitudes.items():
        b = state.get(f"{layer}.lora_B.weight")
        if b is None or magnitude.shape != b.shape[:1] or not magnitude.is_floating_point():
            raise InputError(f"{name} lacks the matrices that fit its magnitudes of {layer}.")
        if not _plain(magnitude).isfinite().all():
            raise InputError(f"{name} has magnitudes of {layer} that are not finite numbers.")
        state[f"{layer}.lora_magnitude_vector"] = magnitude


def layer_of_part(key: str) -> str:
    """The layer that a tensor of a state is of."""
    return key.partition(".lora_")[0]


def base_metadata(model: Model) -> dict[str, str]:
    """Metadata of an adapter file: the checkpoint that it was trained on, quantised or not."""
    gain = cast(Tensor, model.transformer.layers["ln_f"].weight).detach()
    gain = gain.bfloat16().float().cpu().contiguous()
    return {
        "variant": model.variant.id,
        "base_fingerprint": hashlib.sha256(gain.numpy().tobytes()).hexdigest()[:16],
    }


def doubt_about(model: Model, metadata: Mapping[str, str], name: str) -> str | None:
    """A warning where an adapter that fits ``model`` was trained on another checkpoint, else
    ``None``."""
    trained_on = metadata.get("base_fingerprint")
    if trained_on in (None, base_metadata(model)["base_fingerprint"]):
        return None
    return (
        f"{name} was trained on another checkpoint of the same shape, not on the one that is "
        "loaded: results may be poor."
    )


def check_variant(model: Model, metadata: Mapping[str, str], name: str) -> None:
    """Raise ``InputError`` for an adapter of another family, whose shapes may be the same."""
    if (variant := metadata.get("variant", model.variant.id)) != model.variant.id:
        raise InputError(
            f"{name} was trained on variant {variant}; this checkpoint is of variant "
            f"{model.variant}: load the checkpoint that it was trained on."
        )


def build_adapter(
    model: Model,
    state: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    name: str,
    *,
    operations: Any = CastOperations,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    tell: Tell = lambda: None,
) -> Adapter:
    """Build the adapter that :func:`read_adapter` gave, for ``model``. ``dtype``, ``device``: of
    its weights; default, those of the final norm and of the model's inputs. ``tell`` is called
    before each tensor, and may raise. Raises ``InputError`` where it belongs to another variant or
    does not fit."""
    check_variant(model, metadata, name)
    adapter = Adapter(
        _shapes(model, state, name),
        operations=operations,
        dtype=dtype or model.transformer.dtype,
        device="meta",
    ).requires_grad_(False)
    load_module(adapter, state, device or model.device, name, tell)
    return adapter


def _shapes(model: Model, state: Mapping[str, Tensor], name: str) -> dict[str, LayerShape]:
    known = adaptable_layers(model.transformer)
    shapes = {}
    for layer in sorted(set(map(layer_of_part, state))):
        if "blocks" not in layer and layer.rpartition(".")[2] in _ENDS:
            raise InputError(
                f"{name} adapts {layer}, the embedding or output layer, which is not supported: "
                "train it on the layers of the blocks alone."
            )
        if layer not in known:
            raise InputError(
                f"{name} is not an adapter of this model: it adapts {layer}, where this model's "
                f"layers are named like {next(iter(known))}."
            )
        a, b = (state[f"{layer}.lora_{part}.weight"] for part in "AB")
        dora = f"{layer}.lora_magnitude_vector" in state
        sizes = known[layer].in_features, known[layer].out_features
        shapes[layer] = LayerShape(*sizes, a.shape[0], dora)
        if (a.shape[1], b.shape[0]) != shapes[layer][:2]:
            raise InputError(
                f"{name} is an adapter of another model: its {layer} goes from {a.shape[1]} to "
                f"{b.shape[0]}, this model's from {shapes[layer].inputs} to "
                f"{shapes[layer].outputs}."
            )
    return shapes


def _layer_of(key: str) -> str:
    for prefix in _PREFIXES:
        key = key.removeprefix(prefix)
    return key


def _renamed(file: Path, metadata: Mapping[str, str]) -> bool:
    """Whether PEFT's settings beside ``file`` are its own: it is alone there, and not ours."""
    return "variant" not in metadata and list(file.parent.glob("*.safetensors")) == [file]


def _peft_settings(config: Path) -> tuple[float | None, bool, bool]:
    """``lora_alpha`` of PEFT's settings, and whether it is rsLoRA or DoRA; ``None`` without such a
    file."""
    if not config.is_file():
        return None, False, False
    settings = read_json(config)
    if settings.get("peft_type") != "LORA" or any(settings.get(name) for name in _NOT_PLAIN):
        raise InputError(
            f"{config.parent} holds an adapter of a kind that this pack does not read: expected "
            f"PEFT's LoRA without {', '.join(_NOT_PLAIN)}."
        )
    start = str(settings.get("init_lora_weights"))
    if start.lower().startswith(_CHANGES_BASE):
        raise InputError(
            f"{config.parent} was started by {start}, which changes the weights of the base model, "
            "too: it is wrong on the checkpoint as it is; save it converted to plain LoRA (PEFT's "
            "path_initial_model_for_weight_conversion)."
        )
    check_fields(settings, _SWITCHES, str(config))
    alpha = settings.get("lora_alpha")
    if alpha is None or not field(float, above=0, high=_LARGEST_ALPHA).fits(alpha):
        raise InputError(f"{config} has lora_alpha {shown(alpha)}; expected a number above 0.")
    return float(alpha), bool(settings.get("use_rslora")), bool(settings.get("use_dora"))


def _alpha(tensor: Tensor, name: str) -> float:
    if tensor.is_complex() or not abs(alpha := float(tensor)) <= _LARGEST_ALPHA:
        raise InputError(f"{name} is {shown(tensor.tolist())}; expected a finite number.")
    return alpha


def _plain(tensor: Tensor) -> Tensor:
    """In a dtype that can be multiplied, which float8 is not."""
    return tensor.to(torch.bfloat16) if tensor.dtype.itemsize == 1 else tensor
