"""What an evaluation refuses, in words that say what to do instead."""

import shlex
from collections.abc import Mapping
from typing import Any

from cxr_spark import delta, tables
from cxr_spark.judged_images import Judged
from cxr_spark.tables import Warehouse

IDS_IN_MESSAGE = 3


class UnknownModel(ValueError):
    """No such model version, or no model at all."""


class NothingToEvaluate(ValueError):
    """The split has no rows, or there are no predictions to read."""


class OtherPreprocessing(ValueError):
    """The images were prepared in another way than the model expects."""


class UnscoredRows(RuntimeError):
    """Rows of the split have no usable prediction, so there is no headline."""


def find_model(warehouse: Warehouse, model_version: str | None) -> dict[str, Any]:
    """The row of models with that version; the newest row without one.

    Raises:
        UnknownModel: there is none.
    """
    known = known_models(warehouse)
    if not known:
        raise UnknownModel(f"{warehouse.root} has no model yet; run jobs/train.py first")
    wanted = known[-1]["model_version"] if model_version is None else model_version
    found = [row for row in known if row["model_version"] == wanted]
    if not found:
        newest = ", ".join(row["model_version"] for row in known[-5:])
        raise UnknownModel(f"no model version {wanted!r} in {warehouse.root}; newest: {newest}")
    return found[-1]


def known_models(warehouse: Warehouse) -> list[dict[str, Any]]:
    """The rows of models, the newest last."""
    if not warehouse.exists("models"):
        return []
    known = delta.read_rows(warehouse.path("models"), tables.schema("models").names)
    return sorted(known, key=lambda row: (row["created_at"], row["model_version"]))


def check_rows(rows: Judged, split: str, model: Mapping[str, Any]) -> None:
    """Refuse a split without rows, or one that isn't prepared as the model expects.

    Raises:
        NothingToEvaluate: no row may count.
        OtherPreprocessing: the rows aren't prepared as the model expects.
    """
    images = f"version {model['images_version']} of images"
    if rows.table.empty:
        raise NothingToEvaluate(
            f"{images} has no row in {split} to judge model {model['model_version']} by "
            f"({rows.related} are related to rows it was made with)"
        )
    kinds = set(rows.table["preprocessing"])
    if kinds != {model["preprocessing"]}:
        raise OtherPreprocessing(
            f"{images} holds the preprocessing {sorted(map(str, kinds))}, model "
            f"{model['model_version']} expects {model['preprocessing']}: its row in models names "
            "the wrong version of images"
        )


def check_complete(rows: Judged, command: str, *, allow_missing: bool) -> None:
    """Refuse a headline over survivors.

    Raises:
        UnscoredRows: the message says what to run: `command`.
    """
    counts = rows.counts
    if rows.is_complete or (allow_missing and counts["n"]):
        return
    left_out = rows.table[~rows.usable]
    few = [
        f"{row.image_id} ({row.error if row.scored else 'no prediction'})"
        for row in left_out.head(IDS_IN_MESSAGE).itertuples()
    ]
    raise UnscoredRows(
        f"{len(left_out)} of {len(rows.table)} rows can't be judged: {counts['missing']} without a "
        f"prediction, {counts['errors']} with an error, first {', '.join(few)}. Score them: "
        f"{command} (or --allow-missing to judge the {counts['n']} others)"
    )


def score_command(
    warehouse: Warehouse, model: Mapping[str, Any], split: str, images_version: int
) -> str:
    """What scores the rows of a split, for a person to run."""
    options = {
        "--warehouse": warehouse.root,
        "--model": model["artifact_path"],
        "--split": split,
        "--images-version": images_version,
    }
    return shlex.join(["jobs/score.py", *(str(word) for pair in options.items() for word in pair)])
