"""DICOM files become grey levels as their tags say, and of the tags only what may be kept stays."""

import io
import subprocess
import sys
import warnings
from pathlib import Path

import gdcm
import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom import uid
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels import apply_modality_lut, apply_voi_lut
from pydicom.sequence import Sequence

from cxr_spark import images
from cxr_spark.images import Facts, Preprocessing
from cxr_spark.pseudonyms import pseudonym

SALT = b"0123456789abcdef0123456789abcdef"
SIDE = 64
SECRETS = ("Doe^Jane", "MRN-4711", "19610203", "St. Elsewhere")


def ramp(bits: int = 12, lowest: int = 0) -> np.ndarray:
    """Values from the lowest to the highest of some bits, 64 x 64, alike under no turn."""
    return np.linspace(lowest, lowest + 2**bits - 1, SIDE * SIDE).reshape(SIDE, SIDE).round()


def dataset(pixels: np.ndarray, bits: int = 12, signed: bool = False, **tags) -> Dataset:
    """A digital radiograph, uncompressed; tags by their keywords, None leaves one out."""
    made = Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    made.SOPClassUID = uid.DigitalXRayImageStorageForPresentation
    made.SOPInstanceUID = "1.2.3"
    made.PatientName, made.PatientID, made.PatientBirthDate = SECRETS[:3]
    made.InstitutionName = SECRETS[3]
    made.Rows, made.Columns = pixels.shape[:2]
    made.SamplesPerPixel = 1
    made.PhotometricInterpretation = "MONOCHROME2"
    allocated = 8 if bits <= 8 else 16
    made.BitsAllocated, made.BitsStored, made.HighBit = allocated, bits, bits - 1
    made.PixelRepresentation = int(signed)
    made.PixelData = pixels.astype(f"<{'i' if signed else 'u'}{allocated // 8}").tobytes()
    made["PixelData"].VR = "OW"
    for name, value in tags.items():
        if value is None:
            del made[name]
        else:
            setattr(made, name, value)
    return made


def written(made: Dataset) -> bytes:
    buffer = io.BytesIO()
    made.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def decode(made: Dataset | bytes, salt: bytes | None = SALT) -> Facts:
    data = made if isinstance(made, bytes) else written(made)
    return images.decode(data, Preprocessing(size=SIDE), salt)


def sample(name: str) -> bytes:
    """One of the files that pydicom is installed with."""
    return Path(get_testdata_file(name, download=False)).read_bytes()


def grey(made: Dataset | bytes) -> np.ndarray:
    facts = decode(made)
    assert facts.reason is None, facts.detail
    return np.frombuffer(facts.pixels, np.uint8).reshape(SIDE, SIDE).astype(int)


def scaled(values: np.ndarray, black: float, white: float) -> np.ndarray:
    return np.rint(255 * np.clip((values - black) / (white - black), 0, 1)).astype(int)


# --- grey levels ---------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_without_a_window_unsigned_values_are_scaled_over_the_bits_stored(bits):
    half = ramp(bits) // 2
    assert np.array_equal(grey(dataset(half, bits)), scaled(half, 0, 2**bits - 1))


def test_without_a_window_signed_values_are_scaled_over_what_the_image_has_but_padding():
    values = ramp(10, -300)
    padded = values.copy()
    padded[0] = -2000
    expected = scaled(values, values[1:].min(), values.max())
    expected[0] = 0
    assert np.array_equal(grey(dataset(padded, 16, signed=True, PixelPaddingValue=-2000)), expected)


def test_monochrome1_is_inverted():
    made = dataset(ramp(), PhotometricInterpretation="MONOCHROME1")
    assert np.array_equal(grey(made), 255 - scaled(ramp(), 0, 4095))


@pytest.mark.parametrize("interpretation", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_is_black_whatever_the_interpretation(interpretation):
    values = ramp().clip(100, 4000)
    values[:9, :9] = 40
    values[-9:, -9:] = 50
    made = dataset(
        values,
        PhotometricInterpretation=interpretation,
        PixelPaddingValue=40,
        PixelPaddingRangeLimit=50,
    )
    shown = grey(made)
    assert not shown[:9, :9].any() and not shown[-9:, -9:].any()
    assert (shown > 0).mean() > 0.9


def test_bits_that_are_not_stored_are_ignored():
    overlaid = ramp().astype(np.uint16)
    overlaid[::2] |= 0xF000
    assert np.array_equal(grey(dataset(overlaid)), scaled(ramp(), 0, 4095))


@pytest.mark.parametrize("function", [None, "LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize(("slope", "intercept"), [(1, 0), (2.5, -1000), (-1, 4095)])
def test_the_first_window_is_applied_to_rescaled_values(function, slope, intercept):
    tags = {"VOILUTFunction": function} if function else {}
    made = dataset(
        ramp(),
        WindowCenter=[1500, 10],
        WindowWidth=[1200, 20],
        RescaleSlope=slope,
        RescaleIntercept=intercept,
        **tags,
    )
    expected = apply_voi_lut(apply_modality_lut(ramp().astype(np.uint16), made), made)
    low, high = sorted((intercept, 4095 * slope + intercept))
    if slope > 0:  # pydicom turns the range of what it returns with a negative slope
        assert np.abs(grey(made) - scaled(expected, low, high)).max() <= 1
    rescaled = ramp() * slope + intercept
    shown = grey(made)
    assert (shown[rescaled < -1500] <= 1).all() and (shown[rescaled > 5000] >= 254).all()
    assert abs(shown[np.abs(rescaled - 1500) < 5].mean() - 128) < 3


@pytest.mark.parametrize(
    ("function", "center", "width", "expected"),
    [
        ("LINEAR", 10, 3, [0, 0.25, 0.75, 1]),
        ("LINEAR", 10, 1, [0, 0, 1, 1]),
        ("LINEAR_EXACT", 10, 4, [0, 0.25, 0.5, 0.75]),
        ("SIGMOID", 10, 4, [0.1192, 0.2689, 0.5, 0.7311]),
    ],
)
def test_a_window_maps_values_as_the_standards_formulas_do(function, center, width, expected):
    values = np.arange(SIDE * SIDE).reshape(SIDE, SIDE)
    made = dataset(values, WindowCenter=center, WindowWidth=width, VOILUTFunction=function)
    assert np.array_equal(grey(made)[0, 8:12], np.rint(255 * np.array(expected)))


@pytest.mark.parametrize(
    "window", [(100, 0), (100, -5), (float("nan"), 100), (100, float("inf")), (100, None)]
)
def test_a_window_that_the_standard_forbids_counts_as_none(window):
    center, width = window
    made = dataset(ramp(), WindowCenter=center)
    if width is not None:
        made.add(pydicom.DataElement("WindowWidth", "DS", str(width)))
    assert np.array_equal(grey(made), scaled(ramp(), 0, 4095))


def lookup(table: np.ndarray, first: int, depth: int, signed: bool = False) -> Dataset:
    item = Dataset()
    item.add_new("LUTDescriptor", "SS" if signed else "US", [len(table), first, depth])
    item.add_new("LUTData", "OW", table.astype("<u2").tobytes())
    return item


def test_a_voi_lut_sequence_comes_before_the_window():
    table = np.sqrt(np.linspace(0, 1, 4000)) * 1023
    made = dataset(
        ramp(), VOILUTSequence=Sequence([lookup(table, 50, 10)]), WindowCenter=1, WindowWidth=2
    )
    expected = scaled(apply_voi_lut(ramp().astype(np.uint16), made), 0, 1023)
    assert np.array_equal(grey(made), expected)


def test_a_long_table_of_8_bit_entries_does_not_wrap():
    """It does in pydicom's own function, whose index has as many bits as an entry."""
    table = np.linspace(0, 255, 4096).astype(np.uint8)
    packed = lookup(table, 0, 8)
    packed["LUTData"].value = table.tobytes()
    for item in (lookup(table, 0, 8), packed):
        made = dataset(ramp(), VOILUTSequence=Sequence([item]))
        assert np.abs(grey(made) - scaled(ramp(), 0, 4095)).max() <= 1


def test_a_modality_lut_sequence_takes_the_place_of_the_rescale():
    table = 65535 - np.arange(4096) * 16
    made = dataset(ramp(), ModalityLUTSequence=Sequence([lookup(table, 0, 16)]), RescaleSlope=9)
    mapped = apply_modality_lut(ramp().astype(np.uint16), made)
    assert np.array_equal(grey(made), scaled(mapped, 15, 65535))


@pytest.mark.parametrize(
    ("transfer_syntax", "bits"),
    [
        ("JPEGBaselineProcess1", 8),
        ("JPEGLosslessProcess14", 12),
        ("JPEGLosslessProcess14_1", 16),
        ("JPEGLSLossless", 12),
        ("JPEG2000Lossless", 12),
        ("RLELossless", 16),
        ("ExplicitVRBigEndian", 12),
        ("ImplicitVRLittleEndian", 12),
    ],
)
def test_a_picture_is_the_same_in_every_transfer_syntax(tmp_path, transfer_syntax, bits):
    plain, recoded = str(tmp_path / "plain.dcm"), str(tmp_path / "recoded.dcm")
    (tmp_path / "plain.dcm").write_bytes(written(dataset(ramp(bits), bits)))
    reader, change, writer = (
        gdcm.ImageReader(),
        gdcm.ImageChangeTransferSyntax(),
        gdcm.ImageWriter(),
    )
    reader.SetFileName(plain)
    assert reader.Read()
    change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, transfer_syntax)))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer.SetFileName(recoded)
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()
    data = (tmp_path / "recoded.dcm").read_bytes()
    loss = 3 if transfer_syntax == "JPEGBaselineProcess1" else 0
    assert np.abs(grey(data) - scaled(ramp(bits), 0, 2**bits - 1)).max() <= loss


@pytest.mark.parametrize(
    "name", ["MR_small_jpeg_ls_lossless", "MR_small_jp2klossless", "MR_small_RLE"]
)
def test_signed_compressed_files_of_others_equal_their_uncompressed_form(name):
    facts = [decode(sample(f"{file}.dcm")) for file in (name, "MR_small")]
    assert facts[0].pixels == facts[1].pixels


def test_a_file_without_preamble_or_meta_header_is_read():
    made = dataset(ramp())
    assert np.array_equal(grey(written(made)[132:]), scaled(ramp(), 0, 4095))
    for implicit, little in ((False, True), (True, True), (False, False)):
        made = dataset(ramp())
        if not little:
            made.PixelData = ramp().astype(">u2").tobytes()
        del made.file_meta
        buffer = io.BytesIO()
        made.save_as(buffer, implicit_vr=implicit, little_endian=little)
        assert buffer.getvalue().startswith(b"\x08\0\x16\0" if little else b"\0\x08\0\x16")
        assert np.array_equal(grey(buffer.getvalue()), scaled(ramp(), 0, 4095))


# --- colour --------------------------------------------------------------------------------------


def colour(samples: np.ndarray, bits: int = 8, **tags) -> Dataset:
    tags = {"PhotometricInterpretation": "RGB"} | tags
    return dataset(samples, bits, SamplesPerPixel=3, PlanarConfiguration=0, **tags)


@pytest.mark.parametrize("bits", [8, 12])
def test_a_grey_picture_stored_in_colours_is_kept(bits):
    three = np.dstack([ramp(bits)] * 3)
    shown = grey(colour(three, bits))
    assert np.abs(shown - scaled(ramp(bits), 0, 2**bits - 1)).max() <= 1
    assert decode(colour(three, bits)).mode == "RGB"


def test_colours_weigh_the_same_as_in_other_formats():
    tinted = np.dstack([ramp(8) // 2, ramp(8), 255 - ramp(8) // 3]).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(tinted).save(buffer, "PNG")
    assert decode(colour(tinted)).pixel_sha256 == decode(buffer.getvalue()).pixel_sha256


def test_ybr_is_turned_into_grey_by_its_first_component():
    ybr = np.dstack([ramp(8), np.full((SIDE, SIDE), 128), np.full((SIDE, SIDE), 128)])
    made = colour(ybr, PhotometricInterpretation="YBR_FULL")
    assert np.abs(grey(made) - ramp(8)).max() <= 1


def test_a_palette_is_looked_up():
    shades = np.arange(255, -1, -1, dtype=np.uint16) * 257
    tags = {
        f"{name}PaletteColorLookupTableData": shades.tobytes() for name in ("Red", "Green", "Blue")
    }
    tags |= {
        f"{name}PaletteColorLookupTableDescriptor": [256, 0, 16]
        for name in ("Red", "Green", "Blue")
    }
    made = dataset(ramp(8), 8, PhotometricInterpretation="PALETTE COLOR", **tags)
    assert np.abs(grey(made) - (255 - ramp(8))).max() <= 1


@pytest.mark.parametrize(
    "name", ["SC_rgb_rle", "SC_rgb_jpeg_dcmtk", "SC_ybr_full_422_uncompressed"]
)
def test_a_colour_photograph_is_refused_in_dicom_too(name):
    data = sample(f"{name}.dcm")
    assert decode(data).reason == "not_grayscale"


# --- tags ----------------------------------------------------------------------------------------


def test_facts_are_the_headers_and_of_the_patient_only_what_is_allowed_stays():
    made = dataset(ramp(), PatientSex="F", PatientAge="058Y", ViewPosition="PA")
    facts = decode(made)
    assert (facts.format, facts.mode, facts.bits) == ("DICOM", "MONOCHROME2", 12)
    assert (facts.width, facts.height) == (SIDE, SIDE)
    assert (facts.sex, facts.age_years, facts.view) == ("F", 58, "PA")
    assert facts.patient_id == pseudonym("MRN-4711", SALT)
    assert not [secret for secret in SECRETS if secret in repr(facts)]


@pytest.mark.parametrize(
    ("salt", "patient_id"),
    [
        (None, "MRN-4711"),
        (SALT, None),
        *((SALT, word) for word in (" ", "NONE", "N/A", "Anonymous")),
    ],
)
def test_without_a_salt_or_an_id_there_is_no_patient(salt, patient_id):
    facts = decode(dataset(ramp(), PatientID=patient_id), salt)
    assert (facts.patient_id, facts.reason) == (None, None)


def test_values_that_are_not_known_here_are_unknown():
    facts = decode(dataset(ramp(), PatientSex="O", PatientAge="old", ViewPosition="LL"))
    assert (facts.sex, facts.age_years, facts.view, facts.reason) == (None, None, None, None)


@pytest.mark.parametrize("tag", ["PatientName", "PatientID", "InstitutionName"])
@pytest.mark.parametrize(
    ("field", "vr"),
    [
        ("Rows", "US"),
        ("NumberOfFrames", "IS"),
        ("PhotometricInterpretation", "CS"),
        ("PatientAge", "AS"),
    ],
)
def test_no_detail_repeats_a_value_wherever_it_stands(tag, field, vr):
    made = dataset(ramp())
    secret = str(made[tag].value)
    made[field] = pydicom.DataElement(field, "LO", secret)
    with warnings.catch_warnings(action="ignore"):
        facts = decode(made)
    assert secret not in repr(facts)


def test_reading_dicom_says_nothing_on_stderr_and_reading_others_does_not_import_pydicom(tmp_path):
    code = (
        "import sys; from cxr_spark import images; p = images.Preprocessing()\n"
        "images.decode(b'x' * 500, p); assert 'pydicom' not in sys.modules\n"
        "print([images.facts_of_file(path, p).reason for path in sys.argv[1:]])"
    )
    files = {name: sample(f"{name}.dcm") for name in ("badVR", "MR_small_padded", "JPEG-lossy")}
    for name in ("MR_small", "MR_small_RLE", "SC_rgb_jpeg_gdcm"):
        files[f"cut {name}"] = sample(f"{name}.dcm")[:-800]
    files["odd"] = written(dataset(ramp())).replace(
        b"1.2.840.10008.1.2.1\0", b"1.2.Doe^Jane\0\0\0\0\0\0\0\0"
    )
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    paths = [tmp_path / name for name in files]
    done = subprocess.run([sys.executable, "-c", code, *paths], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    expected = [
        "too_small",
        None,
        "unreadable",
        "truncated",
        "truncated",
        "truncated",
        "unreadable",
    ]
    assert done.stdout == f"{expected}\n"


def test_png_files_can_be_written_after_the_decoders_of_dicom_were_loaded():
    """GDCM's zlib takes the place of the system's unless that one is loaded before."""
    code = (
        "import cxr_spark.dicom, cv2, numpy\n"
        "wide = numpy.arange(9216, dtype='u2').reshape(96, 96)\n"
        "for _ in range(30): cv2.imencode('.png', wide)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


# --- reasons -------------------------------------------------------------------------------------


def refused(made: Dataset | bytes) -> tuple[str | None, str]:
    facts = decode(made)
    assert facts.pixels is None
    return facts.reason, facts.detail or ""


def test_more_than_one_frame_is_refused_before_decoding(monkeypatch):
    monkeypatch.setattr("cxr_spark.dicom.pixel_array", None)
    made = dataset(ramp(), NumberOfFrames=2)
    made.PixelData = made.PixelData * 2
    assert refused(made)[0] == "multi_frame"


def test_one_frame_that_is_said_to_be_one_is_no_reason():
    assert decode(dataset(ramp(), NumberOfFrames=1)).reason is None


def test_a_claim_of_too_many_pixels_is_refused_from_the_header(monkeypatch):
    monkeypatch.setattr("cxr_spark.dicom.pixel_array", None)
    assert refused(dataset(ramp(), Rows=60_000, Columns=60_000))[0] == "too_large"


def test_a_claim_that_no_table_holds_is_unknown():
    made = dataset(ramp())
    made["Rows"] = pydicom.DataElement("Rows", "UL", 2**32 - 1)
    facts = decode(made)
    assert (facts.reason, facts.width, facts.height) == ("too_large", SIDE, None)


def test_too_few_rows_are_too_small():
    assert refused(dataset(ramp(), Rows=31))[0] == "too_small"


@pytest.mark.parametrize("name", ["FloatPixelData", "DoubleFloatPixelData"])
def test_float_pixels_are_unreadable(name):
    made = dataset(ramp(), PixelData=None, **{name: bytes(8 * SIDE * SIDE)})
    assert refused(made) == ("unreadable", "float pixel data")


@pytest.mark.parametrize("value", ["nan", "inf", "1e400"])
@pytest.mark.parametrize("tag", ["RescaleSlope", "RescaleIntercept"])
def test_a_rescale_that_is_not_finite_is_unreadable(tag, value):
    made = dataset(ramp())
    made[tag] = pydicom.DataElement(tag, "DS", value, validation_mode=pydicom.config.IGNORE)
    assert refused(made) == ("unreadable", "a rescale that isn't finite")


def test_no_pixel_data_is_unreadable():
    assert refused(dataset(ramp(), PixelData=None)) == ("unreadable", "no pixel data")


def test_a_report_is_no_image():
    data = sample("test-SR.dcm")
    assert refused(data)[0] == "unreadable"


@pytest.mark.parametrize("kept", [0.3, 0.6, 0.99])
def test_a_file_that_ends_within_its_pixels_is_truncated_and_its_tags_are_kept(kept):
    made = dataset(ramp(), PatientSex="F")
    data = written(made)
    start = len(data) - len(made.PixelData)
    assert refused(data[: start + int(kept * len(made.PixelData))])[0] == "truncated"
    made.compress(uid.RLELossless)
    data = written(made)
    start = data.index(b"\xe0\x7f\x10\x00") + 12
    facts = decode(data[: start + int(kept * (len(data) - start))])
    assert (facts.reason, facts.width, facts.sex) == ("truncated", SIDE, "F")


def test_a_size_that_its_pixels_do_not_fill_is_truncated():
    assert refused(dataset(ramp(), Rows=SIDE + 1))[0] == "truncated"


@pytest.mark.parametrize(
    ("syntax", "name"),
    [
        (uid.JPEGExtended12Bit, "JPEG Extended"),
        (uid.HTJ2KLossless, "High-Throughput JPEG 2000"),
        (uid.MPEG2MPML, "MPEG2"),
        (uid.DeflatedExplicitVRLittleEndian, "Deflated"),
        (uid.UID("1.2.3.4711"), "unknown"),
    ],
)
def test_a_transfer_syntax_that_is_not_read_is_named(syntax, name):
    made = dataset(ramp())
    made.file_meta.TransferSyntaxUID = syntax
    if syntax.is_transfer_syntax and syntax.is_encapsulated:
        made.PixelData = encapsulate([b"\xff\xd8\xff\xd9"])
        made["PixelData"].is_undefined_length = True
    buffer = io.BytesIO()
    made.save_as(buffer, implicit_vr=False, little_endian=True, enforce_file_format=True)
    reason, detail = refused(buffer.getvalue())
    assert reason == "unreadable" and name in detail


@pytest.mark.parametrize(
    "tags",
    [
        {"PhotometricInterpretation": "HSV"},
        {"PhotometricInterpretation": None},
        {"BitsStored": 0},
        {"BitsStored": 32},
        {"BitsStored": None},
        {"BitsAllocated": 12},
        {"HighBit": 15},
        {"SamplesPerPixel": 2},
        {"PhotometricInterpretation": "RGB"},
    ],
)
def test_tags_that_make_no_sense_are_unreadable(tags):
    assert refused(dataset(ramp(), **tags))[0] == "unreadable"
