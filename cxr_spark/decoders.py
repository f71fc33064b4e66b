"""An image opened by Pillow, as an upright array, by the fastest decoder that does it well."""

import struct
from collections.abc import Callable

import cv2
import kornia_rs.io
import numpy as np
import simplejpeg
from PIL import Image

from cxr_spark.image_arrays import Array, to_8_bits

_GREY_OF_8_BITS = b"\x08\x00"  # bit depth and colour type in a PNG's header
_OPENCV_FORMATS = ("PNG", "JPEG")
_GREY_MODES = ("1", "L", "LA", "I;16")
_COLOUR_MODES = ("P", "RGB", "RGBA")
_WIDE_MODES = ("I;16", "I;16B", "I;16L", "I")
_ORIENTATION_TAG = 0x0112
_UPRIGHT: dict[int, Callable[[Array], Array]] = {
    2: lambda array: array[:, ::-1],
    3: lambda array: array[::-1, ::-1],
    4: lambda array: array[::-1],
    5: lambda array: array.swapaxes(0, 1),
    6: lambda array: np.rot90(array, -1),
    7: lambda array: array[::-1, ::-1].swapaxes(0, 1),
    8: lambda array: np.rot90(array),
}


class UnknownGreyRange(ValueError):
    """The samples have no defined black and white."""


def decoded(image: Image.Image, data: bytes) -> Array:
    """Decodes an image that Pillow has opened.

    The fastest that decodes a file well does: simplejpeg JPEG files and kornia-rs grey PNG files
    without any flaw, OpenCV most others, Pillow all else. All but Pillow refuse files that end
    early, so its word on those is the one that counts. On what they share all have the same pixels.

    Args:
        image: the opened, unloaded image: its header.
        data: the file's bytes.

    Returns:
        Upright pixels, grey or in three colours, without alpha.

    Raises:
        UnknownGreyRange: float or 32-bit samples.
        Exception: whatever Pillow raises on a damaged file.
    """
    upright = _UPRIGHT.get(_orientation(image))
    for decode in (_by_simplejpeg, _by_kornia, _by_opencv):
        samples = decode(image, data)
        if samples is not None:
            break
    samples = to_8_bits(_by_pillow(image) if samples is None else samples)
    return np.ascontiguousarray(upright(samples)) if upright else samples


def _by_simplejpeg(image: Image.Image, data: bytes) -> Array | None:
    if image.format != "JPEG" or image.mode not in ("L", "RGB"):
        return None
    colourspace = "GRAY" if image.mode == "L" else "BGR"
    try:
        samples = simplejpeg.decode_jpeg(data, colourspace)
    except ValueError:
        return None
    return _of_the_headers_size(samples[:, :, 0] if image.mode == "L" else samples, image)


def _by_kornia(image: Image.Image, data: bytes) -> Array | None:
    if image.format != "PNG" or data[24:26] != _GREY_OF_8_BITS:
        return None
    try:
        return kornia_rs.io.decode_image_png_u8(data, (image.height, image.width), "mono")[:, :, 0]
    except MemoryError:
        raise
    except Exception:  # it has no class of its own for what it can't decode
        return None


def _of_the_headers_size(samples: Array, image: Image.Image) -> Array | None:
    """Lets pass what has the size that was checked: on damaged headers decoders may disagree."""
    return samples if samples.shape[:2] == (image.height, image.width) else None


def _by_opencv(image: Image.Image, data: bytes) -> Array | None:
    if image.format not in _OPENCV_FORMATS:
        return None
    if image.mode in _GREY_MODES:
        colour = cv2.IMREAD_GRAYSCALE
    elif image.mode in _COLOUR_MODES:
        colour = cv2.IMREAD_COLOR
    else:
        return None
    if image.format == "PNG" and not _png_chunks_fit(data):
        return None
    flags = colour | cv2.IMREAD_ANYDEPTH | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        samples = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:
        return None
    return None if samples is None else _of_the_headers_size(samples, image)


def _png_chunks_fit(data: bytes) -> bool:
    """Tells whether all chunks lie within the data: OpenCV takes the memory that a chunk claims."""
    at, kind = 8, b""
    while kind != b"IEND" and at + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        at += 12 + length
    return kind == b"IEND" and at <= len(data)


def _orientation(image: Image.Image) -> int:
    """Returns the EXIF orientation; 1, upright, where the header has none that can be read.

    TIFF has none here, as Pillow turns it when it loads; and a PNG's behind the pixels, which no
    camera writes, is left alone, as Pillow would decode the image to find it.
    """
    if "exif" not in image.info:
        return 1
    try:
        return image.getexif().get(_ORIENTATION_TAG, 1)
    except (SyntaxError, struct.error):  # Pillow's, on a block that is no EXIF, or ends early
        return 1


def _by_pillow(image: Image.Image) -> Array:
    image.load()
    if image.mode == "F":
        raise UnknownGreyRange("float samples have no known black and white")
    if image.mode in _WIDE_MODES:
        samples = np.asarray(image)
        if samples.min() < 0 or samples.max() > 0xFFFF:
            raise UnknownGreyRange("samples of more than 16 bits have no known black and white")
        return samples.astype(np.uint16)
    if image.mode in ("1", "L", "LA"):
        return np.asarray(image.convert("L"))
    return np.ascontiguousarray(np.asarray(image.convert("RGB"))[:, :, ::-1])
