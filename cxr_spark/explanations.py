"""Where models look in chosen images: Grad-CAM overlays as PNG files beside the predictions."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.pandas.types import from_arrow_schema

from cxr_spark import arrow_batches, engines, explain, inference, shares
from cxr_spark.images import Preprocessing
from cxr_spark.run import Run
from cxr_spark.scored import Scored
from cxr_spark.scoring import Model, Scoring, ScoringError
from cxr_spark.tables import Warehouse
from cxr_spark.whole_files import replaced

FOLDER = "explanations"
ALL = "all"
# Of a piece, between two of which a run may stop, and whose overlays the driver holds at once.
BATCHES_OF_A_PIECE = 16


def choose(listed: pa.Table, names: Sequence[str]) -> pa.Table:
    """The images that are to be explained.

    Args:
        listed: columns of `score_inputs.listed_schema`.
        names: image ids, or names as a submission has them; or `all`.

    Raises:
        ScoringError: a name that isn't among them.
    """
    if ALL in names:
        return listed
    wanted = pa.array(names, pa.string())
    known = pc.or_(pc.is_in(wanted, listed["image_id"]), pc.is_in(wanted, listed["name"]))
    if unknown := wanted.filter(pc.invert(known)).to_pylist():
        raise ScoringError(
            f"--explain {unknown[0]}: none of the {len(listed):,} images listed; give an image_id, "
            f"a path below --input or as --paths has it, or {ALL}"
        )
    return listed.filter(
        pc.or_(pc.is_in(listed["image_id"], wanted), pc.is_in(listed["name"], wanted))
    )


def place(warehouse: Warehouse, model_version: str, content_sha256: str) -> Path:
    """The PNG of an image: what links it to predictions are these two columns."""
    return warehouse.root / FOLDER / model_version / f"{content_sha256}.png"


def write(
    spark: SparkSession, warehouse: Warehouse, chosen: pa.Table, scoring: Scoring, run: Run
) -> None:
    """Write the overlays of chosen images, each with the heat of the class that was predicted.

    One that is there already stays. An image without probabilities has none; neither has an
    ensemble, whose models look each for themselves. Between two pieces the run may be stopped.

    Args:
        spark: the session; its workers need torch.
        warehouse: holds the predictions; `explanations/<model_version>/<content_sha256>.png`
            appear in its folder.
        chosen: by `choose`.
        scoring: with which models.
        run: is told where they are, and how many.
    """
    at = warehouse.version("predictions")
    run.counts["explained"] = 0
    with run.safe_points():
        for model in scoring.models:
            known = Scored.read(warehouse, model.card.model_version, at)
            todo = _todo(warehouse, chosen, known, rescore=scoring.rescore)
            at_once = BATCHES_OF_A_PIECE * engines.images_at_once(model.card.image_size)
            place(warehouse, known.model_version, "").parent.mkdir(parents=True, exist_ok=True)
            for start in range(0, len(todo), at_once):
                run.end_if_stopped()
                piece = todo.slice(start, at_once)
                for content, png in _overlays(spark, piece, model, known).items():
                    with replaced(place(warehouse, known.model_version, content)) as file:
                        file.write(png)
                    run.counts["explained"] += 1
                run.progress(start + len(piece), len(todo), "images explained")
    folder = warehouse.root / FOLDER
    run.outputs[FOLDER] = str(folder)
    run.say(f"{run.counts['explained']:,} overlays in {folder}/MODEL_VERSION/CONTENT_SHA256.png")


def _todo(warehouse: Warehouse, chosen: pa.Table, known: Scored, *, rescore: bool) -> pa.Table:
    """One image of each content that has probabilities and no overlay."""
    content = pc.coalesce(known.content_of(chosen), chosen["content_sha256"])
    images = chosen.set_column(
        chosen.column_names.index("content_sha256"), "content_sha256", content
    ).filter(known.has_answer(content))
    first, seen = [], set()
    for row, sha256 in enumerate(images["content_sha256"].to_pylist()):
        lacks = rescore or not place(warehouse, known.model_version, sha256).exists()
        if lacks and sha256 not in seen:
            first.append(row)
        seen.add(sha256)
    return images.take(pa.array(first, pa.int64())).sort_by("part")


def _overlays(
    spark: SparkSession, piece: pa.Table, model: Model, known: Scored
) -> dict[str, bytes]:
    contents = piece["content_sha256"].to_pylist()
    said = known.answers(contents)
    classes = {content: int(said[content].probabilities.argmax()) for content in contents}
    pixels = _pixels(spark, piece, Preprocessing.from_json(model.card.preprocessing))
    with arrow_batches.bounded(spark, model.card.image_size**2):
        return explain.overlays(spark, pixels, classes, model.folder)


def _pixels(spark: SparkSession, piece: pa.Table, preprocessing: Preprocessing) -> DataFrame:
    """`image_id`, here the content, and `pixels`, of those images that can still be read."""
    bounds = [*range(0, len(piece), engines.images_at_once(preprocessing.size)), len(piece)]
    read = partial(
        inference.read_share,
        piece=piece.combine_chunks(),
        bounds=bounds,
        preprocessing=preprocessing,
    )
    return shares.tasks(spark, bounds).mapInArrow(read, from_arrow_schema(inference.PIXELS))
