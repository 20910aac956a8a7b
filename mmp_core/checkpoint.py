"""Checkpoints: a folder in the released layout, read lazily, to a model ready to denoise."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from .config import ModelConfig
from .errors import CheckpointError
from .image_tokenizer import AmusedVQ, ImageTokenizer, MagvitV2
from .layout import LAYOUTS, Layout, detect_variant
from .transformer import (
    Attention,
    MaskedDiffusionTransformer,
    TorchOperations,
    sdpa_attention,
)

DEMO = Path(__file__).parents[1] / "demo" / "checkpoint"
"""The embedded checkpoint, named ``demo``."""

_TRANSFORMER_FILES = ("model.safetensors.index.json", "model.safetensors")
_IMAGE_FILES = (
    "diffusion_pytorch_model.safetensors",
    "model.safetensors",
    "pytorch_model.safetensors",
    "pytorch_model.bin",
    "diffusion_pytorch_model.bin",
)
_IMAGE_FOLDERS = {"A": ("vqvae",), "M": ("magvitv2", "vqvae")}


class SafetensorsFiles(Mapping):
    """Tensors of one or more safetensors files by name, each read when asked for.

    ``where``: {tensor name: file}. Raises ``CheckpointError`` for files that cannot be read.
    """

    def __init__(self, where: Mapping[str, Path]):
        self._where = dict(where)
        self._open: dict[Path, Any] = {}

    @classmethod
    def of(cls, file: Path) -> SafetensorsFiles:
        files = cls({})
        files._where = dict.fromkeys(files._handle(file).keys(), file)
        return files

    @classmethod
    def sharded(cls, index: Path) -> SafetensorsFiles:
        """The shards named by ``model.safetensors.index.json``, all of which must be there."""
        try:
            shards = read_json(index)["weight_map"]
        except KeyError:
            raise CheckpointError(f"{index} has no weight_map; download it again.") from None
        missing = sorted({s for s in shards.values() if not (index.parent / s).is_file()})
        if missing:
            raise CheckpointError(
                f"{', '.join(missing)} missing in {index.parent}: download the file(s) named in "
                f"{index.name} there."
            )
        return cls({name: index.parent / shard for name, shard in shards.items()})

    @property
    def files(self) -> list[Path]:
        return sorted(set(self._where.values()))

    def __getitem__(self, name: str) -> Tensor:
        file = self._where[name]
        try:
            return self._handle(file).get_tensor(name)
        except SafetensorError as error:
            raise CheckpointError(f"{file} does not hold {name} ({error}).") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._where)

    def __len__(self) -> int:
        return len(self._where)

    def _handle(self, file: Path) -> Any:
        if file not in self._open:
            try:
                self._open[file] = safe_open(file, framework="pt")
            except (SafetensorError, OSError) as error:
                raise CheckpointError(
                    f"{file} cannot be read ({error}): it is damaged or incomplete; download it "
                    "again."
                ) from None
        return self._open[file]


@dataclass(frozen=True)
class Source:
    """A checkpoint as stored, before anything is built.

    ``weights`` and ``image_weights``: tensors by name, read when asked for. ``image_config``: the
    image tokenizer's own configuration.
    """

    path: Path
    config: Mapping[str, Any]
    weights: Mapping[str, Tensor]
    tokenizer: Any
    variant: str
    image_path: Path
    image_config: Mapping[str, Any]
    image_weights: Mapping[str, Tensor]


@dataclass
class Model:
    """A loaded checkpoint.

    ``device``: where its inputs go; change it with the modules' own. ``config``: the raw
    ``config.json``. ``default_image_size``: side in pixels of a square image; ``downsample``:
    pixels per image code.
    """

    transformer: MaskedDiffusionTransformer
    image_tokenizer: ImageTokenizer
    layout: Layout
    tokenizer: Any
    config: Mapping[str, Any]
    variant: str
    device: torch.device
    default_image_size: int = field(init=False)
    default_text_length: int = field(init=False)

    def __post_init__(self) -> None:
        self.default_image_size = self.config.get("default_image_size", 512)
        self.default_text_length = self.config.get("default_text_length", 256)

    @property
    def downsample(self) -> int:
        return self.image_tokenizer.downsample


def load_checkpoint(
    path: str | Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    operations: Any = TorchOperations,
    attention: Attention = sdpa_attention,
    image_tokenizer_path: str | Path | None = None,
) -> Model:
    """Load a checkpoint folder, or the embedded one by the name ``demo``.

    ``dtype``: of the transformer; ``None`` keeps the stored one. The image tokenizer is always
    float32, as in the reference. ``image_tokenizer_path``: file or folder of the image tokenizer
    where it is not inside or beside the checkpoint (variant M's MAGVIT-v2).

    Raises ``CheckpointError``: one sentence naming what is missing or wrong, and where it goes.
    """
    source = open_checkpoint(path, image_tokenizer_path=image_tokenizer_path)
    model = build_model(source, operations=operations, attention=attention, dtype=dtype)
    load_weights(model, source, device)
    model.device = torch.device(device)
    return model


def open_checkpoint(path: str | Path, *, image_tokenizer_path: str | Path | None = None) -> Source:
    """Find and check a checkpoint's files without reading tensors."""
    folder = DEMO if str(path) == "demo" else Path(path).expanduser()
    if folder.is_file():
        raise CheckpointError(
            f"{folder} is a single file; this version reads folders in the released layout: "
            "give the folder that holds config.json and the weights."
        )
    if not folder.is_dir():
        raise CheckpointError(
            f"No checkpoint folder at {folder}: expected a folder with config.json, "
            "model.safetensors (or its shards and index) and tokenizer files."
        )
    config = read_json(folder / "config.json")
    weights = _transformer_weights(folder)
    variant = detect_variant(config, weights)
    given = None if image_tokenizer_path is None else Path(image_tokenizer_path).expanduser()
    image_file = _image_file(folder, variant, given)
    image_config = _image_config(image_file, variant)
    return Source(
        path=folder,
        config=config,
        weights=weights,
        tokenizer=_read_tokenizer(folder),
        variant=variant,
        image_path=image_file,
        image_config=image_config,
        image_weights=_image_weights(image_file),
    )


def build_model(
    source: Source,
    *,
    operations: Any = TorchOperations,
    attention: Attention = sdpa_attention,
    dtype: torch.dtype | None = None,
) -> Model:
    """The modules of ``source`` on the meta device, without weights: see :func:`load_weights`.

    ``operations``: where layers are taken from (plain torch or a host's own).
    """
    stored = source.weights["model.transformer.ln_f.weight"].dtype
    transformer = MaskedDiffusionTransformer(
        ModelConfig.from_dict(source.config),
        operations=operations,
        attention=attention,
        dtype=dtype or stored,
        device="meta",
    )
    tokenizer_class = {"A": AmusedVQ, "M": MagvitV2}[source.variant]
    image_tokenizer = tokenizer_class(
        source.image_config, operations=operations, dtype=torch.float32, device="meta"
    )
    layout = LAYOUTS[source.variant](source.tokenizer, source.config)
    _check_sizes(layout, transformer, image_tokenizer)
    return Model(
        transformer=transformer.requires_grad_(False).eval(),
        image_tokenizer=image_tokenizer.requires_grad_(False).eval(),
        layout=layout,
        tokenizer=source.tokenizer,
        config=source.config,
        variant=source.variant,
        device=torch.device("meta"),
    )


def load_weights(model: Model, source: Source, device: torch.device | str) -> None:
    """Read the weights of ``source`` into the modules of ``model``, on ``device``."""
    load_module(model.transformer, source.weights, device, str(source.path))
    load_module(model.image_tokenizer, source.image_weights, device, str(source.image_path))


def load_module(
    module: nn.Module, weights: Mapping[str, Tensor], device: torch.device | str, name: str
) -> None:
    """Assign ``weights`` to ``module`` tensor by tensor, so that memory holds them once.

    Floats take the dtype of the parameter they replace. Layers load their own part, so that those
    of a host may read a format of their own. Raises ``CheckpointError`` for tensors that are
    missing, unexpected or of another shape; ``name`` tells where they come from.
    """
    expected = {key: value for key, value in module.state_dict().items()}
    missing = sorted(expected.keys() - set(weights))
    if missing:
        raise CheckpointError(f"{name} lacks {_some(missing)}: it is incomplete or another model.")
    layers = dict(module.named_modules())
    unexpected = []
    for owner, keys in _by_layer(weights, layers).items():
        part = {}
        for key in keys:
            like = expected.get(key)
            part[key[len(owner) :].lstrip(".")] = _fitting(weights[key], like, key, device, name)
        try:
            loaded = layers[owner].load_state_dict(part, strict=False, assign=True)
        except RuntimeError as error:
            raise CheckpointError(f"{name} does not fit: {error}") from None
        unexpected += [f"{owner}.{key}".lstrip(".") for key in loaded.unexpected_keys]
    if unexpected:
        raise CheckpointError(
            f"{name} holds {_some(sorted(unexpected))}, which this model does not have: it is "
            "another model."
        )


def read_json(file: Path) -> dict[str, Any]:
    """The parsed ``file``. Raises ``CheckpointError`` when it is missing or no JSON object."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{file.name} is missing in {file.parent}; put it there.") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} cannot be read ({error}); download it again.") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{file} holds no JSON object; download it again.")
    return content


def _transformer_weights(folder: Path) -> Mapping[str, Tensor]:
    index, single = (folder / name for name in _TRANSFORMER_FILES)
    if index.is_file():
        return SafetensorsFiles.sharded(index)
    if single.is_file():
        return SafetensorsFiles.of(single)
    raise CheckpointError(
        f"No weights in {folder}: expected {single.name}, or {index.name} with its shards."
    )


def _read_tokenizer(folder: Path) -> Any:
    from transformers import PreTrainedTokenizerFast

    if not (folder / "tokenizer.json").is_file():
        raise CheckpointError(
            f"tokenizer.json is missing in {folder}: put the tokenizer files of the checkpoint's "
            "repository there."
        )
    try:
        return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the tokenizers library raises bare exceptions on damaged files
        raise CheckpointError(f"The tokenizer in {folder} cannot be read ({error}).") from None


def _image_file(folder: Path, variant: str, given: Path | None) -> Path:
    """The image tokenizer's weights: where the user says, else inside or beside ``folder``."""
    if given is not None and given.is_file():
        return given
    roots = (folder, folder.parent) if given is None else (given,)
    places = [root / name for root in roots for name in _IMAGE_FOLDERS[variant]]
    places += [] if given is None else [given]
    for file in (place / name for place in places for name in _IMAGE_FILES):
        if file.is_file():
            return file
    if given is not None:
        raise CheckpointError(f"No image tokenizer at {given}: expected one of its weight files.")
    if variant == "A":
        raise CheckpointError(
            f"The image tokenizer is missing: put the vqvae folder of MMaDA-Parallel-A into "
            f"{folder}."
        )
    raise CheckpointError(
        f"The image tokenizer is missing: put the files of showlab/magvitv2 into "
        f"{folder / 'magvitv2'}."
    )


def _image_config(weights: Path, variant: str) -> dict[str, Any]:
    file = weights.parent / "config.json"
    if variant == "M" and (not file.is_file() or (weights.parent / "tokenizer.json").is_file()):
        return {}
    return read_json(file)


def _image_weights(file: Path) -> Mapping[str, Tensor]:
    if file.suffix == ".safetensors":
        return SafetensorsFiles.of(file)
    try:
        weights = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch.load raises many kinds on damaged or unsafe files
        raise CheckpointError(
            f"{file} cannot be read ({type(error).__name__}); download it again."
        ) from None
    if not isinstance(weights, dict) or not all(isinstance(t, Tensor) for t in weights.values()):
        raise CheckpointError(f"{file} holds no tensors by name; use the file of showlab/magvitv2.")
    return weights


def _check_sizes(
    layout: Layout, transformer: MaskedDiffusionTransformer, image_tokenizer: ImageTokenizer
) -> None:
    codes, rows = layout.codebook_size, transformer.config.embedding_size
    if codes > image_tokenizer.codebook_size:
        raise CheckpointError(
            f"The transformer has {codes} image codes, its image tokenizer "
            f"{image_tokenizer.codebook_size}: they do not belong together."
        )
    if layout.image_offset + codes > rows:
        raise CheckpointError(
            f"Image codes {layout.image_offset} to {layout.image_offset + codes - 1} do not fit "
            f"an embedding of {rows} rows: config.json and tokenizer do not belong together."
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
    if tensor.shape != like.shape:
        raise CheckpointError(
            f"{key} in {name} has shape {tuple(tensor.shape)}; the configuration asks for "
            f"{tuple(like.shape)}."
        )
    return tensor.to(device=device, dtype=like.dtype if tensor.is_floating_point() else None)


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more tensors" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
