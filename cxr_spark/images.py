"""Bytes of an image file in, one grey square of uint8 pixels and its facts out, or a reason."""

import dataclasses
import hashlib
import io
import json
import os
import stat
from collections.abc import Mapping
from typing import Any, NamedTuple

from PIL import Image, UnidentifiedImageError

from cxr_spark import decoders, image_arrays

PREPROCESSING_VERSION = 3
"""Goes up whenever the same bytes would give other pixels."""

FITS = ("crop", "pad", "stretch")
MAX_BYTES = 256 * 2**20
MAX_PIXELS = 64 * 2**20
"""Refused from the header, before decoding: no detector or film scanner makes more."""
MIN_SIDE = 32

# Pillow can read far more, some of it by starting other programs; these are what archives hold.
_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP")
_BITS = {"1": 1, "I;16": 16, "I;16B": 16, "I;16L": 16, "I": 32, "F": 32}
_MAX_INT = 2**31 - 1
_APPLE_DOUBLE = b"\x00\x05\x16\x07"
# Little-endian group and element of the meta header's length, and of what a file without a meta
# header begins with: its length, character set, image type, or SOP class; big-endian likewise.
_DICOM_WITHOUT_PREAMBLE = (
    b"\x02\0\0\0UL\x04\0",
    *(b"\x08\0" + element for element in (b"\0\0", b"\x05\0", b"\x08\0", b"\x16\0")),
    *(b"\0\x08" + element for element in (b"\0\0", b"\0\x05", b"\0\x08", b"\0\x16")),
)


class PreprocessingError(ValueError):
    """A preprocessing that this version doesn't know."""


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """How a decoded image becomes the square that models see.

    Attributes:
        size: side of the square in pixels.
        fit: `crop` takes the middle square of the image, `pad` adds black to the shorter side,
            `stretch` changes the aspect ratio. The default is `crop`: it keeps the heart's shape,
            and leaves no border that would tell a model the file's shape, and so its source.
        resampling: `area` averages when shrinking, and interpolates linearly when enlarging.
        window: grey window of images with more than 8 bits; `file` takes a DICOM file's own first
            one, and the whole range where there is none.
        version: of the code that does it.
    """

    size: int = 224
    fit: str = "crop"
    resampling: str = "area"
    window: str = "file"
    version: int = PREPROCESSING_VERSION

    def __post_init__(self) -> None:
        if not 8 <= self.size <= 4096:
            raise PreprocessingError(f"image size {self.size}: expected 8 to 4096 pixels.")
        allowed = {
            "fit": FITS,
            "resampling": ("area",),
            "window": ("file",),
            "version": (PREPROCESSING_VERSION,),
        }
        for name, values in allowed.items():
            if getattr(self, name) not in values:
                raise PreprocessingError(
                    f"preprocessing {name} {getattr(self, name)!r}: this version of cxr_spark "
                    f"knows {', '.join(map(str, values))}."
                )

    def to_json(self) -> dict[str, Any]:
        """Returns the attributes as a dict that JSON can hold."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Preprocessing":
        """Makes a preprocessing of what `to_json` gave.

        Raises:
            PreprocessingError: an attribute is missing, unknown, or has an unknown value.
        """
        names = {field.name for field in dataclasses.fields(cls)}
        if set(values) != names:
            raise PreprocessingError(
                f"preprocessing with {sorted(values)}: expected exactly {sorted(names)}."
            )
        return cls(**values)

    def fingerprint(self) -> str:
        """Returns the SHA-256 of the attributes, hex: what tells one preprocessing from another."""
        canonical = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()


class Facts(NamedTuple):
    """What is known of an image file; None where it isn't.

    Attributes:
        content_sha256: of the file's bytes, hex; None: never read.
        format: container found in the bytes, whatever the suffix: `PNG`, `JPEG`, `DICOM`, ...
        width: of the upright image, in pixels.
        height: of the upright image, in pixels.
        mode: colour mode of the file as Pillow names it: `L`, `RGB`, `I;16`, ...; of a DICOM
            file, its photometric interpretation.
        bits: per sample in the file.
        pixel_sha256: of the upright full-size grey image with its shape, hex: the same image
            wrapped in another lossless format, in RGB or with an alpha channel has the same.
        perceptual_hash: 256 bits, hex; few bits differ between versions of one picture.
        thumbnail: the whole image small, uint8 grey, on which near-duplicates are confirmed.
        patient_id: of a DICOM file, as a salted hash; None without a salt.
        view: `AP` or `PA`, of a DICOM file.
        sex: `F` or `M`, of a DICOM file.
        age_years: full years, of a DICOM file.
        sop_instance_uid, study_instance_uid: of a DICOM file, as archives know it by.
        pixels: uint8 grey square, size x size, row-major.
        reason: why there are no pixels, one of `reasons.FILE_REASONS`; None: there are.
        detail: the reason in words.
    """

    content_sha256: str | None = None
    format: str | None = None
    width: int | None = None
    height: int | None = None
    mode: str | None = None
    bits: int | None = None
    pixel_sha256: str | None = None
    perceptual_hash: str | None = None
    thumbnail: bytes | None = None
    patient_id: str | None = None
    view: str | None = None
    sex: str | None = None
    age_years: int | None = None
    sop_instance_uid: str | None = None
    study_instance_uid: str | None = None
    pixels: bytes | None = None
    reason: str | None = None
    detail: str | None = None


def read_file(path: str) -> tuple[bytes | None, str | None, str | None]:
    """Reads a file that may be gone, no file at all, forbidden, or huge.

    Pipes, devices and folders are never opened.

    Returns:
        The bytes, or None with a reason and its detail.
    """
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            return None, "not_a_file", "a folder, pipe, socket or device"
        if status.st_size > MAX_BYTES:
            return None, "too_large", f"{status.st_size} bytes; at most {MAX_BYTES} are read"
        # Should a pipe have taken the file's place meanwhile, then opening it must not wait.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:
            data = file.read(status.st_size + 1)
            if len(data) > status.st_size:  # it has grown meanwhile
                data += file.read(MAX_BYTES + 1 - len(data))
    except (FileNotFoundError, NotADirectoryError):
        return None, "missing_file", "no such file"
    except (OSError, ValueError) as error:  # ValueError: a path that no file system can hold
        return None, "unreadable", getattr(error, "strerror", None) or str(error)
    if len(data) > MAX_BYTES:
        return None, "too_large", f"more than {MAX_BYTES} bytes"
    return (data, None, None) if data else (None, "empty_file", "no bytes")


def facts_of_file(path: str, preprocessing: Preprocessing, salt: bytes | None = None) -> Facts:
    """Reads and decodes a file; what is wrong with it is a reason, never an exception."""
    data, reason, detail = read_file(path)
    if data is None:
        return Facts(reason=reason, detail=detail)
    return decode(data, preprocessing, salt)


def decode(data: bytes, preprocessing: Preprocessing, salt: bytes | None = None) -> Facts:
    """Decodes an image file's bytes into the grey square and its facts.

    The one path that curation, training, scoring and evaluation share: upright by its EXIF
    orientation; alpha ignored, as the public sources' alpha means nothing; grey taken from colour
    by ITU-R BT.601 weights, from more than 8 bits linearly (see `image_arrays`), from DICOM as its
    tags say (see `dicom`); cut and resized as `preprocessing` says. The content decides on the
    format, and not the name.

    Args:
        data: the file's bytes.
        preprocessing: what to make of the image.
        salt: under which a DICOM file's patient id is hashed; None: no id is kept.

    Returns:
        Facts with pixels, or with a reason. Bad data never raises.
    """
    facts = Facts(content_sha256=hashlib.sha256(data).hexdigest())
    fault = _foreign(data)
    if fault:
        return _rejected(facts, *fault)
    try:
        if _is_dicom(data):
            return _of_dicom(facts, data, preprocessing, salt)
        return _of_image(facts, data, preprocessing)
    except MemoryError:
        return _rejected(facts, "decoder_memory", "not enough memory to decode the image")


def dicom_uids(data: bytes) -> dict[str, Any]:
    """The UIDs of a DICOM file, as fields of Facts, without its pixels; none of another file.

    Args:
        data: bytes that `decode` gives pixels of.
    """
    if not _is_dicom(data):
        return {}
    from cxr_spark import dicom

    tags = dicom.facts(dicom.opened(data), None)
    return {name: tags[name] for name in ("sop_instance_uid", "study_instance_uid")}


def _rejected(facts: Facts, reason: str, detail: str) -> Facts:
    return facts._replace(reason=reason, detail=detail[:500])


def _foreign(data: bytes) -> tuple[str, str] | None:
    """Names what is no image to be opened here at all."""
    if not data:
        return "empty_file", "no bytes"
    if len(data) > MAX_BYTES:
        return "too_large", f"{len(data)} bytes; at most {MAX_BYTES} are read"
    if data.startswith(_APPLE_DOUBLE):
        return "unreadable", "an AppleDouble file: a Mac's notes on the image, not the image"
    return None


def _is_dicom(data: bytes) -> bool:
    """Tells whether a file is DICOM; without a preamble, by how its first tag must begin."""
    return data[128:132] == b"DICM" or data.startswith(_DICOM_WITHOUT_PREAMBLE)


def _of_dicom(facts: Facts, data: bytes, preprocessing: Preprocessing, salt: bytes | None) -> Facts:
    # Imported late, as it takes a third of a second and most archives have no DICOM.
    from cxr_spark import dicom

    facts = facts._replace(format="DICOM")
    try:
        dataset = dicom.opened(data)
        facts = facts._replace(**dicom.facts(dataset, salt))
        facts = _with_size(facts, *dicom.size(dataset))
        if facts.reason is None and dicom.is_multi_frame(dataset):
            return _rejected(facts, "multi_frame", "more than one frame")
        return facts if facts.reason else _with_pixels(facts, dicom.decoded(data), preprocessing)
    except dicom.Refused as error:
        return _rejected(facts, error.reason, error.detail)
    except MemoryError:
        raise
    except Exception as error:  # the one-image boundary; the message may hold a patient's data
        cut = isinstance(error, EOFError)
        return _rejected(facts, "truncated" if cut else "unreadable", type(error).__name__)


def _of_image(facts: Facts, data: bytes, preprocessing: Preprocessing) -> Facts:
    try:
        image = Image.open(io.BytesIO(data), formats=_FORMATS)
        facts = _with_header(facts, image, data)
        if facts.reason:
            return facts
        return _with_pixels(facts, decoders.decoded(image, data), preprocessing)
    except UnidentifiedImageError:
        detail = f"no image format that is read here; the file starts with {data[:8]!r}"
        return _rejected(facts, "unreadable", detail)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        return _rejected(facts, "too_large", str(error))
    except MemoryError:
        raise
    except Exception as error:  # the one-image boundary: decoders raise whatever they like
        cut = isinstance(error, EOFError) or "truncated" in str(error).lower()
        detail = f"{type(error).__name__}: {error}"
        return _rejected(facts, "truncated" if cut else "unreadable", detail)


def _with_header(facts: Facts, image: Image.Image, data: bytes) -> Facts:
    """Adds what the header says, and a reason if that's enough to refuse the image."""
    # A PNG's header has the true depth at its byte 24; Pillow tells it for none but 1 and 16.
    bits = data[24] if image.format == "PNG" else _BITS.get(image.mode, 8)
    facts = facts._replace(format=image.format, mode=image.mode, bits=bits)
    facts = _with_size(facts, *image.size)
    if facts.reason is None and getattr(image, "is_animated", False):
        return _rejected(facts, "multi_frame", "more than one frame or page")
    return facts


def _with_size(facts: Facts, width: int, height: int) -> Facts:
    """Adds the size that a header claims, and a reason if that's enough to refuse the image."""
    # A claim can be larger than the tables' integers are; a radiograph never is.
    facts = facts._replace(
        width=width if width <= _MAX_INT else None, height=height if height <= _MAX_INT else None
    )
    if width * height > MAX_PIXELS:
        detail = f"{width} x {height} pixels; at most {MAX_PIXELS} are decoded"
        return _rejected(facts, "too_large", detail)
    if min(width, height) < MIN_SIDE:
        detail = f"{width} x {height} pixels; a side needs {MIN_SIDE}"
        return _rejected(facts, "too_small", detail)
    return facts


def _with_pixels(facts: Facts, samples: image_arrays.Array, preprocessing: Preprocessing) -> Facts:
    """Adds hashes and pixels of decoded samples, or a reason."""
    if image_arrays.is_colour_photograph(samples):
        detail = "a colour photograph: its colours aren't one tint of grey"
        return _rejected(facts, "not_grayscale", detail)
    grey = image_arrays.as_grey(samples)
    facts = facts._replace(width=grey.shape[1], height=grey.shape[0])
    # Square and overview both begin by halving; its first step, which costs most, is shared.
    smaller = image_arrays.halved(grey, max(2 * preprocessing.size, image_arrays.OVERVIEW_SIDE))
    overview = image_arrays.overview(smaller)
    if image_arrays.is_blank(overview):
        return _rejected(facts, "blank", "all but a few pixels have nearly the same grey")
    return facts._replace(
        pixel_sha256=image_arrays.pixel_sha256(grey),
        perceptual_hash=image_arrays.perceptual_hash(overview),
        thumbnail=image_arrays.thumbnail(overview).tobytes(),
        pixels=image_arrays.square(smaller, preprocessing.size, preprocessing.fit).tobytes(),
    )
