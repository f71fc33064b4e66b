"""Near-duplicates: distorted copies are found, other radiographs are not, whatever came first."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import pytest
from pyspark.sql import DataFrame, SparkSession

from cxr_spark import image_arrays, images, near_duplicates, phantom
from cxr_spark.near_duplicates import near_pairs, similarity

Picture = np.ndarray
Row = tuple[str, str | None, bytes | None]

PATIENTS = 5
SCHEMA = "content_sha256 string, perceptual_hash string, thumbnail binary"


def reencoded(picture: Picture) -> Picture:
    _, data = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 60])
    return cv2.imdecode(data, cv2.IMREAD_GRAYSCALE)


def marked(picture: Picture) -> Picture:
    font = cv2.FONT_HERSHEY_SIMPLEX
    return cv2.putText(picture.copy(), "PORTABLE 9:41", (100, 20), font, 0.4, (255,), 1)


DISTORTIONS: dict[str, Callable[[Picture], Picture]] = {
    "as it is": lambda picture: picture,
    "re-encoded": reencoded,
    "half as large": lambda picture: cv2.resize(picture, (128, 128), interpolation=cv2.INTER_AREA),
    "in 12 bits": lambda picture: image_arrays.to_8_bits(picture.astype(np.uint16) * 16),
    "cropped": lambda picture: picture[3:-3, 3:-3].copy(),
    "darker": lambda picture: (255 * (picture / 255) ** 1.6).astype(np.uint8),
    "marked": marked,
}


def row(name: str, picture: Picture) -> Row:
    overview = image_arrays.overview(picture)
    thumbnail = image_arrays.thumbnail(overview).tobytes()
    return name, image_arrays.perceptual_hash(overview), thumbnail


@cache
def drawn(patient: int) -> Picture:
    return phantom.draw(["Effusion"] * (patient % 2), seed=[patient], canvas=256).pixels


def table(spark: SparkSession, rows: list[Row]) -> DataFrame:
    return spark.createDataFrame(rows, SCHEMA)


def names(pairs: DataFrame) -> list[tuple[str, str]]:
    return sorted((pair.content_sha256, pair.other_sha256) for pair in pairs.collect())


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    """Five patients, and seven versions of each one's picture."""
    return [
        row(f"{patient} {name}", distort(drawn(patient)))
        for patient in range(PATIENTS)
        for name, distort in DISTORTIONS.items()
    ]


@pytest.fixture(scope="module")
def contents(spark: SparkSession, rows: list[Row]) -> DataFrame:
    return table(spark, rows).cache()


@pytest.fixture(scope="module")
def found(contents: DataFrame) -> DataFrame:
    return near_pairs(contents).cache()


def test_every_copy_is_paired_with_its_original_and_no_patient_with_another(found: DataFrame):
    pairs = names(found)
    originals = {f"{patient} as it is" for patient in range(PATIENTS)}
    assert all(one[0] == other[0] for one, other in pairs)
    assert len([pair for pair in pairs if originals & set(pair)]) == PATIENTS * (
        len(DISTORTIONS) - 1
    )


def test_a_pair_comes_once_and_in_order_with_its_distance_and_similarity(
    found: DataFrame, rows: list[Row]
):
    hashes = {name: int(hexadecimal or "", 16) for name, hexadecimal, _ in rows}
    pairs = found.collect()
    assert len(set(names(found))) == len(pairs)
    for pair in pairs:
        assert pair.content_sha256 < pair.other_sha256
        differing = hashes[pair.content_sha256] ^ hashes[pair.other_sha256]
        assert pair.hash_distance == differing.bit_count()
        assert near_duplicates.MIN_SIMILARITY <= pair.similarity <= 1


def test_new_contents_add_just_the_pairs_that_were_missing_however_spark_joins(
    contents: DataFrame, found: DataFrame, monkeypatch: pytest.MonkeyPatch
):
    is_new = "content_sha256 LIKE '%o%'"
    before, new = contents.where(f"NOT {is_new}"), contents.where(is_new)
    added = names(near_pairs(contents, new))
    monkeypatch.setattr(near_duplicates, "FEW_HASHES", 0)
    assert sorted(names(near_pairs(before)) + added) == names(found)


def test_contents_with_the_same_hash_are_paired_and_those_without_one_left_out(
    spark: SparkSession,
):
    picture = drawn(0)
    alike = [row(name, picture) for name in "abc"]
    contents = table(spark, [*alike, ("d", None, None)])
    assert names(near_pairs(contents)) == [("a", "b"), ("a", "c"), ("b", "c")]
    assert names(near_pairs(contents, contents.where("content_sha256 = 'b'"))) == [
        ("a", "b"),
        ("b", "c"),
    ]


def test_equal_hashes_of_pictures_that_differ_are_no_pair(spark: SparkSession):
    one, (_, _, other_thumbnail) = row("a", drawn(0)), row("b", drawn(1))
    assert names(near_pairs(table(spark, [one, ("b", one[1], other_thumbnail)]))) == []


def test_similarity_ignores_contrast_and_a_small_crop_but_not_a_mirror():
    picture = drawn(0)
    brighter = (255 * (picture[10:, :] / 255) ** 0.7).astype(np.uint8)
    original, changed, mirrored = (
        image_arrays.thumbnail(version) for version in (picture, brighter, picture[:, ::-1].copy())
    )
    assert similarity(original, changed) > 0.9
    assert similarity(original, mirrored) < 0.7


def test_of_the_real_radiographs_only_the_known_two_are_there_twice(
    spark: SparkSession, real_sources: Path
):
    paths = [path for path in real_sources.rglob("*") if path.suffix in (".png", ".jpg", ".jpeg")]
    pictures = {}
    for path in sorted(paths):
        facts = images.facts_of_file(str(path), images.Preprocessing())
        pictures[facts.pixel_sha256] = (path.name, facts.perceptual_hash, facts.thumbnail)
    pictures.pop(None)
    assert names(near_pairs(table(spark, list(pictures.values())))) == [
        ("00001247_011.png", "Normal-2242.png"),
        ("00002067_000.png", "Normal-1580.png"),
    ]
