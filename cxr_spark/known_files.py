"""What is known of files, some hundred bytes each, is matched on the driver as Arrow tables.

A file is known by its image_id, size and modification time; what decoding found of its content, by
the content's hash. Both are looked up here; nothing is read.
"""

import pyarrow as pa
import pyarrow.compute as pc

from cxr_spark import tables
from cxr_spark.images import Preprocessing
from cxr_spark.reasons import UNREAD_UNTIL_CHANGED
from cxr_spark.sources import ListedFile
from cxr_spark.tables import Warehouse

# An image_id with this size and time is the same file as when it was read.
SAME_FILE = ("image_id", "size_bytes", "modified_at")
# The only one that a file may have that has been read before.
REASON_OF_LISTING = "not_in_manifest"
FACTS = ("format", "width", "height", "mode", "bits", "pixel_sha256", "perceptual_hash")
# What a DICOM file says of itself counts where the source says nothing.
OF_THE_FILE = ("patient_id", "view", "sex", "age_years")
WHY = ("reason", "detail")
# Of pixels, what the driver knows of each content.
NARROW = (*SAME_FILE, "content_sha256", "preprocessing", *FACTS, *OF_THE_FILE, *WHY)
# Of images_raw, what tells whether a file has to be read.
KNOWN = (*SAME_FILE, "content_sha256", *WHY)


def published_files(warehouse: Warehouse, version: int | None) -> pa.Table:
    """Returns images_raw at a version, without run_id; no rows if there is no version."""
    schema = _schema_of_files()
    if version is None:
        return schema.empty_table()
    return warehouse.read_arrow("images_raw", schema.names, version)


def decoded_contents(warehouse: Warehouse, preprocessing: Preprocessing) -> pa.Table:
    """Returns `NARROW` of each content that was decoded with this preprocessing."""
    if not warehouse.exists("pixels"):
        return nothing_decoded()
    pixels = warehouse.read_arrow("pixels", NARROW)
    return pixels.filter(pc.equal(pixels["preprocessing"], preprocessing.fingerprint()))


def nothing_decoded() -> pa.Table:
    """Returns `NARROW` of no content."""
    return tables.arrow_schema("pixels", NARROW).empty_table()


def nothing_known() -> pa.Table:
    """Returns `KNOWN` of no file."""
    return tables.arrow_schema("images_raw", KNOWN).empty_table()


def files_of_all_sources(listed: list[ListedFile], published: pa.Table) -> pa.Table:
    """Returns the listed files, and those of sources that nobody listed now, as last listed."""
    rows = [
        file._asdict() | {"boxes": [box._asdict() for box in file.boxes] or None} for file in listed
    ]
    schema = tables.arrow_schema("images_raw", ListedFile._fields)
    files = pa.Table.from_pylist(rows, schema)
    is_listed = pc.is_in(published["source"], files["source"].combine_chunks().unique())
    unlisted = published.filter(pc.invert(is_listed))
    # A reason that came from decoding is found again with the content.
    is_of_decoding = pc.and_(
        pc.is_valid(unlisted["content_sha256"]), pc.not_equal(unlisted["reason"], REASON_OF_LISTING)
    )
    unlisted = _without_reasons(unlisted, is_of_decoding).select(files.column_names)
    return pa.concat_tables([files, unlisted.cast(schema)])


def files_read_before(published: pa.Table, decoded: pa.Table) -> pa.Table:
    """Returns `KNOWN` of files that need no reading: of known contents, by the last run or by a
    killed one, and those that can't be read until they change."""
    is_read = pc.is_in(published["content_sha256"], decoded["content_sha256"].combine_chunks())
    is_read = pc.and_(is_read, pc.is_valid(published["content_sha256"]))
    is_unread = pc.is_in(published["reason"], pa.array(UNREAD_UNTIL_CHANGED))
    # Listing tells its reasons anew, and those of decoding are the content's.
    known = _without_reasons(published, is_read)
    of_last_run = known.filter(pc.or_(is_read, is_unread)).select(KNOWN)
    return pa.concat_tables([of_last_run, decoded.select(KNOWN).cast(of_last_run.schema)])


def files_to_read(files: pa.Table, known: pa.Table) -> pa.Table:
    """Returns the files, by image_id, that listing has nothing against and nobody has read yet."""
    is_new = pc.invert(pc.is_in(_file_keys(files), _file_keys(known)))
    return files.filter(pc.and_(pc.is_null(files["reason"]), is_new)).sort_by("image_id")


def with_facts(files: pa.Table, known: pa.Table, decoded: pa.Table) -> pa.Table:
    """Returns the files, by image_id, with their contents' facts; a reason of listing comes first.

    Args:
        files: from `files_of_all_sources`.
        known: `KNOWN` of every file that was read.
        decoded: `NARROW` of every content.
    """
    of_file = known.take(_places(_file_keys(files), _file_keys(known)))
    contents = of_file["content_sha256"]
    of_content = decoded.take(_places(contents, decoded["content_sha256"]))
    columns = {name: files[name] for name in files.column_names}
    columns |= {"content_sha256": contents} | {name: of_content[name] for name in FACTS}
    for name in OF_THE_FILE:
        columns[name] = pc.coalesce(files[name], of_content[name])
    for name in WHY:
        columns[name] = pc.coalesce(files[name], of_file[name], of_content[name])
    schema = _schema_of_files()
    found = pa.table({name: columns[name] for name in schema.names}, schema)
    return found.sort_by("image_id")


def _schema_of_files() -> pa.Schema:
    """That of images_raw, without run_id."""
    names = [name for name in tables.schema("images_raw").names if name != "run_id"]
    return tables.arrow_schema("images_raw", names)


def _without_reasons(files: pa.Table, where: pa.ChunkedArray) -> pa.Table:
    for name in WHY:
        why = pc.if_else(where, pa.scalar(None, pa.string()), files[name])
        files = files.set_column(files.column_names.index(name), name, why)
    return files


def _file_keys(files: pa.Table) -> pa.ChunkedArray:
    """One string a file that says which file it is, in which state; null where that isn't known."""
    moment = pc.cast(pc.cast(files["modified_at"], pa.int64()), pa.string())
    size = pc.cast(files["size_bytes"], pa.string())
    return pc.binary_join_element_wise(size, moment, files["image_id"], " ")


def _places(values: pa.ChunkedArray, among: pa.ChunkedArray) -> pa.ChunkedArray:
    """Where each value stands first; null where it doesn't, or isn't known."""
    return pc.index_in(values, value_set=among.combine_chunks(), skip_nulls=True)
