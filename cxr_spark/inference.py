"""The worker's side of scoring: a task's images decoded, run through the models, told as rows."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from hashlib import sha256
from itertools import groupby, islice
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pyspark import Accumulator, Broadcast, TaskContext

from cxr_spark import delta, engines, isolation, shares
from cxr_spark.images import Facts, Preprocessing, decode, dicom_uids, read_file
from cxr_spark.listing import look_at

# A younger file that can't be decoded may be half written, by a sender who has paused.
WHOLE_AFTER_SECONDS = 60.0
UNSTABLE = Facts(reason="unstable")
PIXELS = pa.schema([("image_id", pa.string()), ("pixels", pa.binary())])
FOUND = ("content_sha256", "sop_instance_uid", "study_instance_uid", "reason", "detail")

Row = Mapping[str, Any]


class Meters(NamedTuple):
    """What workers count, over all tasks."""

    decode_seconds: Accumulator[float]
    model_seconds: Accumulator[float]
    inferred: Accumulator[int]
    model_loads: Accumulator[int]


class Plan(NamedTuple):
    """What workers are sent.

    Attributes:
        piece: the images, columns of `score_inputs.listed_schema` and, for each model, `asks_0`,
            `asks_1`, ...: whether the model's answer is needed.
        bounds: where each task's share of the piece begins, and the end.
        models: folder and model_version of each.
        preprocessing: theirs.
        engine: one of `engines.ENGINES`.
        known: by model, the contents that need no inference, sorted, 32 bytes each.
        meters: to count on.
    """

    piece: pa.Table
    bounds: list[int]
    models: tuple[tuple[str, str], ...]
    preprocessing: Preprocessing
    engine: str
    known: Broadcast[tuple[NDArray[np.bytes_], ...]]
    meters: Meters

    def asked(self, row: Row) -> list[int]:
        """The models whose answer an image needs."""
        return [model for model in range(len(self.models)) if row[f"asks_{model}"]]

    def is_known(self, content: str, model: int) -> bool:
        """Whether a model has scored a content before."""
        known, digest = self.known.value[model], np.array(bytes.fromhex(content), "S32")
        place = int(np.searchsorted(known, digest))
        return place < len(known) and bool(known[place] == digest)

    def is_answered(self, row: Row, content: str) -> bool:
        """Whether all models whose answer an image needs have scored its content before."""
        return all(self.is_known(content, model) for model in self.asked(row))


class Image(NamedTuple):
    """A row of the piece, and what was found in its place."""

    row: Row
    facts: Facts


Answers = dict[tuple[int, str], NDArray[np.float64]]
"""Probabilities by model and content."""


def found_schema(models: int) -> pa.Schema:
    """What tasks tell of each image: its number in the piece, what was found, what models say."""
    answers = [pa.field(f"model_{i}", pa.list_(pa.float64())) for i in range(models)]
    texts = [pa.field(name, pa.string()) for name in FOUND]
    return pa.schema([pa.field("number", pa.int64()), *texts, *answers])


def score_share(batches: Iterator[pa.RecordBatch], plan: Plan) -> Iterator[pa.RecordBatch]:
    """Score a task's share of a piece.

    A model answers null where it wasn't asked, or has scored the content before.

    Args:
        batches: of the column `id`, the number of the share.
        plan: what to do.

    Yields:
        Columns of `found_schema`. An unreadable image has a `reason`: `unstable` if it should be
        looked at again another time.
    """
    isolation.settle_worker()
    schema = found_schema(len(plan.models))
    through = engines.in_turn
    if engines.resolve(plan.engine) == "torch":
        through = engines.decoding_ahead
        for model in range(len(plan.models)):  # not beside decoding, whose memory is limited
            _loaded(model, plan)
    for start, rows in shares.of_task(batches, plan.piece, plan.bounds):
        infer = partial(_infer, plan=plan, seen={})
        numbered: list[Row] = [{**row, "number": start + at} for at, row in enumerate(rows)]
        for images, answers in through(_decoded(numbered, plan), infer):
            told = [_told(image, answers, plan) for image in images]
            yield pa.RecordBatch.from_pylist(told, schema)


def _told(image: Image, answers: Answers, plan: Plan) -> dict[str, Any]:
    facts = image.facts._asdict()
    said = {
        f"model_{model}": answers.get((model, image.facts.content_sha256 or ""))
        for model in plan.asked(image.row)
    }
    return {"number": image.row["number"]} | {name: facts[name] for name in FOUND} | said


def _decoded(rows: list[Row], plan: Plan) -> Iterator[list[Image]]:
    """The images in batches for the network."""
    at_once = engines.images_at_once(plan.preprocessing.size)
    images = _images(rows, plan.preprocessing, plan.is_answered)
    while True:
        began = time.perf_counter()
        batch = list(islice(images, at_once))
        plan.meters.decode_seconds.add(time.perf_counter() - began)
        if not batch:
            return
        yield batch


def read_share(
    batches: Iterator[pa.RecordBatch],
    piece: pa.Table,
    bounds: list[int],
    preprocessing: Preprocessing,
) -> Iterator[pa.RecordBatch]:
    """Read a task's share of a piece, without a model.

    Args:
        batches: of the column `id`, the number of the share.
        piece, bounds, preprocessing: as in Plan.

    Yields:
        The columns of PIXELS, of those images that are still what the piece says; their content
        stands for the image_id.
    """
    isolation.settle_worker()
    for _, rows in shares.of_task(batches, piece, bounds):
        found = [
            {"image_id": facts.content_sha256, "pixels": facts.pixels}
            for row, facts in _images(rows, preprocessing, _never)
            if facts.pixels is not None and facts.content_sha256 == row["content_sha256"]
        ]
        yield pa.RecordBatch.from_pylist(found, PIXELS)


def _never(row: Row, content: str) -> bool:
    return False


def _images(
    rows: Sequence[Row], preprocessing: Preprocessing, is_answered: Callable[[Row, str], bool]
) -> Iterator[Image]:
    for part, members in groupby(rows, key=lambda row: row["part"]):
        if part is None:
            yield from _of_files(list(members), preprocessing, is_answered)
        else:
            yield from _of_part(part, list(members))


def _of_part(part: str, rows: list[Row]) -> Iterator[Image]:
    """Curated images, whose pixels are in a file of the images table."""
    content = delta.read_part(part, PIXELS)
    wanted = pa.array([row["image_id"] for row in rows])
    places = pc.index_in(wanted, content["image_id"].combine_chunks())
    pixels = content["pixels"].take(places)
    for row, square in zip(rows, pixels, strict=True):
        yield Image(row, Facts(row["content_sha256"], pixels=square.as_py()))


def _of_files(
    rows: Sequence[Row], preprocessing: Preprocessing, is_answered: Callable[[Row, str], bool]
) -> Iterator[Image]:
    """Files, read and decoded; what listing has shown to be unreadable isn't opened."""
    readable = {row["path"]: row for row in rows if row["reason"] is None}
    context = TaskContext.get()
    # An attempt before this one may have died of one of these images.
    isolated = context is not None and context.attemptNumber() > 0
    tell = partial(_facts, rows=readable, preprocessing=preprocessing, is_answered=is_answered)
    found = isolation.decode_files(readable, tell, isolated=isolated)
    for row in rows:
        if row["reason"] is not None:
            yield Image(row, Facts(reason=row["reason"], detail=row["detail"]))
            continue
        facts = next(found)
        yield Image(row, UNSTABLE if facts.reason and _is_young(row) else facts)


def _facts(
    path: str,
    rows: Mapping[str, Row],
    preprocessing: Preprocessing,
    is_answered: Callable[[Row, str], bool],
) -> Facts:
    """Read and decode a file; one whose content is answered already isn't decoded."""
    row = rows[path]
    if not _is_as_listed(row):
        return UNSTABLE
    data, reason, detail = read_file(path)
    if not _is_as_listed(row):
        return UNSTABLE
    if data is None:
        return Facts(reason=reason, detail=detail)
    content = sha256(data).hexdigest()
    if is_answered(row, content):
        return Facts(content, **dicom_uids(data))
    return decode(data, preprocessing)


def _is_as_listed(row: Row) -> bool:
    now = look_at("/", row["path"].lstrip("/"), "/")
    return (now.size_bytes, now.modified_at) == (row["size_bytes"], row["modified_at"])


def _is_young(row: Row) -> bool:
    age = datetime.now(UTC) - row["modified_at"]
    return abs(age.total_seconds()) < WHOLE_AFTER_SECONDS


def _infer(images: list[Image], plan: Plan, seen: Answers) -> Answers:
    """Run the models on the contents that they haven't seen, each once; `seen` grows by them."""
    for model in range(len(plan.models)):
        new = {
            image.facts.content_sha256: image.facts.pixels
            for image in images
            if image.facts.pixels is not None
            and model in plan.asked(image.row)
            and (model, image.facts.content_sha256) not in seen
            and not plan.is_known(image.facts.content_sha256 or "", model)
        }
        if not new:
            continue
        size = plan.preprocessing.size
        pixels = np.frombuffer(b"".join(new.values()), np.uint8).reshape(-1, size, size)
        predict = _loaded(model, plan)
        began = time.perf_counter()
        answers = predict(pixels)
        plan.meters.model_seconds.add(time.perf_counter() - began)
        plan.meters.inferred.add(len(new))
        seen |= {(model, str(key)): row for key, row in zip(new, answers, strict=True)}
    return seen


# Of this worker process: its models, kept from task to task.
_models: dict[tuple[str, str, str], engines.Predict] = {}


def _loaded(model: int, plan: Plan) -> engines.Predict:
    engine = engines.resolve(plan.engine)
    wanted = {(folder, engine, version) for folder, version in plan.models}
    for key in _models.keys() - wanted:
        del _models[key]
    folder, version = plan.models[model]
    key = (folder, engine, version)
    if key not in _models:
        _models[key] = engines.load(*key)
        plan.meters.model_loads.add(1)
    return _models[key]
