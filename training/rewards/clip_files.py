"""CLIPs on disk, as open_clip or transformers keep them. Nothing is downloaded or unpickled."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from ...mmp_core import CheckpointError, InputError
from ...mmp_core.checkpoint.adapters import PEFT_CONFIG
from ...mmp_core.checkpoint.tensors import read_pickled
from ...mmp_core.checkpoint.text_tokenizer import (
    FILE,
    FILE_BYTES,
    check_any_tokenizer,
    check_settings,
    objects_in,
    reading,
)
from ...mmp_core.errors import NotFinite, shortened, shown
from ...mmp_core.files import accessing
from ...mmp_core.memory import is_out_of_memory
from ...mmp_core.outside import check_fields, field, parsed_json, read_text

CONFIG = "open_clip_config.json"
WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
TRANSFORMERS_CONFIG, TRANSFORMERS_WEIGHTS = "config.json", "model.safetensors"

_ROWS = (
    *("vocab_size", "context_length", "max_position_embeddings", "embed_dim", "projection_dim"),
    "attn_pooler_queries",
)
"""Sizes of which a tower has a matrix, by its width."""
_SIZES = {
    **dict.fromkeys(("layers", "num_hidden_layers"), field(int, 1, 1024)),
    **dict.fromkeys(("width", "hidden_size", "intermediate_size"), field(int, 1, 2**17)),
    **dict.fromkeys(("image_size", "patch_size"), field(int, 1, 2**12)),
    **dict.fromkeys(_ROWS, field(int, 1, 2**24)),
    "context_length": field(int, 1, 4096),  # of which open_clip makes a square
    "mlp_ratio": field(float, above=0, high=64),
}
"""Of a tower, in the words of open_clip and of transformers. A ResNet's layers, and the sides of a
picture, may be lists."""
_PROCESSORS = ("preprocessor_config.json", "processor_config.json")
_REASON = 300
"""Characters of what a library says of a checkpoint that it cannot load."""
_SIDE = field(int, 1, 4096)
_SIDES = {
    *("size", "crop_size", "pad_size", "height", "width", "shortest_edge", "longest_edge"),
    *("max_height", "max_width"),
}
"""Of a picture, in the words of transformers: open_clip's are those of the tower."""
_TOKENIZER_SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
_USUAL_WIDTH, _USUAL_PATCH = 512, 16
_ADDED = 3
"""Places left free for the start, end and class tokens that tokenizers add."""


class Towers(ABC):
    """A CLIP: its two towers with what prepares their inputs. ``width``: of their features."""

    model: Any
    width: int

    @abstractmethod
    def texts(self, texts: Sequence[str], device: torch.device | str) -> Tensor:
        """(N, D) normalised."""

    @abstractmethod
    def images(self, images: Iterable[Image.Image], device: torch.device | str) -> Tensor:
        """(N, D) normalised, of RGB pictures, each of which is needed once."""

    @abstractmethod
    def fits(self, text: str) -> bool:
        """Whether all of ``text`` is read."""


class OpenClipTowers(Towers):
    def __init__(self, folder: Path, device: torch.device | str):
        config, weights = _read_open_clip(folder)
        open_clip = _import_open_clip()
        name = f"local-dir:{folder}"
        _check_trunk(folder / CONFIG, config, weights)
        try:
            if weights.suffix == ".bin":  # open_clip itself retries unsafely on a TypeError
                read_pickled(weights)
            model, self._preprocess = open_clip.create_model_from_pretrained(name, device=device)
            # no network, no code of the folder, and no words left out
            options: dict[str, Any] = {"reduction_mask": ""}
            if config["text_cfg"].get("hf_tokenizer_name"):
                options = {"local_files_only": True, "trust_remote_code": False}
            with reading(str(folder)):
                self.tokenizer = open_clip.get_tokenizer(name, **options)
        except Exception as error:
            raise _unreadable(folder, "an open_clip checkpoint", error) from error
        self.model, self.width, self._name = model.train(False), config["embed_dim"], str(folder)

    def texts(self, texts: Sequence[str], device: torch.device | str) -> Tensor:
        with reading(self._name):
            ids = self.tokenizer(list(texts))
        _check_known(ids, self.model, self._name)
        with _using(self._name, "texts"):
            features = self.model.encode_text(ids.to(device), normalize=True)
        return _finite(features, self._name)

    def images(self, images: Iterable[Image.Image], device: torch.device | str) -> Tensor:
        with _using(self._name, "pictures"):
            pixels = torch.stack([self._preprocess(image) for image in images])
            features = self.model.encode_image(pixels.to(device), normalize=True)
        return _finite(features, self._name)

    def fits(self, text: str) -> bool:
        tokenizer = self.tokenizer
        with reading(self._name):
            if hasattr(tokenizer, "encode"):  # open_clip's SimpleTokenizer
                ids = tokenizer.encode(text)
            else:
                ids = tokenizer.tokenizer(
                    tokenizer.clean_fn(text), add_special_tokens=False, verbose=False
                )["input_ids"]
        return len(ids) + _ADDED <= tokenizer.context_length


class TransformersTowers(Towers):
    """A ``CLIPModel``, as PickScore is released."""

    def __init__(self, folder: Path, device: torch.device | str):
        _check_transformers(folder)
        self._name = str(folder)
        try:
            import transformers

            library: Any = transformers
            local: dict[str, Any] = {"local_files_only": True}
            own: dict[str, Any] = {"attn_implementation": "sdpa", "use_safetensors": True}
            model = library.CLIPModel.from_pretrained(folder, **own, **local)
            with reading(self._name):
                self.tokenizer = library.CLIPTokenizerFast.from_pretrained(folder, **local)
            self._processor = library.CLIPImageProcessor.from_pretrained(folder, **local)
            self.width = model.config.projection_dim
            self._context = model.config.text_config.max_position_embeddings
            self.model = model.to(device).train(False)
        except Exception as error:
            raise _unreadable(folder, "a CLIP of transformers", error) from error

    def texts(self, texts: Sequence[str], device: torch.device | str) -> Tensor:
        with reading(self._name):
            ids = self.tokenizer(
                list(texts),
                padding=True,
                truncation=True,
                max_length=self._context,
                return_tensors="pt",
            ).to(device)
        _check_known(ids["input_ids"], self.model, self._name)
        with _using(self._name, "texts"):
            features = self.model.get_text_features(
                input_ids=ids["input_ids"], attention_mask=ids["attention_mask"]
            )
        return _finite(F.normalize(_features(features), dim=-1), self._name)

    def images(self, images: Iterable[Image.Image], device: torch.device | str) -> Tensor:
        with _using(self._name, "pictures"):
            pixels = torch.cat([self._pixels(image) for image in images])
            features = self.model.get_image_features(
                pixel_values=pixels.to(device, next(self.model.parameters()).dtype)
            )
        return _finite(F.normalize(_features(features), dim=-1), self._name)

    def _pixels(self, image: Image.Image) -> Tensor:
        return self._processor(images=[image], return_tensors="pt")["pixel_values"]

    def fits(self, text: str) -> bool:
        with reading(self._name):
            ids = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return len(ids) + _ADDED <= self._context


def _features(output: Any) -> Tensor:
    """What transformers 4 gives as a tensor and 5 within an output."""
    return output if isinstance(output, Tensor) else output.pooler_output


def _check_known(ids: Tensor, model: nn.Module, name: str) -> None:
    """Raises ``CheckpointError`` for words beyond the model's, which would end a GPU's process."""
    words = max(m.num_embeddings for m in model.modules() if isinstance(m, nn.Embedding))
    if ids.numel() and int(ids.max()) >= words:
        raise CheckpointError(
            f"The tokenizer of the CLIP {name} has words that its model lacks: put all files of "
            "the checkpoint there again."
        )


@contextmanager
def _using(name: str, what: str) -> Iterator[None]:
    """Turn what pictures or texts raise that are not as the model needs them into one sentence."""
    try:
        yield
    except (RuntimeError, ValueError, TypeError, LookupError, AttributeError) as error:
        if is_out_of_memory(error):
            raise
        raise CheckpointError(
            f"The CLIP {name} cannot read {what} as its settings say ({shortened(str(error))}): "
            "put all files of the checkpoint there again."
        ) from error


def _finite(features: Tensor, name: str) -> Tensor:
    """``features``. Raises ``NotFinite`` where they are not numbers."""
    if not features.isfinite().all():
        raise NotFinite(
            f"The CLIP {name} gives values that are not finite numbers: put its weights there "
            "again."
        )
    return features


@accessing(CheckpointError)
def read_towers(folder: Path, device: torch.device | str) -> Towers:
    """Raises ``CheckpointError`` for a folder that is not complete in itself, ``InputError`` where
    open_clip is needed and not installed."""
    return (TransformersTowers if _of_transformers(folder) else OpenClipTowers)(folder, device)


@accessing(CheckpointError)
def check_clip(folder: Path) -> None:
    """Raises ``CheckpointError`` where ``folder`` lacks config or weights, without loading them."""
    if _of_transformers(folder):
        _check_transformers(folder)
    else:
        _read_open_clip(folder)


def _read_open_clip(folder: Path) -> tuple[dict[str, Any], Path]:
    config, weights = _read_config(folder), _find_weights(folder)
    _check_words(folder)
    _check_sizes(folder / CONFIG, config, weights)
    return config, weights


def _check_pictures(folder: Path) -> None:
    """Raises ``CheckpointError`` where settings ask for larger pictures than towers see."""
    for file in (folder / name for name in _PROCESSORS):
        if file.is_file():
            for settings in objects_in(parsed_json(read_text(file), str(file))):
                for side in _SIDES & settings.keys():
                    values = settings[side]
                    for value in values if isinstance(values, list) else [values]:
                        if not isinstance(value, dict):
                            check_fields({side: value}, {side: _SIDE}, str(file))


def _check_trunk(path: Path, config: Mapping[str, Any], weights: Path) -> None:
    """Raises ``CheckpointError`` for a tower that timm knows by a name alone and that ``weights``
    cannot hold a byte each of, before it is built."""
    if not (name := config["vision_cfg"].get("timm_model_name")):
        return
    try:
        import timm

        with torch.device("meta"):
            trunk = timm.create_model(name, pretrained=False, num_classes=0)
    except Exception as error:
        raise _unreadable(path.parent, "an open_clip checkpoint", error) from error
    values, stored = sum(each.numel() for each in trunk.parameters()), weights.stat().st_size
    if values > stored:
        raise CheckpointError(
            f"{path} has the tower {shown(name)} of {values} values, which the {stored} bytes of "
            f"{weights.name} cannot hold: put the files of one checkpoint there."
        )


def _check_sizes(path: Path, config: Mapping[str, Any], weights: Path) -> None:
    """Raises ``CheckpointError`` where ``config``, which is in the file ``path``, has sizes of
    which ``weights`` cannot hold even a byte each, before anything of these sizes is built."""
    stored = weights.stat().st_size
    towers = [value for value in config.values() if isinstance(value, Mapping)]
    for tower in ({**config, **tower} for tower in towers or [{}]):
        sizes = dict.fromkeys(_SIZES, 0)
        for name in _SIZES.keys() & tower.keys():
            values = tower[name] if isinstance(tower[name], list) else [tower[name]]
            for value in values:
                check_fields({name: value}, _SIZES, str(path))
            sizes[name] = sum(value for value in values if value is not None)
        width = sizes["width"] or sizes["hidden_size"] or _USUAL_WIDTH
        layers = sizes["layers"] or sizes["num_hidden_layers"] or 1
        inner = max(width, width * sizes["mlp_ratio"], sizes["intermediate_size"])
        patches = (sizes["image_size"] / (sizes["patch_size"] or _USUAL_PATCH)) ** 2
        if width * max(layers * inner, patches, *(sizes[name] for name in _ROWS)) > stored:
            raise CheckpointError(
                f"{path} has a tower of {layers} layers of width {width}, which the {stored} bytes "
                f"of {weights.name} cannot hold: put the files of one checkpoint there."
            )


def _of_transformers(folder: Path) -> bool:
    return (folder / TRANSFORMERS_CONFIG).is_file() and not (folder / CONFIG).is_file()


def is_clip(folder: Path) -> bool:
    """Whether ``folder`` looks like a CLIP in either format."""
    try:
        if (folder / CONFIG).is_file():
            return True
        _check_transformers(folder)
    except (CheckpointError, OSError):
        return False
    return True


def _unreadable(folder: Path, what: str, error: Exception) -> CheckpointError:
    reason = shortened(str(error) or type(error).__name__, _REASON)
    return CheckpointError(
        f"{folder} cannot be loaded as {what} ({reason}): put all files of the checkpoint there "
        "again, tokenizer files included."
    )


def _check_transformers(folder: Path) -> None:
    path = folder / TRANSFORMERS_CONFIG
    try:
        config = parsed_json(read_text(path), str(path))
        kind = config.get("model_type") if isinstance(config, dict) else None
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing: put it there again.") from None
    if kind != "clip":
        raise CheckpointError(
            f"{path} is of {kind!r}, not of a CLIP: give the folder of a CLIP in the format of "
            "open_clip or of transformers."
        )
    if not (folder / TRANSFORMERS_WEIGHTS).is_file():
        raise CheckpointError(
            f"{folder} has no weights: put {TRANSFORMERS_WEIGHTS} of the same checkpoint there."
        )
    _open_once(folder / TRANSFORMERS_WEIGHTS)
    if not any((folder / name).is_file() for name in _PROCESSORS):  # the library would ask the web
        raise CheckpointError(
            f"{folder} has no {_PROCESSORS[0]}: put that of the same checkpoint there."
        )
    if (folder / PEFT_CONFIG).exists():  # transformers would load the model that it names
        raise CheckpointError(
            f"{folder} has {PEFT_CONFIG} beside a CLIP: put the CLIP into a folder of its own."
        )
    _check_words(folder)
    _check_pictures(folder)
    _check_sizes(path, config, folder / TRANSFORMERS_WEIGHTS)


def _check_words(folder: Path) -> None:
    """Raises ``CheckpointError`` for a tokenizer that would not end on some text."""
    if (file := folder / FILE).is_file():
        check_any_tokenizer(read_text(file, FILE_BYTES), str(file))
    for file in (folder / name for name in _TOKENIZER_SETTINGS):
        if file.is_file():
            check_settings(read_text(file, FILE_BYTES), str(file))


def _read_config(folder: Path) -> dict[str, Any]:
    """The ``model_cfg`` of a checkpoint that needs nothing from outside its folder."""
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise CheckpointError(f"{folder} {what}: give the folder of a CLIP checkpoint.")
    path = folder / CONFIG
    if not path.is_file():
        raise CheckpointError(
            f"{CONFIG} is missing in {folder}: give the folder of a CLIP checkpoint in open_clip's "
            f"format, with its config and {' or '.join(WEIGHTS)}, or in that of transformers."
        )
    content = parsed_json(read_text(path), str(path))
    try:
        config = content["model_cfg"]
        text, vision, _ = config["text_cfg"], config["vision_cfg"], config["embed_dim"]
        elsewhere = text.get("hf_model_name") or ":" in str(vision.get("timm_model_name"))
        elsewhere = elsewhere or vision.get("timm_model_pretrained")
        elsewhere = elsewhere or (text.get("tokenizer_kwargs") or {}).get("bpe_path")
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path} cannot be read as a config of open_clip ({error!r}): put the checkpoint's own "
            "file there."
        ) from error
    if elsewhere:
        raise CheckpointError(
            f"{path} names a text or vision tower to be downloaded: choose a CLIP whose config "
            "describes both."
        )
    return config


def _find_weights(folder: Path) -> Path:
    for name in WEIGHTS:
        if (folder / name).is_file():
            return _open_once(folder / name)
    raise CheckpointError(
        f"{folder} has no weights: put {' or '.join(WEIGHTS)} of the same checkpoint there."
    )


def _open_once(weights: Path) -> Path:
    """``weights``, which can be read. Libraries say of others that they do not exist."""
    with accessing(CheckpointError), weights.open("rb"):
        return weights


def _import_open_clip() -> Any:
    try:
        import open_clip
    except ImportError as error:
        raise InputError(
            f"CLIP scores need open_clip, which cannot be imported ({error}): run "
            f'"{sys.executable}" -m pip install open_clip_torch, then start again.'
        ) from error
    return open_clip
