"""Released checkpoints from Hugging Face: whole folders, or converted one shard at a time.

Files are checked by the digests that the hub states. What a killed or broken download has got is
gone on from: ``huggingface_hub`` itself begins such a file anew.
"""

from __future__ import annotations

import errno
import hashlib
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch
from torch import Tensor

from ..errors import CheckpointError, InputError
from ..files import checked_path, readable_size, writing
from ..variants.base import Variant
from ..variants.registry import variant_named
from .convert import check_quantize, write_packed
from .partial import Partial
from .places import IMAGE_FILES, TRANSFORMER_FILES
from .source import TOKENIZER_FILES, open_folder
from .tensors import DTYPES, Outline, SafetensorsFiles, read_json

Advance = Callable[[str, int, int], Any]
"""Called with what is being done, and bytes of it that are done and in all."""

_INDEX, _SINGLE = TRANSFORMER_FILES
_PAPERS = re.compile(r"(README|LICEN[CS]E|NOTICE)[\w.-]*", re.IGNORECASE)
_AGAIN = "run the same command again, and it goes on from here"
_TRIES, _PAUSE = 5, 2.0
"""How often a transfer is begun again without any progress, and seconds between that, growing."""
_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES)


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repository. ``digest``: sha256 of a large file, git's sha1 of a small one."""

    name: str
    size: int
    digest: str

    def matches(self, path: Path) -> bool:
        """Whether ``path`` holds this file."""
        if path.stat().st_size != self.size:
            return False
        digest = hashlib.sha256()
        if len(self.digest) == 40:
            digest = hashlib.sha1(b"blob %d\0" % self.size, usedforsecurity=False)
        with path.open("rb") as stream:
            while block := stream.read(2**20):
                digest.update(block)
        return digest.hexdigest() == self.digest


@dataclass(frozen=True)
class Repository:
    """What the hub says of a repository at one commit. ``licence``: as its card states it."""

    id: str
    commit: str
    licence: str
    files: Mapping[str, RemoteFile]
    api: Any

    @classmethod
    def of(cls, name: str, endpoint: str | None = None) -> Repository:
        """Raises ``InputError`` where the hub does not answer or refuses."""
        from huggingface_hub import HfApi

        api = HfApi(endpoint=endpoint, library_name="mmada-parallel")
        with _explained(f"{name} at {api.endpoint}"):
            info = api.model_info(name, files_metadata=True)
        files = {
            each.rfilename: RemoteFile(
                each.rfilename,
                each.lfs.size if each.lfs else each.size or 0,
                each.lfs.sha256 if each.lfs else each.blob_id or "",
            )
            for each in info.siblings or ()
        }
        said = [tag.partition(":")[2] for tag in info.tags or () if tag.startswith("license:")]
        licence = (info.card_data or {}).get("license") or "".join(said[:1])
        return cls(name, info.sha or "main", str(licence or "not stated"), files, api)

    def fetch(self, name: str, target: Path, advance: Advance | None = None) -> None:
        """Have the file ``name`` at ``target``, whole and checked. Raises ``InputError``."""
        file = self.files[name]
        if target.is_file():
            if file.matches(target):
                return
            raise InputError(
                f"{target} is not the file that {self.id} has now: move it away, or give another "
                "folder with --into."
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f".{target.name}.{file.digest[:12]}.part")
        for stale in target.parent.glob(f".{target.name}.*.part"):  # of another commit
            if stale != part:
                stale.unlink()
        for _ in range(2):
            self._complete(file, part, advance)
            if file.matches(part):
                part.replace(target)
                return
            part.unlink()
        raise InputError(f"{name} of {self.id} arrived damaged, twice: try again later.")

    def _complete(self, file: RemoteFile, part: Path, advance: Advance | None) -> None:
        from huggingface_hub import hf_hub_url
        from huggingface_hub.file_download import http_get
        from huggingface_hub.utils import build_hf_headers, disable_progress_bars

        disable_progress_bars()
        url = hf_hub_url(self.id, file.name, revision=self.commit, endpoint=self.api.endpoint)
        headers = build_hf_headers(library_name="mmada-parallel")
        headers["Accept-Encoding"] = "identity"  # else a part cannot be gone on from
        fruitless = 0
        part.touch()
        while (there := part.stat().st_size) < file.size:
            need_room(part, file.size - there)
            try:
                with part.open("ab") as stream, _explained(f"{file.name} of {self.id}"):
                    counted = cast(BinaryIO, _Counted(stream, there, file, advance))
                    http_get(
                        url, counted, resume_size=there, headers=headers, expected_size=file.size
                    )
            except Interrupted:
                fruitless = fruitless + 1 if part.stat().st_size == there else 0
                if fruitless == _TRIES:
                    raise
                time.sleep(fruitless * _PAUSE)


class Interrupted(InputError):
    """A transfer that broke off."""


class _Counted:
    """The file that ``http_get`` writes to, which says how much there is."""

    def __init__(self, stream: BinaryIO, there: int, file: RemoteFile, advance: Advance | None):
        self._stream, self._there, self._file, self._advance = stream, there, file, advance

    def write(self, data: bytes) -> int:
        self._there += len(data)
        if self._advance is not None:
            self._advance(self._file.name, min(self._there, self._file.size), self._file.size)
        return self._stream.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """Turn what a transfer raises into one sentence."""
    from huggingface_hub.utils import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    trouble: Any = (OSError, *HfHubHTTPError.__bases__)
    try:
        yield
    except (GatedRepoError, RepositoryNotFoundError):
        raise InputError(
            f"{what} is not there, or not for everyone: log in with `hf auth login` if it asks for "
            "that on its page."
        ) from None
    except trouble as error:
        if isinstance(error, OSError) and error.errno in _OF_THE_DISK:
            raise InputError(
                f"{what} cannot be written ({error.strerror}): make room; {_AGAIN}."
            ) from None
        status = getattr(getattr(error, "response", None), "status_code", None)
        said = " ".join(str(error).split())[:200]
        if status is not None and 400 <= status < 500 and status not in (408, 429):
            raise InputError(f"{what} was refused ({said}).") from None
        raise Interrupted(f"{what} could not be downloaded ({said}): {_AGAIN}.") from None


def need_room(place: Path, needed: int) -> None:
    """Raise ``InputError`` where the disk of ``place`` has less than ``needed`` bytes free."""
    folder = next(path for path in place.absolute().parents if path.exists())
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise InputError(
            f"{readable_size(needed)} more are needed, but {folder} has {readable_size(free)}: "
            f"make room, or give another folder with --into; {_AGAIN}."
        )


class RemoteShards(SafetensorsFiles):
    """Tensors of shards that are fetched to ``folder`` when they are read, one at a time: the one
    before is deleted then."""

    def __init__(
        self, repository: Repository, shards: Sequence[str], folder: Path, advance: Advance | None
    ):
        self._repository, self._folder, self._advance = repository, folder, advance
        self._outlines: dict[str, Outline] = {}
        where = {}
        for shard in sorted(shards):
            with _explained(f"{shard} of {repository.id}"):
                held = repository.api.parse_safetensors_file_metadata(
                    repository.id, shard, revision=repository.commit
                )
            for name, tensor in held.tensors.items():
                if tensor.dtype not in DTYPES:
                    raise CheckpointError(f"{shard} holds {name} as {tensor.dtype}: unknown.")
                self._outlines[name] = Outline(DTYPES[tensor.dtype], tuple(tensor.shape))
                where[name] = folder / shard
        super().__init__(where)

    def outline(self, name: str) -> Outline:
        return self._outlines[name]

    def blocks(self, name: str) -> Iterator[Tensor]:
        shard = self._where[name]
        if not shard.is_file():
            for other in self.files:
                other.unlink(missing_ok=True)
            self._repository.fetch(shard.name, shard, self._advance)
        return super().blocks(name)

    @property
    def room(self) -> int:
        """Bytes of disk that the largest shard takes beside what there is of any."""
        largest = max(self._repository.files[shard.name].size for shard in self.files)
        return max(0, largest - sum(_arrived(shard) for shard in self.files))

    def __getitem__(self, name: str) -> Tensor:
        return torch.cat(list(self.blocks(name)))


def download(
    family: str | Variant,
    into: str | Path,
    *,
    quantize: str | None = None,
    endpoint: str | None = None,
    note: Callable[[str], Any] = lambda text: None,
    advance: Advance | None = None,
) -> Path:
    """Download the released checkpoint of ``family`` below the folder ``into``; its path.

    ``quantize``: as for :func:`.convert.convert`: the result is then one file, made shard by shard,
    each of which is deleted once converted; by default it is the folder as released. ``endpoint``:
    of the hub, by default that of ``HF_ENDPOINT``. ``note``: called with what is downloaded and its
    licence, before that. Raises ``InputError`` and ``CheckpointError``; what has arrived stays for
    another call to go on from.
    """
    variant, into = variant_named(family), checked_path(into, "--into")
    if quantize is not None:
        check_quantize(quantize)
    if variant.repository is None:
        raise InputError(f"No repository of {variant.name} is known.")
    out = into / (f"{variant.name}-{quantize}.safetensors" if quantize else variant.name)
    if out.is_file():
        note(f"{out} already exists")
        return out
    main = Repository.of(variant.repository, endpoint)
    pictures = main
    if variant.image_repository is not None:
        pictures = Repository.of(variant.image_repository, endpoint)
    parts = _Parts(variant, main, pictures, advance)
    for part in {main.id: main, pictures.id: pictures}.values():
        note(f"{part.id} at commit {part.commit[:10]}, licence: {part.licence}")
    with writing(out):
        return _converted(parts, out, quantize) if quantize else _folder(parts, out)


@dataclass(frozen=True)
class _Parts:
    """The files of a checkpoint. ``pictures``: the repository of its image tokenizer."""

    variant: Variant
    main: Repository
    pictures: Repository
    advance: Advance | None

    def small(self) -> dict[str, str]:
        """Texts of the checkpoint, but config.json, which goes last: place in the folder, name."""
        wanted = (*TOKENIZER_FILES, _INDEX)
        names = [name for name in self.main.files if name in wanted or _PAPERS.fullmatch(name)]
        return {name: name for name in names}

    def image_tokenizer(self) -> dict[str, str]:
        """As :meth:`small`. Raises ``InputError``."""
        folders, files = self.variant.image_folders, self.pictures.files
        places = {f"{folder}/": folder for folder in folders}
        if self.pictures is not self.main:
            places = {"": folders[0]}
        for prefix, folder in places.items():
            if held := [name for name in IMAGE_FILES if prefix + name in files]:
                names = [held[0], *(n for n in ("config.json", "README.md") if prefix + n in files)]
                return {f"{folder}/{name}": prefix + name for name in names}
        raise InputError(f"{self.pictures.id} holds no image tokenizer any more.")

    def shards(self, folder: Path) -> list[str]:
        """Names of the weights; the index, where there is one, is in ``folder``."""
        if _SINGLE in self.main.files:
            return [_SINGLE]
        weight_map = read_json(folder / _INDEX).get("weight_map")
        names = sorted(set(weight_map.values())) if isinstance(weight_map, dict) else []
        if not names or not set(names) <= self.main.files.keys():
            raise InputError(f"{self.main.id} holds no whole set of .safetensors weights any more.")
        return names

    def fetch(self, repository: Repository, places: Mapping[str, str], folder: Path) -> None:
        for place, name in places.items():
            repository.fetch(name, folder / place, self.advance)


def _folder(parts: _Parts, folder: Path) -> Path:
    """The checkpoint as released. It has its config.json, and is offered by that, when whole."""
    main = parts.main
    _check_there(main, ["config.json", "tokenizer.json"])
    parts.fetch(main, parts.small(), folder)
    weights, images = parts.shards(folder), parts.image_tokenizer()
    sizes = {folder / name: main.files[name].size for name in weights}
    sizes |= {folder / place: parts.pictures.files[name].size for place, name in images.items()}
    need_room(folder, sum(size - _arrived(place) for place, size in sizes.items()))
    parts.fetch(parts.pictures, images, folder)
    parts.fetch(main, {name: name for name in (*weights, "config.json")}, folder)
    return folder


def _check_there(repository: Repository, names: Sequence[str]) -> None:
    if missing := [name for name in names if name not in repository.files]:
        raise InputError(f"{repository.id} has no {missing[0]} any more.")


def _arrived(place: Path) -> int:
    """Bytes of a file that are there, be it whole or not."""
    parts = [place, *place.parent.glob(f".{place.name}.*.part")]
    return sum(part.stat().st_size for part in parts if part.is_file())


def _converted_bytes(weights: RemoteShards, name: str) -> int:
    outline = weights.outline(name)
    quantised = ".blocks." in name and len(outline.shape) == 2
    return outline.bytes // (outline.dtype.itemsize if quantised else 1)


def _converted(parts: _Parts, out: Path, quantize: str) -> Path:
    """The checkpoint in one file, by way of a folder that is deleted in the end."""
    main, pictures = parts.main, parts.pictures
    _check_there(main, ["config.json", "tokenizer.json"])
    work = out.with_name(f".{out.name}.{main.commit[:10]}.download")
    for stale in out.parent.glob(f".{out.name}.*.download"):  # of another commit
        if stale != work:
            shutil.rmtree(stale)
    parts.fetch(main, {**parts.small(), "config.json": "config.json"}, work)
    weights = RemoteShards(main, parts.shards(work), work, parts.advance)
    images = parts.image_tokenizer()
    done = Partial(out).done
    rest = sum(_converted_bytes(weights, name) for name in weights if name not in done)
    there_twice = 2 * sum(pictures.files[name].size for name in images.values())
    need_room(work, rest + weights.room + there_twice)
    parts.fetch(pictures, images, work)
    source = replace(
        open_folder(work, None, parts.variant, weights),
        licences={part.id: part.licence for part in (main, pictures)},
        origin={
            "source": main.id,
            "commit": main.commit,
            "image_tokenizer": f"{pictures.id} {pictures.commit}",
        },
        room=weights.room,
    )
    advance = parts.advance
    progress = None if advance is None else partial(advance, "converting")
    write_packed(source, out, quantize, progress=progress, keep=True)
    shutil.rmtree(work)
    return out
