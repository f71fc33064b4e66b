"""Bytes become one grey square and facts, or a reason: every mode, every reason, every damage."""

import hashlib
import io
import os
import random
import struct
import zlib
from pathlib import Path

import cv2
import kornia_rs.io
import numpy as np
import pytest
import simplejpeg
from PIL import Image, ImageOps

from cxr_spark import images
from cxr_spark.image_arrays import is_colour_photograph, to_8_bits
from cxr_spark.images import Facts, Preprocessing, PreprocessingError
from cxr_spark.sources import list_source

REAL = Path(__file__).parents[2] / "shared" / "data"
SMALL = Preprocessing(size=64)


def film(height: int = 96, width: int = 96) -> np.ndarray:
    """A smooth grey picture that no flip or turn leaves alone, with each of 256 levels likely."""
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    picture = 40 + 150 * x + 60 * y * y + 15 * np.sin(9 * x * y)
    picture[: height // 8, : width // 6] = 255
    return picture.clip(0, 255).astype(np.uint8)


def encoded(image: Image.Image | np.ndarray, file_format: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    picture = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    picture.save(buffer, file_format, **options)
    return buffer.getvalue()


def decode(data: bytes, preprocessing: Preprocessing = SMALL) -> Facts:
    return images.decode(data, preprocessing)


def pixels(facts: Facts, size: int = 64) -> np.ndarray:
    assert facts.reason is None, facts.detail
    assert facts.pixels is not None
    return np.frombuffer(facts.pixels, np.uint8).reshape(size, size)


def png_header(width: int, height: int) -> bytes:
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n\0\0\0\r"
        + chunk
        + struct.pack(">I", zlib.crc32(chunk))
        + b"\0\0\0\x04IDATabcd\0\0\0\0"
    )


# --- good images: one picture, whatever it is wrapped in -----------------------------------------


def wrapped() -> dict[str, bytes]:
    """The same grey picture in every lossless wrapping that archives use."""
    grey = film()
    picture = Image.fromarray(grey)
    alpha = Image.fromarray(np.random.default_rng(0).integers(0, 256, grey.shape, np.uint8))
    with_alpha, colours_with_alpha = picture.copy(), picture.convert("RGB")
    with_alpha.putalpha(alpha)
    colours_with_alpha.putalpha(alpha)
    wide = grey.astype(np.uint16) * 257
    ok, wide_colours = cv2.imencode(".png", np.dstack([wide] * 3))
    assert ok
    return {
        "PNG L": encoded(picture),
        "PNG RGB": encoded(picture.convert("RGB")),
        "PNG LA": encoded(with_alpha),
        "PNG RGBA": encoded(colours_with_alpha),
        "PNG P": encoded(picture.convert("P")),
        "PNG I;16": encoded(wide),
        "PNG 16-bit RGB": wide_colours.tobytes(),
        "PNG before junk": encoded(picture) + b"junk",
        "BMP L": encoded(picture, "BMP"),
        "BMP RGB": encoded(picture.convert("RGB"), "BMP"),
        "GIF": encoded(picture, "GIF"),
        "TIFF L": encoded(picture, "TIFF"),
        "TIFF LZW RGB": encoded(picture.convert("RGB"), "TIFF", compression="tiff_lzw"),
        "TIFF LA": encoded(with_alpha, "TIFF"),
        "TIFF I;16": encoded(wide, "TIFF"),
        "TIFF I;16B": encoded(Image.fromarray(wide.astype(">u2")), "TIFF"),
        "TIFF I": encoded(Image.fromarray(wide.astype(np.int32)), "TIFF"),
        "WEBP": encoded(picture, "WEBP", lossless=True),
    }


@pytest.mark.parametrize("name", wrapped())
def test_a_picture_gives_the_same_pixels_and_hashes_however_it_is_wrapped(name):
    facts, plain = decode(wrapped()[name]), decode(encoded(film()))
    assert facts.reason is None, facts.detail
    assert facts.pixel_sha256 == plain.pixel_sha256
    assert facts.pixels == plain.pixels
    assert facts.perceptual_hash == plain.perceptual_hash
    assert (facts.width, facts.height) == (96, 96)
    assert facts.format == name.split()[0]


@pytest.mark.parametrize(
    ("name", "mode", "bits"),
    [
        ("PNG L", "L", 8),
        ("PNG LA", "LA", 8),
        ("PNG RGBA", "RGBA", 8),
        ("PNG P", "P", 8),
        ("PNG I;16", "I;16", 16),
        ("PNG 16-bit RGB", "RGB", 16),
        ("TIFF I;16", "I;16", 16),
        ("TIFF I;16B", "I;16B", 16),
    ],
)
def test_mode_and_depth_are_the_files_own(name, mode, bits):
    facts = decode(wrapped()[name])
    assert (facts.mode, facts.bits) == (mode, bits)


def test_a_full_size_square_holds_the_very_pixels_of_the_file():
    facts = decode(encoded(film()), Preprocessing(size=96))
    assert np.array_equal(pixels(facts, 96), film())


def test_the_hashes_are_those_of_the_bytes_and_of_the_pixels_with_their_shape():
    data = encoded(film(64, 96))
    facts = decode(data)
    assert facts.content_sha256 == hashlib.sha256(data).hexdigest()
    expected = hashlib.sha256(b"64x96:" + film(64, 96).tobytes()).hexdigest()
    assert facts.pixel_sha256 == expected


def test_the_same_pixels_in_another_shape_are_another_image():
    picture = film(64, 96)
    other = decode(encoded(picture.reshape(96, 64)))
    assert other.pixel_sha256 != decode(encoded(picture)).pixel_sha256


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize("progressive", [False, True])
def test_jpegs_baseline_and_progressive_in_every_mode_come_out_near_their_picture(
    mode, progressive
):
    data = encoded(
        Image.fromarray(film()).convert(mode), "JPEG", quality=97, progressive=progressive
    )
    facts = decode(data, Preprocessing(size=96))
    assert (facts.format, facts.mode, facts.bits) == ("JPEG", mode, 8)
    assert np.abs(pixels(facts, 96).astype(int) - film()).mean() < 2


def test_one_bit_images_are_black_and_white():
    picture = Image.fromarray(film()).convert("1")
    facts = decode(encoded(picture), Preprocessing(size=96))
    assert (facts.mode, facts.bits) == ("1", 1)
    assert np.array_equal(pixels(facts, 96), np.asarray(picture.convert("L")))


@pytest.mark.parametrize(("depth", "white"), [(12, 4095), (14, 16383), (16, 65535)])
def test_wide_greys_are_scaled_by_the_depth_that_holds_the_brightest(depth, white):
    grey = film()
    wide = np.round(grey / 255 * white).astype(np.uint16)
    assert wide.max() == white
    assert np.array_equal(to_8_bits(wide), grey)
    facts = decode(encoded(wide), Preprocessing(size=96))
    assert np.array_equal(pixels(facts, 96), grey)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_images_are_turned_upright_by_their_exif_orientation(file_format, orientation):
    picture = Image.fromarray(film(64, 96))
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if file_format == "WEBP" else {}
    data = encoded(picture, file_format, exif=exif, **options)
    facts = decode(data, Preprocessing(size=64))
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("L")
    assert (facts.width, facts.height) == upright.size
    expected = hashlib.sha256(f"{facts.height}x{facts.width}:".encode() + upright.tobytes())
    assert facts.pixel_sha256 == expected.hexdigest()


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("file_format", ["JPEG", "PNG"])
@pytest.mark.parametrize(
    "block", [b"II*\0\x08\0\0\0\xff\xff\x12\x01", b"XXXXgarbage", b"II*\0\x08"]
)
def test_a_damaged_exif_block_does_not_lose_the_image(file_format, block):
    data = encoded(film(), file_format, exif=b"Exif\0\0" + block)
    assert block in data
    assert decode(data).reason is None


def test_where_the_decoders_disagree_on_the_size_pillow_is_right(monkeypatch):
    data = encoded(film())
    expected = decode(data)
    monkeypatch.setattr(cv2, "imdecode", lambda data, flags: np.tile(np.arange(200.0), (200, 1)))
    assert decode(data) == expected
    jpeg = encoded(film(), "JPEG")
    expected = decode(jpeg)
    monkeypatch.setattr(
        simplejpeg, "decode_jpeg", lambda data, colours: np.zeros((200, 200, 1), np.uint8)
    )
    assert decode(jpeg) == expected


def jpegs() -> dict[str, bytes]:
    """JPEG files in every layout that archives have, with odd sizes."""
    tinted = Image.fromarray(np.dstack([film(97, 131) // 2, film(97, 131), 255 - film(97, 131)]))
    options = [
        {"quality": quality, "subsampling": subsampling, "progressive": progressive}
        for quality in (40, 95)
        for subsampling in (0, 1, 2)
        for progressive in (False, True)
    ]
    pictures = {"grey": Image.fromarray(film(97, 131)), "colour": tinted}
    return {
        f"{name} {values}": encoded(picture, "JPEG", **values)
        for name, picture in pictures.items()
        for values in options
    }


@pytest.mark.parametrize("name", jpegs())
def test_the_decoders_of_jpeg_give_the_very_same_pixels(name, monkeypatch):
    data = jpegs()[name]
    by_simplejpeg = decode(data)
    assert by_simplejpeg.reason is None
    monkeypatch.setattr(simplejpeg, "decode_jpeg", refuses)
    by_opencv = decode(data)
    monkeypatch.setattr(cv2, "imdecode", lambda *arguments: None)
    assert by_simplejpeg == by_opencv == decode(data)


def refuses(*arguments):
    raise ValueError("as if the file were damaged")


def test_a_jpeg_with_a_flaw_is_left_to_the_decoder_that_tolerates_it(monkeypatch, capfd):
    flawed = bytearray(encoded(textured(5, 256), "JPEG"))
    flawed[-32] = 0xFF
    with pytest.raises(ValueError, match="Corrupt JPEG data"):
        simplejpeg.decode_jpeg(bytes(flawed), "GRAY")
    facts = decode(bytes(flawed))
    assert facts.reason is None
    monkeypatch.setattr(simplejpeg, "decode_jpeg", refuses)
    assert facts == decode(bytes(flawed))


def test_colours_weigh_the_same_whichever_decoder_reads_them():
    tinted = np.dstack([film() // 2, film(), 255 - film() // 2])
    opencv, pillow = decode(encoded(tinted)), decode(encoded(tinted, "BMP"))
    assert opencv.reason is None
    assert opencv.pixel_sha256 == pillow.pixel_sha256


def test_the_content_decides_and_not_the_name(tmp_path):
    path = tmp_path / "COVID19(566).jpg"
    path.write_bytes(encoded(film()))
    assert images.facts_of_file(str(path), SMALL).format == "PNG"


# --- the square and its fingerprint --------------------------------------------------------------


def test_crop_takes_the_middle_square():
    wide = np.full((64, 128), 10, np.uint8)
    wide[:, 32:96] = film(64, 64)
    assert np.array_equal(pixels(decode(encoded(wide))), film(64, 64))
    assert np.array_equal(pixels(decode(encoded(wide.T.copy()))), film(64, 64).T)


def test_pad_adds_black_to_both_ends_of_the_shorter_side():
    wide = np.maximum(film(32, 64), 1)
    square = pixels(decode(encoded(wide), Preprocessing(size=64, fit="pad")))
    assert np.array_equal(square[16:48], wide)
    assert not square[:16].any() and not square[48:].any()


def test_stretch_keeps_everything_and_changes_the_aspect_ratio():
    wide = np.repeat(film(64, 64), 2, axis=1)
    assert np.array_equal(
        pixels(decode(encoded(wide), Preprocessing(size=64, fit="stretch"))), film(64, 64)
    )


@pytest.mark.parametrize("side", [1024, 1000, 700, 301, 200, 129])
def test_shrinking_averages_areas(side):
    """Halving first comes within two grey levels of one area resampling of the whole."""
    picture = film(side, side)
    square = pixels(decode(encoded(picture)))
    expected = cv2.resize(picture, (64, 64), interpolation=cv2.INTER_AREA)
    difference = np.abs(square.astype(int) - expected)
    assert difference.mean() < 1
    assert np.percentile(difference, 95) <= 2


def test_fine_stripes_shrink_to_their_mean_instead_of_aliasing():
    stripes = np.tile(np.array([0, 255], np.uint8), (512, 256))
    stripes[:, :64] = 20
    assert np.abs(pixels(decode(encoded(stripes)))[:, 10:].astype(int) - 128).max() <= 1


@pytest.mark.parametrize(("side", "interpolation"), [(120, cv2.INTER_AREA), (40, cv2.INTER_LINEAR)])
def test_up_to_two_times_shrinking_is_by_area_and_enlarging_is_linear(side, interpolation):
    noise = np.random.default_rng(0).integers(0, 256, (side, side), np.uint8)
    expected = cv2.resize(noise, (64, 64), interpolation=interpolation)
    assert np.array_equal(pixels(decode(encoded(noise))), expected)


def test_the_fingerprint_tells_every_attribute_apart_and_is_stable():
    default = Preprocessing()
    assert default.fingerprint() == Preprocessing(size=224, fit="crop").fingerprint()
    canonical = '{"fit":"crop","resampling":"area","size":224,"version":3,"window":"file"}'
    assert default.fingerprint() == hashlib.sha256(canonical.encode()).hexdigest()
    others = [Preprocessing(size=96), Preprocessing(fit="pad"), Preprocessing(fit="stretch")]
    assert len({default.fingerprint(), *(other.fingerprint() for other in others)}) == 4


def test_a_preprocessing_survives_json():
    preprocessing = Preprocessing(size=96, fit="pad")
    assert Preprocessing.from_json(preprocessing.to_json()) == preprocessing


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fit": "squeeze"}, "fit 'squeeze'.*crop, pad, stretch"),
        ({"version": 1}, "version 1.*knows 3"),
        ({"size": 4}, "image size 4: expected 8 to 4096"),
        ({"colour": True}, "expected exactly"),
    ],
)
def test_a_preprocessing_that_is_unknown_here_is_refused(change, message):
    with pytest.raises(PreprocessingError, match=message):
        Preprocessing.from_json(Preprocessing().to_json() | change)


# --- the perceptual hash -------------------------------------------------------------------------


def distance(one: Facts, other: Facts) -> int:
    assert one.perceptual_hash and other.perceptual_hash
    assert len(one.perceptual_hash) == 64
    return (int(one.perceptual_hash, 16) ^ int(other.perceptual_hash, 16)).bit_count()


def textured(seed: int, side: int = 512) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(0, 256, (12, 12), np.uint8)
    return cv2.resize(noise, (side, side), interpolation=cv2.INTER_CUBIC)


def test_the_perceptual_hash_outlives_reencoding_and_rescaling_but_tells_pictures_apart():
    original = decode(encoded(textured(1)))
    assert distance(original, decode(encoded(textured(1), "JPEG", quality=60))) < 16
    assert distance(original, decode(encoded(cv2.resize(textured(1), (300, 300))))) < 16
    assert distance(original, decode(encoded(textured(2)))) > 64


# --- reasons: files ------------------------------------------------------------------------------


def test_a_missing_file_is_said_to_be_missing(tmp_path):
    for path in (tmp_path / "gone.png", Path(__file__) / "below a file.png"):
        facts = images.facts_of_file(str(path), SMALL)
        assert facts == Facts(reason="missing_file", detail="no such file")


def test_an_empty_file_is_said_to_be_empty(tmp_path):
    path = tmp_path / "empty.png"
    path.touch()
    assert images.facts_of_file(str(path), SMALL).reason == "empty_file"
    assert decode(b"").reason == "empty_file"


def test_pipes_devices_and_folders_are_never_opened(tmp_path, monkeypatch):
    pipe = tmp_path / "pipe.png"
    os.mkfifo(pipe)
    monkeypatch.setattr(os, "open", None)
    for path in (str(pipe), "/dev/zero", str(tmp_path)):
        assert images.read_file(path)[:2] == (None, "not_a_file")


def test_a_pipe_that_takes_a_files_place_while_it_is_looked_at_does_not_hang(tmp_path, monkeypatch):
    pipe = tmp_path / "pipe.png"
    os.mkfifo(pipe)
    regular = os.stat(__file__)
    monkeypatch.setattr(os, "stat", lambda path: regular)
    assert images.read_file(str(pipe))[0] is None


def test_a_sparse_file_of_three_gigabytes_is_too_large_and_not_read(tmp_path, monkeypatch):
    path = tmp_path / "huge.png"
    with open(path, "wb") as file:
        file.truncate(3 * 2**30)
    monkeypatch.setattr(os, "open", None)
    facts = images.facts_of_file(str(path), SMALL)
    assert (facts.reason, facts.content_sha256) == ("too_large", None)


def test_a_file_that_grows_over_the_cap_while_it_is_read_is_too_large(tmp_path, monkeypatch):
    path = tmp_path / "growing.png"
    path.write_bytes(bytes(100))
    small = os.stat(__file__)
    monkeypatch.setattr(os, "stat", lambda path: small)
    monkeypatch.setattr(images, "MAX_BYTES", 99)
    monkeypatch.setattr(images.stat, "S_ISREG", lambda mode: True)
    monkeypatch.setattr(os, "stat", lambda path: os.stat_result((0o100644, *[0] * 5, 10, 0, 0, 0)))
    assert images.read_file(str(path))[:2] == (None, "too_large")
    assert decode(bytes(100)).reason == "too_large"


@pytest.mark.parametrize(
    "error", [PermissionError(13, "Permission denied"), OSError(5, "I/O error")]
)
def test_a_file_that_cannot_be_read_is_unreadable(tmp_path, monkeypatch, error):
    path = tmp_path / "locked.png"
    path.write_bytes(b"x")

    def refuse(*arguments):
        raise error

    monkeypatch.setattr(os, "open", refuse)
    assert images.read_file(str(path)) == (None, "unreadable", error.strerror)


def test_a_path_that_no_file_system_holds_is_unreadable():
    assert images.read_file("a\0b.png")[:2] == (None, "unreadable")


# --- reasons: contents ---------------------------------------------------------------------------


@pytest.mark.parametrize("kept", [0.3, 0.7, 0.95])
@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "BMP", "GIF"])
def test_a_file_that_ends_early_is_truncated(file_format, kept):
    data = encoded(textured(3, 256), file_format)
    facts = decode(data[: int(len(data) * kept)])
    assert (facts.reason, facts.pixels) == ("truncated", None)
    assert (facts.format, facts.width) == (file_format, 256)


def test_a_png_with_a_flipped_bit_in_its_pixels_is_unreadable():
    data = bytearray(encoded(textured(3)))
    data[len(data) // 2] ^= 0x10
    facts = decode(bytes(data))
    assert facts.reason == "unreadable"
    assert facts.content_sha256 == hashlib.sha256(data).hexdigest()


def test_a_png_chunk_that_claims_more_than_the_file_holds_never_gets_to_opencv(monkeypatch):
    """It would take the two gigabytes claimed; Pillow takes what is there, here all the pixels."""
    data = bytearray(encoded(film()))
    at = data.index(b"IDAT") - 4
    data[at : at + 4] = (2**31 - 1).to_bytes(4, "big")
    monkeypatch.setattr(cv2, "imdecode", None)
    assert decode(bytes(data)).pixel_sha256 == hashlib.sha256(b"96x96:" + film().data).hexdigest()


@pytest.mark.parametrize(
    "data", [b"x", b"<!DOCTYPE html><html>", b"\x89PNG\r\n\x1a\n", bytes(5000)]
)
def test_what_is_no_image_is_unreadable_and_the_detail_is_always_the_same(data):
    facts = decode(data)
    assert facts.reason == "unreadable"
    assert repr(data[:8]) in (facts.detail or "")
    assert decode(data) == facts


def test_an_apple_double_file_is_unreadable_and_the_detail_says_what_it_is():
    facts = decode(b"\x00\x05\x16\x07" + bytes(4092))
    assert facts.reason == "unreadable"
    assert "AppleDouble" in (facts.detail or "")


def test_formats_that_start_other_programs_are_not_opened():
    facts = decode(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 96 96\n%%EndComments\n")
    assert facts.reason == "unreadable"
    assert "no image format that is read here" in (facts.detail or "")


def test_float_and_32_bit_samples_have_no_known_grey_range():
    for samples in (film().astype(np.float32), film().astype(np.int32) * 70_000):
        facts = decode(encoded(samples, "TIFF"))
        assert facts.reason == "unreadable"
        assert "UnknownGreyRange" in (facts.detail or "")


@pytest.mark.parametrize(
    ("width", "height"), [(60_000, 60_000), (8193, 8192), (2**31 - 1, 2), (2, 2**31 - 1)]
)
def test_a_claim_of_too_many_pixels_is_refused_from_the_header(width, height, monkeypatch):
    monkeypatch.setattr(cv2, "imdecode", None)
    facts = decode(png_header(width, height))
    assert facts.reason == "too_large"
    assert "pixels" in (facts.detail or "")


def test_the_largest_size_allowed_is_not_too_large():
    assert decode(png_header(8192, 8192)).reason != "too_large"


@pytest.mark.parametrize(("height", "width"), [(31, 96), (96, 31), (1, 1)])
def test_a_side_under_32_pixels_is_too_small(height, width):
    assert decode(encoded(film(height, width))).reason == "too_small"


def test_a_side_of_32_pixels_is_large_enough():
    assert decode(encoded(film(32, 33))).reason is None


def test_constant_and_nearly_constant_images_are_blank():
    rng = np.random.default_rng(0)
    constant = np.full((400, 400), 77, np.uint8)
    noisy = constant + rng.integers(0, 6, constant.shape, np.uint8)
    with_a_speck = constant.copy()
    with_a_speck[100:108, 100:108] = 255
    for picture in (constant, noisy, with_a_speck, np.dstack([constant] * 3)):
        facts = decode(encoded(picture))
        assert (facts.reason, facts.pixels, facts.pixel_sha256) == ("blank", None, None)


def test_a_faint_picture_is_not_blank():
    assert decode(encoded(100 + film(400, 400) // 16)).reason is None


def photograph() -> np.ndarray:
    """Patches of every hue at every brightness, blue, green, red."""
    hue = np.tile(np.arange(0, 180, 6, dtype=np.uint8), (30, 1))
    value = np.linspace(80, 255, 30).astype(np.uint8)[:, None].repeat(30, axis=1)
    patches = cv2.cvtColor(np.dstack([hue, np.full_like(hue, 160), value]), cv2.COLOR_HSV2BGR)
    return cv2.resize(patches, (300, 300), interpolation=cv2.INTER_LINEAR)


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "BMP"])
def test_a_colour_photograph_is_not_grayscale(file_format):
    facts = decode(encoded(photograph()[:, :, ::-1].copy(), file_format))
    assert (facts.reason, facts.pixels) == ("not_grayscale", None)


def test_real_colour_photographs_are_not_grayscale():
    samples = pytest.importorskip("sklearn.datasets")
    for name in ("china.jpg", "flower.jpg"):
        assert is_colour_photograph(np.ascontiguousarray(samples.load_sample_image(name)))


@pytest.mark.parametrize("colour", [(255, 0, 0), (255, 255, 0), (0, 200, 0)])
def test_a_blue_tinted_film_with_a_coloured_note_is_kept(colour):
    grey = film(300, 300).astype(np.float32)
    tinted = np.dstack([grey * 0.6, grey * 0.8, 40 + grey * 0.8]).clip(0, 255).astype(np.uint8)
    tinted[10:60, 200:290] = colour
    facts = decode(encoded(tinted))
    assert facts.reason is None
    assert facts.mode == "RGB"


@pytest.mark.parametrize("file_format", ["GIF", "TIFF", "PNG", "WEBP"])
def test_more_than_one_frame_is_multi_frame(file_format):
    frames = [Image.fromarray(textured(seed, 64)) for seed in (1, 2)]
    data = encoded(frames[0], file_format, save_all=True, append_images=frames[1:])
    assert decode(data).reason == "multi_frame"


def test_too_little_memory_is_a_reason_too(monkeypatch):
    def exhausted(*arguments):
        raise MemoryError

    monkeypatch.setattr(kornia_rs.io, "decode_image_png_u8", exhausted)
    assert decode(encoded(film())).reason == "decoder_memory"


def test_an_error_that_nobody_thought_of_is_a_row_that_names_its_class(monkeypatch):
    def fails(*arguments):
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr(cv2, "calcHist", fails)
    facts = decode(encoded(film()))
    assert (facts.reason, facts.detail) == ("unreadable", "ZeroDivisionError: by zero")


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP"])
def test_damaged_files_end_as_facts_and_never_as_exceptions(file_format):
    """Bytes flipped, cut out, doubled and cut off, at places drawn by a fixed seed."""
    chance = random.Random(file_format)
    exif = Image.Exif()
    exif[0x0112] = 6
    options = {} if file_format in ("GIF", "BMP") else {"exif": exif}
    whole = encoded(textured(4, 64), file_format, **options)
    reasons = set()
    for _ in range(300):
        data = bytearray(whole)
        for _ in range(chance.randint(1, 8)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        at = chance.randrange(len(data))
        change = chance.choice(("none", "cut off", "cut out", "double"))
        if change == "cut off":
            del data[at:]
        elif change == "cut out":
            del data[at : at + chance.randint(1, 50)]
        elif change == "double":
            data[at:at] = data[at : at + chance.randint(1, 50)]
        facts = decode(bytes(data))
        assert (facts.pixels is None) == (facts.reason is not None)
        assert facts.pixels is None or len(facts.pixels) == 64 * 64
        reasons.add(facts.reason)
    assert reasons <= {
        None,
        "blank",
        "empty_file",
        "multi_frame",
        "not_grayscale",
        "too_large",
        "too_small",
        "truncated",
        "unreadable",
    }
    assert len(reasons) > 1


# --- the real data -------------------------------------------------------------------------------


@pytest.mark.skipif(not REAL.is_dir(), reason="the real images (../shared/data) are not here")
@pytest.mark.parametrize("source", ["nih", "pneumonia", "tuberculosis", "covid"])
def test_every_real_radiograph_is_accepted_and_only_apple_double_files_are_not(source):
    for file in list_source(source, REAL / source):
        facts = images.facts_of_file(file.path, SMALL)
        reason = "unreadable" if os.path.basename(file.path).startswith("._") else None
        assert facts.reason == reason, f"{file.path}: {facts.detail}"
        if reason is None:
            assert pixels(facts).std() > 10
