"""Pictures on disk: the one reader, and the writer, which goes by the ending of the name."""

from __future__ import annotations

import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias, cast

import numpy as np
from PIL import ExifTags, Image, PngImagePlugin, UnidentifiedImageError

from ..errors import InputError, sentence, shortened
from ..files import existing_file, readable_size, replacing, writable_file, writing
from ..interruption import ask
from ..outside import plain_tensor
from .modes import SAVE_AS_PNG, SMALL, eight_bit, kept, no_memory, painted, rgb, stripped

if TYPE_CHECKING:
    from torch import Tensor

_log = logging.getLogger(__name__)
Picture: TypeAlias = "Image.Image | str | os.PathLike | np.ndarray | Tensor"
"""A path, a PIL image, or pixels, see :func:`image_of`."""
MOST_PIXELS = 178_000_000
"""Larger pictures are refused before they are decoded: they are bombs, or need memory that a
picture of a model's size is not worth."""
_MOST_OF = {"JPEG2000": 40_000_000, "WEBP": 60_000_000, "AVIF": 90_000_000}
"""The same of formats that take 11 to 19 bytes for each pixel, a gigabyte then, however few bytes
the file has."""
READ = ("PNG", "JPEG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "JPEG2000", "TGA")
"""Formats that are read. Others that Pillow knows run other programs (EPS, WMF), or are decoded by
Python pixel by pixel."""
FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
"""What is written, by the ending of the name."""
QUALITY = 95
"""Of JPEG and WebP by default, of 1 … 100."""

_PROFILES = {b"RGB ": ("RGB", "RGBA"), b"GRAY": ("L", "LA", "I;16")}
_PROFILE_BYTES = {"PNG": PngImagePlugin.MAX_TEXT_CHUNK, "JPEG": 255 * 65_519}
"""More are not read again, or are more than there are markers for."""
_LONGEST_SIDE = {"JPEG": 65_500, "WEBP": 16_383}
_NOTES_BYTES = 60_000
"""Of EXIF, of which JPEG holds 64 KB."""
_PIECES, _PIXELS_A_PIECE = 20_000, 64
"""How often a file may be read from before its size is known, and then once more for so many
pixels."""
_SCANS, _SCAN = 200, b"\xff\xda"
"""Of a JPEG, each of which goes through all pixels: progressive ones have a dozen."""
_RUN_LENGTHS = (1, 2)
"""Compressions of BMP that Python decodes, and that may skip far beyond the picture."""
_TILE_WIDTH, _TILE_LENGTH, _TILE_OFFSETS = 322, 323, 324
_PARTS = (273, _TILE_OFFSETS)
"""Tags of TIFF; where its strips or tiles are."""
_COUNTED_AT_ONCE, _LEVELS_AT_ONCE = 2**20, 2**20
_MOST_PADDING = 4
"""How many times the pixels of a picture, or of a small one, its tiles may have."""


def load_image(source: Picture | BinaryIO) -> Image.Image:
    """The picture as upright 8-bit RGB.

    Transparency is laid on white, EXIF rotation applied, 16-bit, 32-bit and float greyscale scaled
    to 8 bit. Of an animated file the first frame is taken, of a PIL image the current one; the PIL
    image is not changed.

    Raises ``InputError`` naming the file: missing, damaged, not a picture, or too large a one.
    """
    with _decoded(source) as (image, name):
        return stripped(rgb(image, name))


def load_mask(source: Picture | BinaryIO) -> Image.Image:
    """What is white where painted, upright, of mode L. As :func:`load_image`, but with
    transparency laid on black: what is not there is not painted."""
    with _decoded(source) as (image, name):
        return stripped(painted(image, name))


def read_original(source: Picture | BinaryIO) -> Image.Image:
    """The upright picture with all that Pillow can give of it: mode L, LA, RGB, RGBA, or I;16 for
    16-bit greyscale (Pillow reads other 16-bit pictures with 8 bits); in ``info`` only
    ``icc_profile``, where it belongs to pixels of that mode. Other modes become RGB as by
    :func:`load_image`. Raises ``InputError`` as it does."""
    with _decoded(source) as (image, name):
        profile = image.info.get("icc_profile")
        whole = stripped(kept(image, name))
    if _fitting(profile, whole) is not None:
        whole.info["icc_profile"] = profile
    return whole


def _fitting(profile: Any, image: Image.Image) -> bytes | None:
    """``profile`` where it is a colour profile of pixels of this mode."""
    fits = isinstance(profile, bytes) and image.mode in _PROFILES.get(profile[16:20], ())
    return profile if fits else None


def image_of(pixels: np.ndarray | Tensor) -> Image.Image:
    """Pixels (H, W), (H, W, C) or, of a batch of one, (1, H, W) and (1, H, W, C), C 1 … 4, as a PIL
    image: uint8, bool, uint16, or floats in 0 … 1. Raises ``InputError`` for others, and for more
    than :data:`MOST_PIXELS`."""
    pixels = _plain(pixels)
    shape = tuple(pixels.shape)
    batched = shape[:1] == (1,) and (len(shape) == 4 or (len(shape) == 3 and shape[-1] > 4))
    one, channels = shape[1:] if batched else shape, shape[-1] if shape else 0
    if 0 in one or not (len(one) == 2 or (len(one) == 3 and channels in (1, 2, 3, 4))):
        raise InputError(
            f"Pixels of shape {shape}: expected one picture, (height, width, channels)."
        )
    if one[0] * one[1] > MOST_PIXELS:
        raise InputError(f"{_too_large('the image given')} It is {one[1]}x{one[0]}.")
    levels = levels_of(pixels).reshape(one[:2] if channels == 1 or len(one) == 2 else one)
    if levels.dtype == np.uint16 and levels.ndim == 2:
        return Image.fromarray(np.ascontiguousarray(levels))
    eight = np.empty(levels.shape, np.uint8)
    rows = max(1, _LEVELS_AT_ONCE * len(eight) // eight.size)
    for top in range(0, len(eight), rows):
        ask()
        eight[top : top + rows] = _eight_bit(levels[top : top + rows])
    return Image.fromarray(eight)


def _eight_bit(levels: np.ndarray) -> np.ndarray:
    if levels.dtype.kind == "f":
        return (np.nan_to_num(levels).clip(0, 1) * 255).round()
    if levels.dtype == np.uint16:
        return (levels / 257).round()
    return levels * np.uint8(255) if levels.dtype == bool else levels


def _plain(pixels: np.ndarray | Tensor) -> np.ndarray | Tensor:
    if isinstance(pixels, np.ndarray):
        return pixels
    plain = plain_tensor(pixels)
    if plain is None:
        raise InputError("The pixels are a tensor that is sparse or has no values: give others.")
    return plain


def levels_of(pixels: np.ndarray | Tensor) -> np.ndarray:
    """The same values as an array of a dtype that pictures have. Raises ``InputError``."""
    pixels = _plain(pixels)
    if not isinstance(pixels, np.ndarray):
        pixels = (pixels.float() if pixels.is_floating_point() else pixels).cpu().numpy()
    pixels = np.asarray(pixels)  # not a matrix
    floating = pixels.dtype.kind == "f"
    if not floating and pixels.dtype not in (np.uint8, np.uint16, bool):
        raise InputError(f"Pixels are {pixels.dtype}: give uint8, uint16, or floats in 0 … 1.")
    if floating and pixels.size and np.nanmax(pixels) > 2:
        raise InputError(
            f"Pixels go up to {np.nanmax(pixels):g}: floats are to be in 0 … 1; divide them, or "
            "give uint8."
        )
    return pixels


class _Counted:
    """A file from which Pillow, which goes through most formats piece by piece, reads so often at
    most: one of nothing but pieces would hold it up for ever. ``scans``: that a JPEG may have. It
    asks at each piece whether to go on."""

    def __init__(self, stream: BinaryIO):
        self._stream, self.left = stream, _PIECES
        self.scans: int | None = None

    def read(self, size: int = -1) -> bytes:
        return self._counted(self._stream.read(size))

    def readline(self, size: int = -1) -> bytes:
        return self._counted(self._stream.readline(size))

    def _counted(self, content: bytes) -> bytes:
        ask()
        self.left -= 1
        if self.scans is not None:
            self.scans -= content.count(_SCAN)
        if min(self.left, self.scans or 0) < 0:
            raise OSError("it consists of too many pieces")
        return content

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def opened_picture(source: Path | BinaryIO, name: str) -> Iterator[Image.Image]:
    """An identified picture, which the block decodes. Raises ``InputError``, whatever Pillow
    raises in the block: the file is no picture, damaged, or too large."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd tags, which are not used; sizes, checked below
            with ExitStack() as files:
                if isinstance(source, Path):
                    source = files.enter_context(source.open("rb"))
                counted = _Counted(source)
                image = files.enter_context(Image.open(cast(BinaryIO, counted), formats=_known()))
                counted.left += image.width * image.height // _PIXELS_A_PIECE
                counted.scans = _SCANS if image.format in ("JPEG", "MPO") else None
                _check_size(image, name)
                if image.format == "BMP" and image.info.get("compression") in _RUN_LENGTHS:
                    raise InputError(f"{name} is a BMP of run lengths. {SAVE_AS_PNG}")
                if image.format == "TIFF":
                    _check_tiles(image, name)
                    _check_scans(image, source, name)
                yield image
    except InputError:
        raise
    except Image.DecompressionBombError:
        raise InputError(_too_large(name)) from None
    except MemoryError:  # or a line that is too long for Pillow
        raise InputError(no_memory(name)) from None
    except UnidentifiedImageError:
        raise InputError(
            f"{name} is not a picture of a format that is read ({', '.join(READ)}): replace it."
        ) from None
    except Exception as error:  # Pillow's decoders raise anything on damaged data
        if isinstance(error, OSError) and error.errno:
            reason = os.strerror(error.errno)
            raise InputError(f"{name} cannot be read ({reason}).") from None
        raise InputError(
            f"{name} cannot be read as a picture ({shortened(str(error))}); it is damaged or of an "
            f"unknown format. {SAVE_AS_PNG}"
        ) from error


@contextmanager
def _decoded(source: Picture | BinaryIO) -> Iterator[tuple[Image.Image, str]]:
    if isinstance(source, np.ndarray) or hasattr(source, "is_floating_point"):
        try:
            source = image_of(cast("np.ndarray", source))
        except MemoryError:
            raise InputError(no_memory("the image given")) from None
    if isinstance(source, Image.Image):
        _check_size(source, "the image given")
        try:
            source.load()
        except MemoryError:
            raise InputError(no_memory("the image given")) from None
        except Exception as error:
            reason = shortened(str(error))
            raise InputError(f"the image given cannot be read ({reason}): open it anew.") from None
        yield source, "the image given"
        return
    name = "the picture"
    if isinstance(source, str | os.PathLike):
        source = existing_file(source, "image", "give the path of a picture")
        name = f"image {shortened(str(source))}"
    with opened_picture(cast("Path | BinaryIO", source), name) as opened:
        opened.load()
        yield opened, name


def _check_size(image: Image.Image, name: str) -> None:
    if not image.width or not image.height:
        raise InputError(f"{name} is {image.width}x{image.height}; expected at least one pixel.")
    most = _MOST_OF.get(image.format or "", MOST_PIXELS)
    if image.width * image.height > most:
        raise InputError(f"{_too_large(name, most)} It is {image.width}x{image.height}.")


def _check_tiles(image: Image.Image, name: str) -> None:
    """A TIFF of tiles decodes each as a whole, however little of it is in the picture."""
    tags = getattr(image, "tag_v2", {})
    width, height = (tags.get(tag) for tag in (_TILE_WIDTH, _TILE_LENGTH))
    if width is None or height is None:
        return
    tiles = max(1, len(_listed(tags.get(_TILE_OFFSETS))))
    if tiles * width * height > _MOST_PADDING * max(image.width * image.height, SMALL):
        raise InputError(f"{name} is a TIFF of far larger tiles than it has pixels. {SAVE_AS_PNG}")


def _check_scans(image: Image.Image, stream: BinaryIO, name: str) -> None:
    """Its library reads a TIFF's JPEGs, past :class:`_Counted`: one scan each is usual."""
    if image.info.get("compression") not in ("jpeg", "tiff_jpeg"):
        return
    tags = getattr(image, "tag_v2", {})
    left = _SCANS + len({at for tag in _PARTS for at in _listed(tags.get(tag))})
    place, before = stream.tell(), b""
    stream.seek(0)
    while left >= 0 and (content := stream.read(_COUNTED_AT_ONCE)):
        left -= (before + content).count(_SCAN)
        before = content[-1:]
    stream.seek(place)
    if left < 0:
        raise InputError(f"{name} is a TIFF of JPEGs of too many scans. {SAVE_AS_PNG}")


def _listed(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else () if value is None else (value,)


def _too_large(name: str, most: int = MOST_PIXELS) -> str:
    return sentence(f"{name} has more than {most // 10**6} million pixels: make it smaller.")


def _known() -> list[str]:
    """Of :data:`READ`, what this Pillow has."""
    Image.init()
    return [form for form in READ if form in Image.OPEN]


def writable_picture(path: Any, what: str, quality: int | None = None) -> Path:
    """Check, before the work, the name of a picture to be written: :func:`.files.writable_file`
    with an ending of :data:`FORMATS`. Raises ``InputError``."""
    file = writable_file(path, what, tuple(FORMATS))
    if quality is not None and FORMATS[file.suffix.lower()] == "PNG":
        raise InputError(f"{what} {file} is PNG, which loses nothing: a quality is for JPEG, WebP.")
    return file


def write_picture(
    path: Path,
    image: Image.Image,
    *,
    quality: int | None = None,
    notes: Mapping[str, str] | None = None,
    tell: Callable[[], object] | None = None,
) -> None:
    """Write ``image`` to ``path``, whole or not at all, in the format of its ending.

    ``image``: L, LA, RGB, RGBA or I;16, as :func:`read_original` gives them; the colour profile in
    ``image.info`` goes along. PNG keeps all of them. JPEG has 8 bits and no transparency, which is
    laid on white; WebP 8 bits. ``quality``: 1 … 100, of JPEG and WebP, by default 95. ``notes``:
    provenance, in PNG as its text, in the others as one JSON object in EXIF's ImageDescription,
    with long texts shortened where they do not fit. ``tell``: called with each part of a PNG that
    is written; may raise.

    Raises ``InputError`` where it cannot be written.
    """
    form = FORMATS[path.suffix.lower()]
    longest = _LONGEST_SIDE.get(form)
    if longest and max(image.size) > longest:
        raise InputError(
            f"{path} would be {image.width}x{image.height}: {form} has sides of at most {longest} "
            "pixels; write a PNG."
        )
    if form != "PNG":
        image = _for_lossy(image, form)
    options: dict[str, Any] = {"quality": quality or QUALITY}
    if form == "PNG":
        options = {"pnginfo": _png_notes(notes or {})}
    elif notes:
        options["exif"] = _exif_notes(notes)
    options["icc_profile"] = _profile_for(form, image)
    if form == "JPEG":
        options["subsampling"] = 0
    with writing(path), replacing(path) as file, file.open("wb") as stream:
        image.save(
            cast("BinaryIO", _Told(stream, tell)) if tell else stream, format=form, **options
        )


def _profile_for(form: str, image: Image.Image) -> bytes | None:
    """The colour profile of ``image``, where it is of its mode and the format can hold it."""
    profile = _fitting(image.info.get("icc_profile"), image)
    if profile is not None and len(profile) > _PROFILE_BYTES.get(form, len(profile)):
        _log.warning(
            "MMaDA-Parallel: left out a colour profile of %s, too large for %s; WebP keeps it.",
            *(readable_size(len(profile)), form),
        )
        return None
    return profile


class _Told:
    """``stream``, which tells of each part that is written: of a PNG 64 KB."""

    def __init__(self, stream: BinaryIO, tell: Callable[[], object]):
        self._stream, self._tell = stream, tell

    def write(self, content: bytes) -> int:
        self._tell()
        return self._stream.write(content)

    def flush(self) -> None:
        self._stream.flush()


def _for_lossy(image: Image.Image, form: str) -> Image.Image:
    profile = image.info.get("icc_profile")
    if image.mode == "I;16":
        image = eight_bit(image)
    if form == "JPEG" and image.has_transparency_data:
        grey, image = image.mode == "LA", rgb(image, "the picture")
        image = image.convert("L") if grey else image
    image = image.copy()
    image.info = {} if profile is None else {"icc_profile": profile}
    return image


def _png_notes(notes: Mapping[str, str]) -> PngImagePlugin.PngInfo:
    info = PngImagePlugin.PngInfo()
    for key, value in notes.items():
        info.add_text(key, value)
    return info


def _exif_notes(notes: Mapping[str, str]) -> Image.Exif:
    limit = _NOTES_BYTES
    while len(text := json.dumps({k: _cut(v, limit) for k, v in notes.items()})) > _NOTES_BYTES:
        limit //= 2
    exif = Image.Exif()
    exif[ExifTags.Base.ImageDescription] = text
    exif[ExifTags.Base.Software] = "mmada-parallel"
    return exif


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[:limit]}…"
