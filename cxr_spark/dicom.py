"""A DICOM file as 8-bit pixels, and of its tags the few that are kept: never a name or a date.

Names of attributes and of what is done to the pixels are those of DICOM PS3.3, sections C.7.6.3
(image pixel), C.11.1 (modality LUT) and C.11.2 (VOI LUT).

Readable transfer syntaxes: the three uncompressed ones and RLE by pydicom itself; JPEG Baseline,
8-bit Extended and Lossless, JPEG-LS and JPEG 2000 by its GDCM plug-in. Not readable are 12-bit JPEG
Extended, high-throughput JPEG 2000, video, and Deflated, as pydicom inflates that without a bound.
"""

import re
import warnings

# Before GDCM, which brings a zlib of its own: where it is the first to need the system's too, that
# one's calls to itself end up in GDCM's, and whoever compresses next, as OpenCV a PNG, crashes.
import zlib  # noqa: F401
from io import BytesIO
from typing import Any, NamedTuple

import gdcm  # noqa: F401  pydicom does without if it isn't there, and leaves files unread
import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom import uid
from pydicom.dataset import FileDataset
from pydicom.multival import MultiValue
from pydicom.pixels import apply_color_lut, get_decoder, pixel_array
from pydicom.pixels.utils import get_expected_length

from cxr_spark.pseudonyms import pseudonym_if_known
from cxr_spark.sources_nih import age_in_years

# Pydicom's warnings repeat the values that they are about.
pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE

Array = NDArray[Any]

_GREY = ("MONOCHROME1", "MONOCHROME2")
_COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT", "PALETTE COLOR")
_ONE_SAMPLE = (*_GREY, "PALETTE COLOR")
_FLOATS = ("FloatPixelData", "DoubleFloatPixelData")
_UID = re.compile(r"[0-9.]{1,64}")
# The group that names the transfer syntax comes first and is short.
_META_BYTES = 4096


class Refused(ValueError):
    """A file that can't be used.

    Attributes:
        reason: one of `reasons.FILE_REASONS`.
        detail: the reason in words that hold no value of a patient's tags.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


class _Window(NamedTuple):
    center: float
    width: float
    function: str


def opened(data: bytes) -> FileDataset:
    """Parses a file's tags up to its pixels, with or without its preamble and meta header.

    Raises:
        Refused: the tags are deflated.
        Exception: whatever pydicom raises on a damaged file; its message may hold patient data.
    """
    deflated = uid.DeflatedExplicitVRLittleEndian
    if deflated.encode() in data[:_META_BYTES]:
        raise Refused("unreadable", f"transfer syntax {deflated.name}, which isn't read here")
    return _parsed(data, stop_before_pixels=True)


def _parsed(data: bytes, stop_before_pixels: bool) -> FileDataset:
    with warnings.catch_warnings(action="ignore"):
        dataset = pydicom.dcmread(BytesIO(data), stop_before_pixels=stop_before_pixels, force=True)
    if not dataset:  # pydicom lets go of what it had when a file ends within a tag
        raise Refused("truncated", "the file ends within its tags or its pixels")
    if "TransferSyntaxUID" not in dataset.file_meta:
        implicit, little = dataset.original_encoding
        explicit = uid.ExplicitVRLittleEndian if little else uid.ExplicitVRBigEndian
        dataset.file_meta.TransferSyntaxUID = uid.ImplicitVRLittleEndian if implicit else explicit
    return dataset


def facts(dataset: FileDataset, salt: bytes | None) -> dict[str, Any]:
    """Returns what is kept of the tags, as fields of `images.Facts`.

    Args:
        dataset: the opened file.
        salt: under which the patient's id is hashed; None: no id is kept.
    """
    mode, bits = dataset.get("PhotometricInterpretation"), dataset.get("BitsStored")
    patient_id = str(dataset.get("PatientID") or "")
    view, sex = dataset.get("ViewPosition"), dataset.get("PatientSex")
    return {
        "mode": mode if mode in _GREY + _COLOUR else None,
        "bits": bits if bits in range(1, 65) else None,
        "patient_id": pseudonym_if_known(patient_id, salt) if salt else None,
        "view": view if view in ("AP", "PA") else None,
        "sex": sex if sex in ("F", "M") else None,
        "age_years": age_in_years(str(dataset.get("PatientAge") or "")),
        "sop_instance_uid": _uid(dataset, "SOPInstanceUID"),
        "study_instance_uid": _uid(dataset, "StudyInstanceUID"),
    }


def _uid(dataset: FileDataset, name: str) -> str | None:
    """A tag's identifier; None where it has another form, and could say anything."""
    value = str(dataset.get(name) or "")
    return value if _UID.fullmatch(value) else None


def size(dataset: FileDataset) -> tuple[int, int]:
    """Returns the width and height that the tags claim.

    Raises:
        Refused: they claim none.
    """
    width, height = dataset.get("Columns"), dataset.get("Rows")
    if not (isinstance(width, int) and isinstance(height, int) and width > 0 and height > 0):
        raise Refused("unreadable", "a DICOM file without Rows and Columns is no image")
    return width, height


def is_multi_frame(dataset: FileDataset) -> bool:
    """Tells whether the tags claim more than one frame."""
    return int(dataset.get("NumberOfFrames") or 1) > 1


def decoded(data: bytes) -> Array:
    """Decodes the pixels of a file of a size that was found acceptable.

    Returns:
        uint8, shape (height, width), with black at 0 whatever the photometric interpretation, or
        (height, width, 3) in blue, green, red.

    Raises:
        Refused: there are no pixels, more than one frame, or pixels that can't be read.
        Exception: as of `opened`.
    """
    dataset = _parsed(data, stop_before_pixels=False)
    _check(dataset)
    try:
        with warnings.catch_warnings(action="ignore"):
            samples = pixel_array(dataset, index=0)
    except (MemoryError, EOFError):
        raise
    except Exception as error:  # of a plug-in; its message may repeat what is in the tags
        name = dataset.file_meta.TransferSyntaxUID.name
        detail = f"pixels in {name} can't be decoded: {type(error).__name__}"
        raise Refused("unreadable", detail) from None
    if dataset.PhotometricInterpretation in _GREY:
        return _grey(dataset, samples)
    return _blue_green_red(dataset, samples)


def _check(dataset: FileDataset) -> None:
    """Refuses what its tags alone show to be unusable."""
    fault = _fault(dataset)
    if fault:
        raise Refused("unreadable", fault)
    compressed = dataset.file_meta.TransferSyntaxUID.is_compressed
    if not compressed and len(dataset.PixelData) < get_expected_length(dataset):
        raise Refused("truncated", "less pixel data than Rows and Columns say")


def _fault(dataset: FileDataset) -> str | None:
    """Names what of the tags can't be read here."""
    bits, syntax = dataset.get("BitsStored"), dataset.file_meta.TransferSyntaxUID
    interpretation = dataset.get("PhotometricInterpretation")
    if any(name in dataset for name in _FLOATS):
        return "float pixel data"
    if "PixelData" not in dataset:
        return "no pixel data"
    if interpretation not in _GREY + _COLOUR:
        return "no photometric interpretation that is known here"
    if dataset.get("SamplesPerPixel") != (1 if interpretation in _ONE_SAMPLE else 3):
        return "SamplesPerPixel doesn't fit the photometric interpretation"
    if bits not in range(1, 17):
        return "BitsStored isn't from 1 to 16"
    if dataset.get("HighBit", bits - 1) != bits - 1:
        return "the bits stored aren't the lowest"
    if not _is_readable(syntax):
        name = syntax.name if syntax.is_transfer_syntax else "unknown"
        return f"transfer syntax {name}, which isn't read here"
    return None


def _is_readable(syntax: uid.UID) -> bool:
    try:
        return get_decoder(syntax).is_available
    except NotImplementedError:
        return False


def _grey(dataset: FileDataset, stored: Array) -> Array:
    """Turns stored values into grey levels, by a table that holds one for each possible value."""
    bits, signed = dataset.BitsStored, dataset.get("PixelRepresentation", 0) == 1
    lowest = -(1 << bits - 1) if signed else 0
    possible = np.arange(lowest, lowest + (1 << bits))
    is_padding = _is_padding(dataset, possible)
    index = stored.astype(np.int32) - lowest
    # Unsigned values are a detector's, whose range is that of its bits; signed ones seldom reach
    # far into theirs, so the range is that of the pixels.
    ranged = ~is_padding
    if signed:
        ranged &= np.bincount(index.clip(0, len(possible) - 1).ravel(), minlength=len(possible)) > 0
    shades = _shades(dataset, possible, ranged)
    table = np.rint(255 * shades).astype(np.uint8)
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        table = 255 - table
    table[is_padding] = 0  # what lies outside the picture is black in either interpretation
    return table.take(index, mode="clip")


def _is_padding(dataset: FileDataset, possible: Array) -> Array:
    """Tells of each possible stored value whether it stands for no pixel."""
    value = dataset.get("PixelPaddingValue")
    if not isinstance(value, int):
        return np.zeros(possible.shape, bool)
    limit = dataset.get("PixelPaddingRangeLimit", value)
    low, high = sorted((value, limit if isinstance(limit, int) else value))
    return (possible >= low) & (possible <= high)


def _shades(dataset: FileDataset, stored: Array, ranged: Array) -> Array:
    """Returns the brightness, 0 to 1, of each stored value.

    By the file's first VOI LUT, else by its first window, else linearly over the whole range: a
    file without either asks for no other (PS3.3 C.11.2.1.2: the transformation is an identity).

    Args:
        dataset: the opened file.
        stored: every possible stored value, rising.
        ranged: of each, whether it counts for the range of a file that has no window.
    """
    values = _modality_values(dataset, stored)
    if dataset.get("VOILUTSequence"):
        shades, depth = _looked_up(dataset, dataset.VOILUTSequence[0], values)
        return np.clip(shades / (2**depth - 1), 0, 1)
    window = _window(dataset)
    if window is not None:
        return _windowed(values, window)
    if not ranged.any():
        return np.zeros(values.shape)
    darkest, brightest = values[ranged].min(), values[ranged].max()
    return np.clip((values - darkest) / max(brightest - darkest, 1e-9), 0, 1)


def _modality_values(dataset: FileDataset, stored: Array) -> Array:
    if dataset.get("ModalityLUTSequence"):
        return _looked_up(dataset, dataset.ModalityLUTSequence[0], stored)[0]
    slope, intercept = dataset.get("RescaleSlope", 1), dataset.get("RescaleIntercept", 0)
    with np.errstate(all="ignore"):
        values = stored * float(1 if slope is None else slope) + float(intercept or 0)
    if not np.isfinite(values).all():
        raise Refused("unreadable", "a rescale that isn't finite")
    return values


def _looked_up(dataset: FileDataset, item: Any, values: Array) -> tuple[Array, int]:
    """Maps values by a LUT; returns what they map to, and the bits that this has."""
    entries, first, depth = item.LUTDescriptor
    lut = item.LUTData
    if isinstance(lut, bytes):
        little = dataset.original_encoding[1]
        packed = len(lut) <= (entries or 2**16) + 1
        lut = np.frombuffer(lut, np.uint8 if packed else "<u2" if little else ">u2")
    lut = np.atleast_1d(lut)[: entries or 2**16]
    index = np.rint(values).astype(np.int64) - first
    return lut.take(index, mode="clip").astype(np.float64), depth


def _window(dataset: FileDataset) -> _Window | None:
    """Returns the file's first window; None where it has none, or one that the standard forbids."""
    pair = []
    for name in ("WindowCenter", "WindowWidth"):
        value = dataset.get(name)
        first = value[0] if isinstance(value, MultiValue) and value else value
        pair.append(float(first) if isinstance(first, (int, float)) else float("nan"))
    center, width = pair
    function = str(dataset.get("VOILUTFunction") or "LINEAR")
    valid = width >= 1 if function == "LINEAR" else width > 0
    return _Window(center, width, function) if valid and np.isfinite(pair).all() else None


def _windowed(values: Array, window: _Window) -> Array:
    """Applies the three VOI LUT functions of PS3.3 C.11.2.1.2 and C.11.2.1.3."""
    center, width, function = window
    if function == "SIGMOID":
        return 1 / (1 + np.exp(np.clip(-4 * (values - center) / width, -700, 700)))
    if function == "LINEAR":
        center, width = center - 0.5, width - 1
    return np.clip((values - center) / max(width, 1e-9) + 0.5, 0, 1)


def _blue_green_red(dataset: FileDataset, samples: Array) -> Array:
    depth = dataset.BitsStored
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        samples = apply_color_lut(samples, dataset)
        depth = 8 * samples.itemsize
    if depth > 8:
        samples = samples >> depth - 8
    return np.ascontiguousarray(samples[:, :, 2::-1].astype(np.uint8))
