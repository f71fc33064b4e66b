"""The views that people want first, as SQL over the tables and over each other.

They may be read like tables. Each is resolved over the same versions of the tables as the rest of
the statement that reads it, before any name in that statement means something else.
"""

from collections.abc import Collection
from typing import NamedTuple


class View(NamedTuple):
    """A derived view: what a row is, which tables and views it reads, its SQL."""

    description: str
    reads: tuple[str, ...]
    text: str


# Each after those that it reads.
VIEWS = {
    "latest_predictions": View(
        "The newest prediction of an image by a model version.",
        ("predictions",),
        """
        SELECT * EXCEPT (place)
        FROM (
            SELECT *, row_number() OVER (
                PARTITION BY image_id, model_version
                ORDER BY scored_at DESC NULLS LAST, run_id DESC
            ) AS place
            FROM predictions
        )
        WHERE place = 1
        """,
    ),
    "newest_model_predictions": View(
        "The newest prediction of an image by the model created last.",
        ("latest_predictions", "models"),
        """
        SELECT *
        FROM latest_predictions
        WHERE model_version = (
            SELECT max_by(model_version, struct(created_at, model_version)) FROM models
            WHERE created_at IS NOT NULL
        )
        """,
    ),
    "prediction_errors": View(
        "An image that a model version could not score when it last tried, with the reason.",
        ("latest_predictions",),
        """
        SELECT model_version, image_id, error, detail, path, scored_at, run_id
        FROM latest_predictions
        WHERE error IS NOT NULL
        """,
    ),
    # A model version that models doesn't know counts as older than all that it knows.
    "model_comparison": View(
        "An image whose predicted label differs between two model versions, the older one first.",
        ("latest_predictions", "models"),
        """
        WITH creations AS (
            SELECT model_version, max(created_at) AS created_at FROM models GROUP BY model_version
        ), labelled AS (
            SELECT image_id, content_sha256, model_version, predicted_label, confidence,
                coalesce(created_at, TIMESTAMP '0001-01-01') AS created_at
            FROM latest_predictions LEFT JOIN creations USING (model_version)
            WHERE error IS NULL
        )
        SELECT older.model_version AS older_version, newer.model_version AS newer_version,
            older.image_id,
            older.predicted_label AS older_label, newer.predicted_label AS newer_label,
            older.confidence AS older_confidence, newer.confidence AS newer_confidence
        FROM labelled AS older JOIN labelled AS newer
            ON older.image_id = newer.image_id
            AND older.content_sha256 = newer.content_sha256
            AND older.predicted_label <> newer.predicted_label
            AND (older.created_at < newer.created_at OR (
                older.created_at = newer.created_at AND older.model_version < newer.model_version))
        """,
    ),
    "class_balance": View(
        "How many images a class has from a source in a split, and which share that is.",
        ("images",),
        """
        SELECT split, source, label, count(*) AS images,
            count(*) / sum(count(*)) OVER (PARTITION BY split) AS share_of_split,
            count(*) / sum(count(*)) OVER (PARTITION BY split, source) AS share_of_source
        FROM images
        GROUP BY split, source, label
        """,
    ),
    "reject_summary": View(
        "How many files of a source are rejected for a reason, of all that it lists; one of them.",
        ("images_raw", "rejects"),
        """
        WITH listed AS (
            SELECT source, count(*) AS listed FROM images_raw GROUP BY source
        ), rejected AS (
            SELECT source, reason, count(*) AS files, min(image_id) AS example
            FROM rejects
            GROUP BY source, reason
        )
        SELECT source, reason, files, files / listed AS share_of_listed, example
        FROM rejected LEFT JOIN listed USING (source)
        """,
    ),
    # An evaluation is a model version, a split and what they were judged on; predictions_version
    # and images_version only grow.
    "latest_metrics": View(
        "A figure of the last evaluation of a model version on a split.",
        ("metrics",),
        """
        SELECT * EXCEPT (place)
        FROM (
            SELECT *, rank() OVER (
                PARTITION BY model_version, split
                ORDER BY predictions_version DESC, images_version DESC
            ) AS place
            FROM metrics
        )
        WHERE place = 1
        """,
    ),
}


def behind(names: Collection[str]) -> frozenset[str]:
    """All tables and views that some views read, directly or through others."""
    read = {other for name in names if name in VIEWS for other in VIEWS[name].reads}
    return frozenset(read | behind(read)) if read else frozenset()
