"""Images in, rows of predictions out: what is new is scored in pieces, each with a commit."""

import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime
from functools import partial, reduce
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import SparkSession
from pyspark.sql.pandas.types import from_arrow_schema

from cxr_spark import inference, prediction_rows, score_inputs, shares
from cxr_spark.images import Preprocessing
from cxr_spark.prediction_commits import Writer
from cxr_spark.run import Run
from cxr_spark.scored import Scored, first_of_each
from cxr_spark.scoring import Scoring
from cxr_spark.tables import Warehouse

# How long a piece should take: SIGTERM and --max-runtime end a run between two.
PIECE_SECONDS = 30.0
NEVER = datetime(1970, 1, 1, tzinfo=UTC)
# Of the first pieces, while nothing is known of the pace.
FIRST_PIECE_OF_A_CORE = 32
# The one that is waited for, and the next.
PIECES_AT_WORK = 2


def list_images(
    warehouse: Warehouse, scoring: Scoring, run: Run, split: str, version: int | None
) -> pa.Table:
    """The curated images of a split (or `all`); see `score_inputs.curated_images`.

    Args:
        version: of images; None: the published one.
    """
    at = warehouse.current("images") if version is None else version
    published = warehouse.published_with(at).versions
    run.versions_read |= {"images": at, "images_raw": published["images_raw"]}
    return score_inputs.curated_images(
        warehouse, at, published["images_raw"], split=split, card=scoring.card
    )


def score(
    spark: SparkSession, warehouse: Warehouse, listed: pa.Table, scoring: Scoring, run: Run
) -> None:
    """Score what the models haven't scored yet of what is listed, and commit it piece by piece.

    A file that is known by path, size and time is not opened; a content that is known gets its
    row without inference. Between two pieces the run may be stopped. What was scored longest ago
    comes first after what is new, so that a `--rescore` that was stopped goes on in its rerun.

    Args:
        listed: by `list_images` or `score_inputs.image_files`; an image that stands there twice is
            one image.
    """
    listed = first_of_each(listed, "image_id")
    versions = scoring.model_versions
    writer = Writer(warehouse, versions, run.run_id, may_repeat=scoring.rescore)
    known = [Scored.read(warehouse, version, writer.seen) for version in versions]
    last_scored = pc.fill_null(known[0].last_scored(listed), NEVER)
    listed = listed.append_column("last_scored_at", last_scored)
    if scoring.rescore:
        known = [Scored.read(warehouse, version, None) for version in versions]
    settled = score_inputs.is_settled(listed, datetime.now(UTC))
    is_file = pc.is_null(listed["images_version"])
    unstable = pc.and_(is_file, pc.invert(settled))
    todo = _todo(listed.filter(pc.invert(unstable)), known, scoring)
    run.counts |= {"listed": len(listed), "unstable": pc.sum(unstable).as_py() or 0}
    run.counts["skipped"] = len(listed) - len(todo) - run.counts["unstable"]
    run.say(f"{len(todo):,} of {len(listed):,} to score with {', '.join(versions)}")
    Pass(spark, scoring, known, writer, run).score(todo)


def _todo(listed: pa.Table, known: Sequence[Scored], scoring: Scoring) -> pa.Table:
    """The images that lack a row, those first that need no inference.

    Beside the columns of what is listed but `last_scored_at`: `lacks_0`, ... by model version;
    `asks_0`, ... by model, whether its answer is needed, for a row of its own or the ensemble's;
    `is_work`, whether any is.
    """
    lacks = [pc.invert(one.holds(listed)) for one in known]
    todo = listed
    for number, column in enumerate(lacks):
        todo = todo.append_column(f"lacks_{number}", column)
    todo = todo.filter(reduce(pc.or_, lacks))
    content = reduce(pc.coalesce, [one.content_of(todo) for one in known], todo["content_sha256"])
    todo = todo.set_column(todo.column_names.index("content_sha256"), "content_sha256", content)
    asks = []
    for number in range(len(scoring.models)):
        wanted = todo[f"lacks_{number}"]
        if scoring.ensemble:
            wanted = pc.or_(wanted, todo[f"lacks_{len(scoring.models)}"])
        asks.append(pc.and_(wanted, pc.invert(known[number].has_answer(content))))
        todo = todo.append_column(f"asks_{number}", asks[-1])
    todo = todo.append_column("is_work", reduce(pc.or_, asks))
    order = ("is_work", "last_scored_at", "part", "image_id")
    return todo.sort_by([(name, "ascending") for name in order]).drop_columns(["last_scored_at"])


class Pass:
    """One pass over what is to be scored: the pace, and what has been found so far."""

    def __init__(
        self,
        spark: SparkSession,
        scoring: Scoring,
        known: Sequence[Scored],
        writer: Writer,
        run: Run,
    ) -> None:
        self.spark, self.scoring, self.known = spark, scoring, known
        self.writer, self.run = writer, run
        self.cores = spark.sparkContext.defaultParallelism
        context = spark.sparkContext
        self.meters = inference.Meters(
            context.accumulator(0.0),
            context.accumulator(0.0),
            context.accumulator(0),
            context.accumulator(0),
        )
        self.worked, self.write_seconds = 0, 0.0

    def score(self, todo: pa.Table) -> None:
        """Score it in pieces, and count."""
        self.run.counts |= {"scored": 0, "errors": 0, "left": len(todo)}
        if len(todo):
            self.writer.prepare()
            self.run.progress(0, len(todo), "images")  # from here on the pace counts
        began, done = time.perf_counter(), 0
        with self.run.safe_points(), closing(self._findings(todo)) as findings:
            for piece, found in findings:
                self._write(piece, found)
                done += len(piece)
                self.run.counts["left"] = len(todo) - done
                self._count(time.perf_counter() - began)
                self.run.progress(done, len(todo), "images")
            self._count(time.perf_counter() - began)

    def _findings(self, todo: pa.Table) -> Generator[tuple[pa.Table, pa.Table], None, None]:
        """Each piece, and what workers find of it.

        A piece is handed to Spark while the one before is at work: its tasks take the cores that
        the last tasks of the other leave free. A run that is stopped leaves it undone.
        """
        at_work: deque[tuple[pa.Table, Future[pa.Table]]] = deque()
        started = 0
        with ThreadPoolExecutor(PIECES_AT_WORK) as threads:
            try:
                while started < len(todo) or at_work:
                    self.run.end_if_stopped()
                    while started < len(todo) and len(at_work) < PIECES_AT_WORK:
                        ahead = sum(len(piece) for piece, _ in at_work)
                        piece = self._next_piece(todo.slice(started), ahead)
                        at_work.append((piece, threads.submit(self._finder(piece))))
                        started += len(piece)
                    piece, found = at_work.popleft()
                    yield piece, found.result()
            finally:
                self.spark.sparkContext.cancelJobsWithTag(self.run.run_id)

    def _next_piece(self, todo: pa.Table, ahead: int) -> pa.Table:
        """What needs no inference by --commit-every, then the rest as the pace allows."""
        images = self.scoring.commit_every
        without = len(todo) - (pc.sum(todo["is_work"]).as_py() or 0)
        return todo.slice(0, min(images, without or self.images_of_a_piece(ahead)))

    def images_of_a_piece(self, ahead: int = 0) -> int:
        """As many as the time left allows, after so many that are at work already."""
        least = FIRST_PIECE_OF_A_CORE * self.cores
        if not self.worked:
            return least
        spent = self.meters.decode_seconds.value + self.meters.model_seconds.value
        pace = self.cores * self.worked / max(spent, 1e-6)
        seconds = min(PIECE_SECONDS, self.run.seconds_left - ahead / pace)
        return max(least, int(seconds * pace))

    def _write(self, piece: pa.Table, found: pa.Table) -> None:
        """Commit the rows of a piece."""
        assert len(found) == len(piece), (len(found), len(piece))
        if piece["is_work"][-1].as_py():
            self.worked += len(piece)
        rows = list(self._rows(piece, found))
        began = time.perf_counter()
        if rows and (version := self.writer.append(rows)) is not None:
            self.run.versions_written["predictions"] = version
        self.write_seconds += time.perf_counter() - began

    def _finder(self, piece: pa.Table) -> Callable[[], pa.Table]:
        """What finds in a thread what there is of a piece, in its order."""
        if not piece["is_work"][-1].as_py():
            return partial(_nothing_found, piece, len(self.scoring.models))
        known = [one.contents() for one in self.known[: len(self.scoring.models)]]
        bounds = shares.cut(len(piece), self.cores)
        broadcast = self.spark.sparkContext.broadcast(tuple(known))
        plan = inference.Plan(
            piece.drop_columns(["is_work"]).combine_chunks(),
            bounds,
            tuple((model.folder, model.card.model_version) for model in self.scoring.models),
            Preprocessing.from_json(self.scoring.card.preprocessing),
            self.scoring.engine,
            broadcast,
            self.meters,
        )
        schema = inference.found_schema(len(self.scoring.models))
        score_share = partial(inference.score_share, plan=plan)
        found = shares.tasks(self.spark, bounds).mapInArrow(score_share, from_arrow_schema(schema))

        def find() -> pa.Table:
            self.spark.sparkContext.addJobTag(self.run.run_id)
            try:
                return found.toArrow().sort_by("number")
            finally:
                broadcast.destroy()

        return find

    def _rows(self, piece: pa.Table, found: pa.Table) -> Iterator[dict[str, Any]]:
        """The rows of predictions of a piece, by image and model version; counts the images."""
        findings = found.to_pylist()
        said_by = prediction_rows.answers(findings, self.known, self.scoring)
        of_run = {
            "preprocessing": self.scoring.card.preprocessing_fingerprint,
            "scored_at": datetime.now(UTC),
            "run_id": self.run.run_id,
        }
        for image, finding in zip(piece.to_pylist(), findings, strict=True):
            if finding["reason"] == inference.UNSTABLE.reason:
                self.run.counts["unstable"] += 1
                continue
            rows = list(prediction_rows.rows_of(image, finding, said_by, self.known))
            self.run.counts["scored" if rows else "skipped"] += 1
            is_error = finding["reason"] is not None or any("error" in row for row in rows)
            self.run.counts["errors"] += is_error
            yield from (row | of_run for row in rows)

    def _count(self, seconds: float) -> None:
        meters, counts = self.meters, self.run.counts
        counts |= {
            "inferred": meters.inferred.value,
            "model_loads": meters.model_loads.value,
            "decode_seconds": round(meters.decode_seconds.value, 3),
            "model_seconds": round(meters.model_seconds.value, 3),
            "write_seconds": round(self.write_seconds, 3),
            "images_per_second": round(counts["scored"] / seconds, 2),
        }


def _nothing_found(piece: pa.Table, models: int) -> pa.Table:
    """Of images whose contents all models know: nothing beyond the content."""
    found = pa.Table.from_pylist([{}] * len(piece), inference.found_schema(models))
    return found.set_column(1, "content_sha256", piece["content_sha256"])
