"""Ten thousand damaged files end as rows: pixels or a reason, and never an exception or a crash."""

import functools
import io
import random
import struct
import time
import zlib
from collections import Counter
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyspark.sql.pandas.types import to_arrow_schema

from cxr_spark import images, tables
from cxr_spark.images import Facts, Preprocessing
from cxr_spark.isolation import decode_files
from cxr_spark.reasons import FILE_REASONS
from tests.conftest import SHARED_DATA
from tests.test_dicom import SALT, SECRETS, dataset, ramp, sample, written
from tests.test_images import film

SIDE = 32
COUNTS = {"PNG": 4_000, "JPEG": 3_000, "DICOM": 3_000}
REAL_SHARE = 0.05
DICOM_SAMPLES = """MR_small MR_small_RLE MR_small_bigendian MR_small_expb MR_small_implicit
    MR_small_jp2klossless MR_small_jpeg_ls_lossless SC_rgb_jpeg_gdcm SC_rgb_jpeg_dcmtk
    SC_rgb_rle_16bit SC_rgb_jls_lossy_line SC_ybr_full_422_uncompressed liver_1frame JPEG2000
    examples_palette"""
pytestmark = pytest.mark.long

Mutation = Callable[[bytearray, random.Random], None]


def encoded(image: Image.Image, file_format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


@functools.cache
def whole(file_format: str) -> list[bytes]:
    """Undamaged files, small and drawn here or in pydicom, of every layout."""
    if file_format == "DICOM":
        window = {
            "WindowCenter": 2000,
            "WindowWidth": 900,
            "PhotometricInterpretation": "MONOCHROME1",
        }
        made = [written(dataset(ramp())), written(dataset(ramp(), **window))]
        return made + [sample(f"{name}.dcm") for name in DICOM_SAMPLES.split()]
    picture, exif = Image.fromarray(film(64, 80)), Image.Exif()
    exif[0x0112] = 6
    wide = Image.fromarray(film(64, 80).astype(np.uint16) * 257)
    modes = {"PNG": ("1", "L", "LA", "P", "RGB", "RGBA"), "JPEG": ("L", "RGB", "CMYK")}[file_format]
    made = [encoded(picture.convert(mode), file_format, exif=exif) for mode in modes]
    if file_format == "PNG":
        return [*made, encoded(wide, "PNG")]
    return made + [encoded(picture.convert(mode), "JPEG", progressive=True) for mode in modes]


@functools.cache
def real(file_format: str) -> list[bytes]:
    """A few real radiographs, where they are."""
    pattern = {"PNG": "nih/**/*.png", "JPEG": "pneumonia/**/*.jpeg", "DICOM": "no/*"}[file_format]
    paths = [path for path in sorted(SHARED_DATA.glob(pattern)) if not path.name.startswith("._")]
    return [path.read_bytes() for path in paths[::10]]


def flip_bits(data: bytearray, chance: random.Random) -> None:
    for _ in range(chance.randint(1, 20)):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)


def set_header_bytes(data: bytearray, chance: random.Random) -> None:
    for _ in range(chance.randint(1, 4)):
        data[chance.randrange(min(len(data), 400))] = chance.choice((0, 1, 0x7F, 0xFF, 0x80))


def set_a_length(data: bytearray, chance: random.Random) -> None:
    """Writes a number, mostly an extreme one, in either byte order, mostly near the start."""
    number = chance.choice((0, 1, 0xFFFF, 2**31 - 1, 2**32 - 1, chance.randrange(2**32)))
    layout = chance.choice(("<I", ">I", "<H", ">H"))
    at = chance.randrange(chance.choice((len(data), min(len(data), 600))))
    packed = struct.pack(layout, number % 2 ** (8 * struct.calcsize(layout)))
    data[at : at + len(packed)] = packed


def cut_off(data: bytearray, chance: random.Random) -> None:
    del data[chance.randrange(len(data)) :]


def cut_out(data: bytearray, chance: random.Random) -> None:
    at = chance.randrange(len(data))
    del data[at : at + chance.randint(1, 200)]


def double(data: bytearray, chance: random.Random) -> None:
    at = chance.randrange(len(data))
    data[at:at] = data[at : at + chance.randint(1, 200)]


def swap(data: bytearray, chance: random.Random) -> None:
    """Swaps two pieces of equal length."""
    length = chance.randint(4, 64)
    if len(data) > 2 * length:
        one, other = sorted(chance.sample(range(0, len(data) - length, length), 2))
        data[one : one + length], data[other : other + length] = (
            data[other : other + length],
            data[one : one + length],
        )


MUTATIONS: tuple[Mutation, ...] = (
    flip_bits,
    set_header_bytes,
    set_a_length,
    cut_off,
    cut_out,
    double,
    swap,
)


def with_right_checksums(data: bytearray) -> None:
    """Mends the checksums of a PNG's chunks, so that decoders look further than these."""
    at = 8
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        end = at + 8 + length
        if end + 4 > len(data):
            return
        data[end : end + 4] = struct.pack(">I", zlib.crc32(data[at + 4 : end]))
        at = end + 4


def mutant(file_format: str, number: int) -> bytes:
    """The same damaged file for the same number, on every machine with the same encoders."""
    chance = random.Random(f"{file_format} {number}")
    seeds = real(file_format) if chance.random() < REAL_SHARE else []
    data = bytearray(chance.choice(seeds or whole(file_format)))
    for mutation in chance.sample(MUTATIONS, chance.randint(1, 3)):
        if data:
            mutation(data, chance)
    if file_format == "PNG" and chance.random() < 0.7:
        with_right_checksums(data)
    return bytes(data)


@pytest.mark.parametrize("file_format", COUNTS)
def test_every_mutant_is_a_row_with_pixels_or_a_reason(file_format, capfd):
    def decode(number: str) -> Facts:
        return images.decode(mutant(file_format, int(number)), Preprocessing(size=SIDE), SALT)

    decode("0")  # imports and base files are made before the children are
    start = time.monotonic()
    numbers = map(str, range(COUNTS[file_format]))
    rows = list(decode_files(numbers, decode, isolated=True, timeout_s=20))
    counts = Counter(facts.reason or "pixels" for facts in rows)
    with capfd.disabled():
        print(f"\n{file_format}: {dict(counts)} in {time.monotonic() - start:.0f} s")
    assert len(rows) == COUNTS[file_format]
    for number, facts in enumerate(rows):
        assert (facts.pixels is None) == (facts.reason is not None), number
        assert facts.pixels is None or len(facts.pixels) == SIDE * SIDE, number
        assert facts.reason is None or facts.reason in FILE_REASONS, number
        assert not [secret for secret in SECRETS if secret in (facts.detail or "")], number
    kept = [field for field in tables.schema("pixels") if field.name in Facts._fields]
    schema = to_arrow_schema(type(tables.schema("pixels"))(kept))
    pa.RecordBatch.from_pylist([facts._asdict() for facts in rows], schema)
    assert counts["pixels"] and counts["unreadable"] and counts["truncated"]
