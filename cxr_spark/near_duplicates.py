"""Near-duplicates: contents with one picture, re-encoded, resized, cropped, windowed or marked.

Radiographs all look alike, so a pair passes three sieves. Candidates agree in one of 36 draws
of 28 bits of their perceptual hashes; their whole hashes differ in few bits; their thumbnails, laid
over each other as well as a small crop allows, agree in their detail. What these sieves let
through was measured with `benchmarks/near_duplicates.py`.
"""

from functools import reduce

import cv2
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from cxr_spark import image_arrays

MAX_DISTANCE = 52
"""Of 256 bits. Among 174 real radiographs two differ in 56 at the least, in 119 at the median;
re-encoded or resized copies in 2 at the median, and those cut by 4 % at one side in 39."""
MIN_SIMILARITY = 0.85
"""Of the thumbnails. Among 174 real radiographs two different ones have at most 0.78."""

BAND_BITS = 28
BANDS_A_POOL = 12
FEW_HASHES = 20_000
"""New hashes up to which their bands, 50 MB, go to all executors; the others aren't shuffled."""
WORDS = ("word_0", "word_1", "word_2", "word_3")

_MARGIN = 6
"""Pixels of a thumbnail's border that may have no counterpart in the other picture."""
_SCALES = (1 / 1.04, 1.0, 1.04)


def near_pairs(contents: DataFrame, new: DataFrame | None = None) -> DataFrame:
    """Finds the pairs of contents that show the same picture.

    New contents meet all others, but old ones don't meet each other again. Of all pairs of
    different radiographs 0.015 % agree in a band; these are compared by hash where they meet, and
    the few that are left by picture.

    Args:
        contents: has content_sha256 (unique), perceptual_hash (hex of 256 bits, or null: left out)
            and, wherever there is a hash, thumbnail (bytes of `image_arrays.thumbnail`).
        new: has content_sha256 of those contents that haven't been compared yet; None: all.

    Returns:
        content_sha256 < other_sha256, hash_distance (int, bits) and similarity (double, at most
        1): each pair found once, at least one of the two new.
    """
    # Both are read several times below.
    hashed = _hashed(contents, new).localCheckpoint()
    candidates = _candidates(hashed).localCheckpoint()
    ends = candidates.select(F.explode(F.array("content_sha256", "other_sha256")).alias("sha256"))
    # Thumbnails are heavy: those of contents in no pair must stay where they are.
    thumbnails = contents.select("content_sha256", "thumbnail").join(
        F.broadcast(ends.distinct()), on=F.col("content_sha256") == F.col("sha256"), how="left_semi"
    )
    others = thumbnails.toDF("other_sha256", "other_thumbnail")
    pictures = candidates.join(thumbnails, on="content_sha256", how="inner").join(
        others, on="other_sha256", how="inner"
    )
    compare = F.pandas_udf(_similarities, "double")  # type: ignore[call-overload]
    # Called deterministic, it would be computed once for the filter and once more for the column.
    similarity = compare.asNondeterministic()("thumbnail", "other_thumbnail").alias("similarity")
    compared = pictures.select("content_sha256", "other_sha256", "hash_distance", similarity)
    return compared.where(F.col("similarity") >= MIN_SIMILARITY)


def _hashed(contents: DataFrame, new: DataFrame | None) -> DataFrame:
    """Returns content_sha256, the hash as a struct of four longs, and is_new."""
    words = (
        # To base -10 is to base 10 with a sign: 64 bits as a long has them.
        F.conv(F.substring("perceptual_hash", 16 * place + 1, 16), 16, -10).cast("long").alias(word)
        for place, word in enumerate(WORDS)
    )
    hashed = contents.where("perceptual_hash IS NOT NULL").select(
        "content_sha256", F.struct(*words).alias("hash")
    )
    if new is None:
        return hashed.withColumn("is_new", F.lit(True))
    marked = new.select("content_sha256", F.lit(True).alias("is_new")).distinct()
    return hashed.join(marked, on="content_sha256", how="left").fillna(False, subset=["is_new"])


def _candidates(hashed: DataFrame) -> DataFrame:
    """Pairs of contents whose hashes are equal, or agree in a band and in nearly all bits."""
    hashes = hashed.groupBy("hash").agg(
        F.max("is_new").alias("is_new"), F.count("*").alias("contents")
    )
    repeated = hashes.where("contents > 1 AND is_new").select("hash", F.col("hash").alias("other"))
    pairs = _near_hashes(hashes).unionByName(repeated)
    ones = hashed.toDF("one", "hash", "one_is_new")
    others = hashed.toDF("two", "other", "two_is_new")
    both = pairs.join(ones, on="hash", how="inner").join(others, on="other", how="inner")
    # A hash that several contents share is paired with itself: each two of them come twice.
    once = (F.col("hash") != F.col("other")) | (F.col("one") < F.col("two"))
    return both.where(once & (F.col("one_is_new") | F.col("two_is_new"))).select(
        F.least("one", "two").alias("content_sha256"),
        F.greatest("one", "two").alias("other_sha256"),
        _distance("hash", "other").alias("hash_distance"),
    )


def _near_hashes(hashes: DataFrame) -> DataFrame:
    """Pairs `hash`, `other` of different hashes, the first one new, that agree in a band.

    Locality-sensitive hashing by sampling bits, of P. Indyk and R. Motwani, "Approximate nearest
    neighbors: towards removing the curse of dimensionality", STOC 1998.
    """
    all_banded = hashes.select(F.explode(F.array(*_band_keys())).alias("band"), "hash", "is_new")
    banded = all_banded.where("is_new").drop("is_new")
    others = all_banded.toDF("band", "other", "other_is_new")
    different = F.col("hash") != F.col("other")
    # Two new hashes would come in both orders.
    once = ~F.col("other_is_new") | (F.col("hash") < F.col("other"))
    near = _distance("hash", "other") <= MAX_DISTANCE
    # Spark's estimate of a table's size doesn't know that explode makes 36 rows of one.
    few = hashes.where("is_new").count() <= FEW_HASHES
    agreeing = banded.hint("broadcast" if few else "merge").join(others, on="band", how="inner")
    return agreeing.where(different & once & near).select("hash", "other").distinct()


def _distance(one: str, other: str) -> Column:
    """The number of bits in which two hashes differ."""
    differing = (
        F.bit_count(F.col(f"{one}.{word}").bitwiseXOR(F.col(f"{other}.{word}"))) for word in WORDS
    )
    return reduce(lambda total, bits: total + bits, differing)


def _band_keys() -> list[Column]:
    """The 36 longs by which a hash meets others: its bits in each band, hashed with its number."""
    keys = []
    for number, masks in enumerate(_band_masks()):
        seen = (
            F.col(f"hash.{word}").bitwiseAND(F.lit(mask))
            for word, mask in zip(WORDS, masks, strict=True)
        )
        keys.append(F.xxhash64(F.lit(number), *seen))
    return keys


def _band_masks() -> list[list[int]]:
    """Draws the bands: for each, the 28 bits it looks at, as four signed longs.

    A third of the bands samples the square of low frequencies. The others sample the strip along
    one axis each: cutting off a side, left or right, moves the picture along x, which changes the
    signs of horizontal frequencies; the vertical ones still agree, and the other way round. Half of
    the bits are set in 44 to 56 % of radiographs and only 9 in more than nine of ten, or fewer than
    one; so 28 fill no bucket: of 100,000 hashes drawn like real ones at most 66 agree in a band.
    """
    rng = np.random.default_rng(0)
    rows, columns = image_arrays.HASH_FREQUENCIES.T
    square = (rows < image_arrays.SQUARE_SIDE) & (columns < image_arrays.SQUARE_SIDE)
    pools = (square, columns < image_arrays.STRIP_WIDTH, rows < image_arrays.STRIP_WIDTH)
    masks = []
    for pool in pools:
        for _ in range(BANDS_A_POOL):
            bits = np.zeros(len(pool), bool)
            bits[rng.choice(np.flatnonzero(pool), BAND_BITS, replace=False)] = True
            masks.append(np.packbits(bits).view(">i8").tolist())
    return masks


def _similarities(thumbnails: pd.Series, others: pd.Series) -> pd.Series:
    pairs = zip(thumbnails, others, strict=True)
    return pd.Series([similarity(_picture(one), _picture(other)) for one, other in pairs])


def _picture(thumbnail: bytes) -> NDArray[np.uint8]:
    side = image_arrays.THUMBNAIL_SIDE
    return np.frombuffer(thumbnail, np.uint8).reshape(side, side)


def similarity(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    """Compares two thumbnails by their detail, whatever their contrast.

    The middle of one is laid over the other wherever it fits, as it is and stretched by 4 % in
    height, width or both: so a crop by 4 % at one side, or 2 % at two, makes no difference.

    Source: J. P. Lewis, "Fast Normalized Cross-Correlation", 1995.

    Args:
        one: uint8, shape (64, 64).
        other: as `one`.

    Returns:
        The largest correlation coefficient, at most 1.
    """
    middle, whole = _detail(one)[_MARGIN:-_MARGIN, _MARGIN:-_MARGIN], _detail(other)
    sides = [round(len(middle) * scale) for scale in _SCALES]
    stretched = (cv2.resize(middle, (width, height)) for width in sides for height in sides)
    agreements = (cv2.matchTemplate(whole, part, cv2.TM_CCOEFF_NORMED) for part in stretched)
    # Of equal pictures it may come out a ten-millionth above 1.
    return min(1.0, max(float(agreement.max()) for agreement in agreements))


def _detail(thumbnail: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Detail of 2 to 4 pixels, of equal strength all over the picture."""
    equalised = cv2.equalizeHist(thumbnail).astype(np.float32)
    detail = cv2.GaussianBlur(equalised, (0, 0), 1) - cv2.GaussianBlur(equalised, (0, 0), 2)
    strength = np.sqrt(cv2.GaussianBlur(detail * detail, (0, 0), 6))
    # Where there is nothing but noise, it stays weak.
    return detail / (strength + 2)
