"""Files to images_raw and pixels: executors read and decode each new file once, in pieces.

What is large is read, decoded and written by executors, and passes neither through the driver nor
through a JVM; what is known of files is matched in `known_files`.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
from pyspark import TaskContext
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql import types as T
from pyspark.sql.pandas.types import to_arrow_schema

from cxr_spark import commits, delta, isolation, known_files, shares, staging, tables
from cxr_spark.file_scan import scan
from cxr_spark.images import Facts, Preprocessing, facts_of_file
from cxr_spark.isolation import decode_files
from cxr_spark.known_files import KNOWN, NARROW, SAME_FILE
from cxr_spark.manifest import list_manifest
from cxr_spark.run import Run
from cxr_spark.sources import ListedFile, list_source
from cxr_spark.tables import Warehouse

# Files decoded between two commits: what a kill costs at most.
PIECE_FILES = 2_000
PART_BYTES = 16 << 20


@dataclass(frozen=True)
class Reading:
    """How files are read.

    Attributes:
        preprocessing: what becomes of the pixels.
        salt: under which patient ids of DICOM files are hashed; None: they aren't kept.
        piece_files: files decoded between two commits.
        afresh: decode all files again, as if nothing were known of them.
    """

    preprocessing: Preprocessing
    salt: bytes | None = None
    piece_files: int = PIECE_FILES
    afresh: bool = False


class Ingested(NamedTuple):
    """Every file of every source with its facts; `staged` waits for its commit if it changed.

    `seen` is the newest version of images_raw when what is published was read.
    """

    images_raw: DataFrame
    staged: staging.Staged | None
    seen: int


def list_sources(
    folders: Mapping[str, str | Path], manifests: Mapping[str, str | Path], salt: bytes
) -> list[ListedFile]:
    """List the files of the named sources on the driver, without reading images.

    Args:
        folders: by name of one of the public sources.
        manifests: files that list images, by the name of a source of one's own.
        salt: under which a manifest's patient ids are hashed.

    Raises:
        SourceError: a folder is missing or hasn't the source's layout, or a manifest has not.
    """
    listed = [file for name, folder in folders.items() for file in list_source(name, Path(folder))]
    for name, path in manifests.items():
        listed += list_manifest(name, path, salt)
    return listed


def ingest(
    spark: SparkSession,
    warehouse: Warehouse,
    listed: list[ListedFile],
    reading: Reading,
    run: Run,
) -> Ingested:
    """Bring images_raw and pixels up to date with what is listed.

    A file that is known by image_id, size and modification time, and whose content was decoded
    with the same preprocessing, is not opened. Sources that are not listed keep their rows.
    pixels is committed piece by piece; images_raw is staged for the caller to commit, unless
    nothing changed.
    """
    seen, version = warehouse.seen("images_raw"), warehouse.published().get("images_raw")
    published = known_files.published_files(warehouse, version)
    files = known_files.files_of_all_sources(listed, published)
    if reading.afresh:
        decoded, known = known_files.nothing_decoded(), known_files.nothing_known()
    else:
        decoded = known_files.decoded_contents(warehouse, reading.preprocessing)
        known = known_files.files_read_before(published, decoded)
    pending = known_files.files_to_read(files, known)
    _count_changes(files, published, pending, run)
    read = _decode_in_pieces(spark, warehouse, pending, decoded, reading, run)
    decoded = pa.concat_tables([decoded, read.filter(pc.is_valid(read["content_sha256"]))])
    known = pa.concat_tables([known, read.select(KNOWN)])
    images_raw = known_files.with_facts(files, known, decoded)
    if version is not None and images_raw.equals(published.sort_by("image_id")):
        return Ingested(warehouse.read(spark, "images_raw", version), None, seen)
    run_id = pa.array([run.run_id] * len(images_raw), pa.string())
    staged = warehouse.stage_arrow("images_raw", images_raw.append_column("run_id", run_id))
    return Ingested(delta.read_staged(spark, staged), staged, seen)


def _count_changes(files: pa.Table, published: pa.Table, pending: pa.Table, run: Run) -> None:
    stay = pc.sum(pc.is_in(published["image_id"], files["image_id"].combine_chunks())).as_py()
    vanished = len(published) - (stay or 0)
    run.counts |= {"listed": len(files), "decoded": len(pending), "vanished": vanished}
    run.say(
        f"{len(files):,} files listed, {len(pending):,} to read and decode"
        + (f", {vanished:,} of the last run are gone" if vanished else "")
    )


def _decode_in_pieces(
    spark: SparkSession,
    warehouse: Warehouse,
    pending: pa.Table,
    decoded: pa.Table,
    reading: Reading,
    run: Run,
) -> pa.Table:
    """Decode and commit piece by piece; the files read and what was found, columns `NARROW`."""
    there = decoded["content_sha256"].combine_chunks()
    pieces = [known_files.nothing_decoded()]
    mode = "overwrite" if reading.afresh else "append"
    if len(pending):
        run.progress(0, len(pending), "files")  # from here on the pace counts
    for sequence, start in enumerate(range(0, len(pending), reading.piece_files)):
        piece = pending.slice(start, reading.piece_files).select(["path", *SAME_FILE])
        staged, read = _staged_piece(spark, warehouse, piece, there, reading, run.run_id)
        if staged is not None:
            run.versions_written["pixels"] = commits.commit(
                staged, run_id=run.run_id, mode=mode, sequence=sequence
            )
            mode = "append"
        there = pa.concat_arrays([there, read["content_sha256"].combine_chunks().drop_null()])
        pieces.append(read)
        run.progress(start + len(piece), len(pending), "files")
    return pa.concat_tables(pieces)


def _staged_piece(
    spark: SparkSession,
    warehouse: Warehouse,
    piece: pa.Table,
    there: pa.Array,
    reading: Reading,
    run_id: str,
) -> tuple[staging.Staged | None, pa.Table]:
    """Decode a piece in one pass, and stage what pixels hasn't got; also what was found, narrow.

    Executors write the pixels themselves, so that these never pass through the JVM. All is written
    before any of it is looked at; contents that are there already are left out by writing once
    more those few of the files that hold one.
    """
    path, contract = warehouse.path("pixels"), tables.contract("pixels")
    bounds = shares.cut(len(piece), spark.sparkContext.defaultParallelism)
    decode = partial(
        _decode_to_part,
        piece=piece.combine_chunks(),
        bounds=bounds,
        folder=staging.new_folder(path),
        reading=reading,
        run_id=run_id,
    )
    found = shares.tasks(spark, bounds).mapInArrow(decode, _found_schema()).toArrow()
    read = found.select(NARROW).cast(tables.arrow_schema("pixels", NARROW))
    new = _first_of_new_contents(read, there)
    if not len(new):
        return None, read
    is_written = pc.is_valid(found["part"])
    is_old = pc.and_(is_written, pc.invert(pc.is_in(found["image_id"], new)))
    mixed = set(found["part"].filter(is_old).to_pylist())
    parts = set(found["part"].filter(is_written).to_pylist())
    staged = staging.stage_parts(sorted(parts), contract)
    if not mixed:
        return staged, read
    some = scan(spark, [f for f in staged.files if f.path in mixed], contract.schema)
    wanted = F.broadcast(spark.createDataFrame(pa.table({"image_id": new})))
    again = staging.stage(some.join(wanted, on="image_id", how="left_semi"), path, contract)
    kept = [file for file in staged.files if file.path not in mixed]
    return staged._replace(files=kept + [file for file in again.files if file.num_rows]), read


def _first_of_new_contents(read: pa.Table, there: pa.Array) -> pa.Array:
    """The image_id of one file for each content that isn't there yet."""
    is_new = pc.invert(pc.is_in(read["content_sha256"], there))
    new = read.filter(pc.and_(is_new, pc.is_valid(read["content_sha256"])))
    files = new.select(["content_sha256", "image_id"]).to_pandas().sort_values("image_id")
    return pa.array(files.drop_duplicates("content_sha256")["image_id"], pa.string())


def _found_schema() -> T.StructType:
    pixels = tables.schema("pixels")
    return T.StructType([*(pixels[name] for name in NARROW), T.StructField("part", T.StringType())])


def _decode_to_part(
    batches: Iterator[pa.RecordBatch],
    piece: pa.Table,
    bounds: list[int],
    folder: str,
    reading: Reading,
    run_id: str,
) -> Iterator[pa.RecordBatch]:
    """Decode a task's share of a piece, write what has a content, and yield what was found."""
    isolation.settle_worker()
    files = [file for _, rows in shares.of_task(batches, piece, bounds) for file in rows]
    preprocessing = reading.preprocessing
    of_all = {
        "preprocessing": preprocessing.fingerprint(),
        "image_size": preprocessing.size,
        "run_id": run_id,
    }
    decode = partial(facts_of_file, preprocessing=preprocessing, salt=reading.salt)
    rows_at_once = max(1, PART_BYTES // preprocessing.size**2)
    for start in range(0, len(files), rows_at_once):
        some = files[start : start + rows_at_once]
        rows = pa.Table.from_pylist(
            [
                file | facts | of_all
                for file, facts in zip(some, _decoded(some, decode), strict=True)
            ],
            to_arrow_schema(tables.schema("pixels")),
        )
        with_content = rows.filter(pc.is_valid(rows["content_sha256"]))
        part = staging.write_part(with_content, folder) if len(with_content) else None
        parts = pc.if_else(pc.is_valid(rows["content_sha256"]), pa.scalar(part, pa.string()), None)
        yield from rows.select(NARROW).append_column("part", parts).to_batches()


def _decoded(
    files: list[dict[str, Any]], decode: Callable[[str], Facts]
) -> Iterator[dict[str, Any]]:
    context = TaskContext.get()
    # An attempt before this one may have died of one of these images.
    isolated = context is not None and context.attemptNumber() > 0
    found = decode_files([file["path"] for file in files], decode, isolated=isolated)
    return (facts._asdict() for facts in found)
