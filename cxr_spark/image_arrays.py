"""A decoded image as an array: 8 bits, grey; what's wrong with it; its hashes, its square.

Arrays are uint8 of shape (height, width), or (height, width, 3) in OpenCV's order blue, green, red.
"""

import hashlib
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

cv2.setNumThreads(1)  # Spark runs a worker on each core; OpenCV's threads would only compete
cv2.setLogLevel(0)  # what OpenCV can't decode becomes a reason, not a line on stderr

Array = NDArray[Any]  # uint8 wherever nothing else is said; OpenCV's type hints say less

OVERVIEW_SIDE = 128
BLANK_RANGE = 8
"""Grey levels between the darkest and brightest thousandth under which an image shows nothing."""
COLOUR_DISTANCE = 20
"""Grey levels off the image's own tint from which a pixel is coloured."""
COLOUR_SHARE = 0.25
"""Share of coloured pixels from which an image is a photograph. The real radiographs measured,
blue-tinted photographs of films among them, have at most 0.08; colour photographs 0.4 to 0.8."""

SQUARE_SIDE, STRIP_WIDTH, STRIP_LENGTH = 12, 4, 26
HASH_FREQUENCIES = np.array(
    [
        (row, column)
        for row in range(STRIP_LENGTH)
        for column in range(STRIP_LENGTH)
        if max(row, column) < SQUARE_SIDE or min(row, column) < STRIP_WIDTH
    ]
)
"""What the bits of the perceptual hash stand for, in their order: 256 pairs of a vertical and a
horizontal frequency, in half waves: a square of low ones, and a strip of higher ones along each
axis."""
THUMBNAIL_SIDE = 64

_SINE = np.sin(np.pi * (np.arange(32, dtype=np.float32) + 0.5) / 32)
_FADED_EDGES = np.outer(_SINE, _SINE)


def to_8_bits(samples: Array) -> Array:
    """Scales 16-bit samples linearly: white is the top of 12, 14 or 16 bits.

    Detectors have 12 or 14 bits, and many tools store these unscaled in 16: the fewest bits that
    hold the brightest sample are taken for the depth. 8 bits stretched to 16 come back exactly.
    """
    if samples.dtype == np.uint8:
        return samples
    brightest = int(samples.max())
    white = next(2**bits - 1 for bits in (12, 14, 16) if brightest < 2**bits)
    return cv2.convertScaleAbs(samples, alpha=255 / white)


def as_grey(samples: Array) -> Array:
    """Returns the luma (ITU-R BT.601) of colours; where red = green = blue, exactly that value."""
    return cv2.cvtColor(samples, cv2.COLOR_BGR2GRAY) if samples.ndim == 3 else samples


def is_colour_photograph(samples: Array) -> bool:
    """Tells whether an image's colours are more than one tint of grey and some annotations.

    A radiograph photographed or scanned with a tint has a colour that depends on its brightness
    alone. So two colour differences are fitted by a parabola in luma, over some 64 x 64 pixels,
    and once more by the 70 % nearest to that, as a note in bright colour may have bent it; a
    photograph is where many pixels are far off both.
    """
    if samples.ndim == 2:
        return False
    height, width = samples.shape[:2]
    some = samples[:: max(1, height // 64), :: max(1, width // 64)].reshape(-1, 3)
    blue, green, red = some.astype(np.float32).T
    differences = np.stack((red - green, (red + green) / 2 - blue), axis=1)
    if np.abs(differences).max() < COLOUR_DISTANCE:
        return False
    luma = (0.114 * blue + 0.587 * green + 0.299 * red).astype(np.float64) / 255
    terms = np.stack((np.ones_like(luma), luma, luma * luma), axis=1)
    near = np.ones(len(luma), bool)
    coloured = 1.0
    for _ in range(2):
        # The normal equations, which three unknowns and float64 bear, are solved in no time.
        fitted = terms[near].T
        tint = np.linalg.lstsq(fitted @ fitted.T, fitted @ differences[near], rcond=None)[0]
        distance = np.hypot(*(differences - terms @ tint).T)
        coloured = min(coloured, float(np.mean(distance > COLOUR_DISTANCE)))
        near = distance <= np.percentile(distance, 70)
    return coloured > COLOUR_SHARE


def overview(grey: Array) -> Array:
    """Returns an image halved to 128 to 255 pixels on its shorter side, or as it is if smaller."""
    return halved(grey, OVERVIEW_SIDE)


def is_blank(overview: Array) -> bool:
    """Tells whether all but a few pixels (0.1 % at each end) lie within `BLANK_RANGE` levels."""
    counts = cv2.calcHist([overview], [0], None, [256], [0, 256]).ravel().cumsum()
    low, high = np.searchsorted(counts, (0.001 * counts[-1], 0.999 * counts[-1]))
    return bool(high - low < BLANK_RANGE)


def pixel_sha256(grey: Array) -> str:
    """Returns the SHA-256 (hex) of an image's shape and pixels."""
    digest = hashlib.sha256(f"{grey.shape[0]}x{grey.shape[1]}:".encode())
    digest.update(grey.data)
    return digest.hexdigest()


def perceptual_hash(overview: Array) -> str:
    """Returns the signs of an image's 256 `waves`, hex; versions of one picture differ in few.

    Source: C. Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions", 2010
    (pHash: which coefficients of an image's cosine transform lie above their median).
    """
    return np.packbits(waves(overview) > 0).tobytes().hex()


def waves(overview: Array) -> Array:
    """Returns how strong the spatial frequencies of `HASH_FREQUENCIES` are in a picture.

    First its levels are made equally frequent, which takes contrast and gamma away; then slow
    shading is removed, as it is alike in all radiographs; then the picture fades towards its
    edges, as that is where crops and marks are.

    Args:
        overview: uint8, shape (height, width).

    Returns:
        float32, shape (256,): coefficients of the cosine transform.
    """
    levels = cv2.resize(cv2.equalizeHist(overview), (32, 32), interpolation=cv2.INTER_AREA)
    levels = levels.astype(np.float32)
    detail = levels - cv2.GaussianBlur(levels, (0, 0), 6)
    return cv2.dct(_FADED_EDGES * detail)[tuple(HASH_FREQUENCIES.T)]


def thumbnail(overview: Array) -> Array:
    """Returns the whole image stretched to `THUMBNAIL_SIDE` pixels square."""
    return cv2.resize(overview, (THUMBNAIL_SIDE, THUMBNAIL_SIDE), interpolation=cv2.INTER_AREA)


def square(grey: Array, size: int, fit: str) -> Array:
    """Returns the image as a square.

    Args:
        grey: shape (height, width).
        size: side of the square in pixels.
        fit: `crop`, `pad` or `stretch`, as `images.Preprocessing` describes them.

    Returns:
        Shape (size, size).
    """
    height, width = grey.shape
    margin = abs(height - width)
    before, after = margin // 2, margin - margin // 2
    tall, wide = height > width, width > height
    if fit == "crop":
        side = min(height, width)
        grey = grey[before : before + side] if tall else grey[:, before : before + side]
    elif fit == "pad":
        grey = np.pad(grey, ((before * wide, after * wide), (before * tall, after * tall)))
    grey = halved(grey, 2 * size)
    if 2 * size <= min(grey.shape) and max(grey.shape) < 4 * size:
        # Linear to twice the side, then means of 2 x 2: as near to the mean of areas, as sharp and
        # as free of moire as area resampling from here, in a third of its time.
        grey = cv2.resize(grey, (2 * size, 2 * size), interpolation=cv2.INTER_LINEAR)
    shrinks = min(grey.shape) >= size
    interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return cv2.resize(grey, (size, size), interpolation=interpolation)


def halved(grey: Array, side: int) -> Array:
    """Takes means of 2 x 2 pixels as long as no side gets shorter than `side`.

    What area resampling comes to afterwards is nearly the same, and takes a tenth of the time.
    """
    while min(grey.shape) >= 2 * side:
        height, width = (length // 2 for length in grey.shape)
        even = grey[: 2 * height, : 2 * width]
        grey = cv2.resize(even, (width, height), interpolation=cv2.INTER_AREA)
    return grey
