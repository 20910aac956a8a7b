"""What pixels of any mode become: upright, of 8 bits, on a ground."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
from PIL import ExifTags, Image, ImageCms

from ..errors import InputError, sentence, shortened
from ..interruption import ask

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""How a picture is turned upright, by the values of EXIF's orientation that there are."""
SAVE_AS_PNG = "Open it in an image editor and save it as PNG."
WHITE, BLACK = (255, 255, 255, 255), (0, 0, 0, 255)
SMALL = 2**22
"""Pixels of a picture that is converted in one piece."""


def orientation_of(image: Image.Image) -> int:
    """EXIF's orientation, 1 … 8; 1 where it says none, or one that does not exist."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            value = image.getexif().get(ExifTags.Base.Orientation)
            return value if value in _TURNS else 1
    except Exception:  # damaged EXIF raises anything; the pixels are as good as without it
        return 1


def upright(image: Image.Image) -> Image.Image:
    """Turned as EXIF says; the image itself where that is so already."""
    turn = _TURNS.get(orientation_of(image))
    return image if turn is None else image.transpose(turn)


def stripped(image: Image.Image) -> Image.Image:
    """Forget what the file said beside pixels, the orientation above all, which was applied."""
    image.info = {}
    return image


def rgb(image: Image.Image, name: str, ground: tuple[int, int, int, int] = WHITE) -> Image.Image:
    """Upright 8-bit RGB, transparency laid on ``ground``. ``name`` is for the message. Raises
    ``InputError`` where the mode cannot be converted."""
    with _converting(image, name):
        turned = upright(image)
        if turned.mode in ("I", "F") or turned.mode.startswith("I;16"):
            return eight_bit(turned).convert("RGB")
        if turned.mode == "LAB":
            profiles = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
            converted = ImageCms.profileToProfile(turned, *profiles, outputMode="RGB")
            return converted or turned.convert("RGB")
        if turned.mode == "La":
            turned = turned.convert("LA")
        return _by_strips(turned, "RGB", lambda strip: _on_ground(strip, ground))


def painted(image: Image.Image, name: str) -> Image.Image:
    """Upright mode L, transparency laid on black. Otherwise as :func:`rgb`."""
    with _converting(image, name):
        turned = upright(image)
        if image.mode == "L" and not image.has_transparency_data:
            return turned.copy()
        if turned.mode in ("I", "F", "LAB", "La") or turned.mode.startswith("I;16"):
            return rgb(image, name, BLACK).convert("L")
        return _by_strips(turned, "L", lambda strip: _on_ground(strip, BLACK).convert("L"))


def kept(image: Image.Image, name: str) -> Image.Image:
    """Upright with 8 bits and its transparency, or 16 bits of grey: L, LA, RGB, RGBA or I;16.
    Otherwise as :func:`rgb`."""
    with _converting(image, name):
        turned = upright(image)
        if turned.mode.startswith("I;16"):
            return Image.fromarray(np.asarray(turned).astype(np.uint16))
        transparent = turned.has_transparency_data
        if turned.mode in ("1", "L", "LA", "La"):
            return turned.convert("LA" if transparent else "L")
        if turned.mode in ("RGB", "RGBA", "RGBX", "RGBa", "P", "PA"):
            return turned.convert("RGBA" if transparent else "RGB")
        return rgb(image, name)


def eight_bit(image: Image.Image) -> Image.Image:
    """Deep greyscale as 8 bits. White is 65535 for I;16 and I, for F it is 1 where no value is
    larger and else 255; values beyond 0 … white are stretched from their own minimum and maximum,
    which leave out what is infinite. A transparent grey level becomes white."""
    deep, low, high = np.asarray(image), 0.0, 65535.0
    strips = _parts(deep)

    def values(strip: np.ndarray) -> np.ndarray:
        ask()
        return np.nan_to_num(strip.astype(np.float64), posinf=np.inf, neginf=-np.inf)

    finite = (own[np.isfinite(own)] for own in map(values, strips))
    ends = [(float(own.min()), float(own.max())) for own in finite if own.size] or [(0.0, 0.0)]
    least, most = min(low for low, _ in ends), max(high for _, high in ends)
    if image.mode == "F":
        high = 1.0 if most <= 1.0 else 255.0
    if least < low or most > high:
        low, high = least, most
    grey, transparent = np.empty(deep.shape, np.uint8), image.info.get("transparency")
    for strip, part in zip(strips, _parts(grey), strict=True):
        own = values(strip)
        scaled = (own - low) / max(high - low, np.finfo(float).tiny) * 255
        part[:] = np.round(scaled).clip(0, 255)
        if isinstance(transparent, int):
            part[own == transparent] = 255
    return Image.fromarray(grey)


def no_memory(name: str) -> str:
    return sentence(f"{name} takes more memory than there is: make it smaller.")


@contextmanager
def _converting(image: Image.Image, name: str) -> Iterator[None]:
    try:
        yield
    except MemoryError:
        raise InputError(no_memory(name)) from None
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"{name} (mode {image.mode}) cannot be converted to RGB ({shortened(str(error))}). "
            f"{SAVE_AS_PNG}"
        ) from error


def _on_ground(image: Image.Image, ground: tuple[int, int, int, int]) -> Image.Image:
    if image.has_transparency_data:
        colours = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", colours.size, ground), colours)
    return image.convert("RGB")


def _by_strips(
    image: Image.Image, mode: str, convert: Callable[[Image.Image], Image.Image]
) -> Image.Image:
    """``convert(image)``, of ``mode``, of a large one strip by strip: what lies between would take
    several times its memory. Strips of a wide one are parts of its rows. Asks before each whether
    to go on."""
    if image.width * image.height <= SMALL:
        return convert(image)
    columns = min(image.width, SMALL)
    whole, rows = Image.new(mode, image.size), SMALL // columns
    for top in range(0, image.height, rows):
        for left in range(0, image.width, columns):
            right, bottom = min(image.width, left + columns), min(image.height, top + rows)
            box = (left, top, right, bottom)
            ask()
            whole.paste(convert(image.crop(box)), box)
    return whole


def _parts(values: np.ndarray) -> list[np.ndarray]:
    """Views of a contiguous array, one part after the other."""
    flat = values.reshape(-1)
    return [flat[start : start + SMALL] for start in range(0, flat.size, SMALL)]
