"""What workers found of images, and what is known of their contents, as rows of predictions."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cxr_spark.labels import CLASS_COLUMNS, CLASSES
from cxr_spark.scored import UIDS, Answer, Scored
from cxr_spark.scoring import Scoring

OF_A_FILE = ("image_id", "path", "size_bytes", "modified_at", "images_version")
NO_DISTRIBUTION = {
    "error": "no_distribution",
    "detail": "the model's answer is no set of probabilities",
}

Row = dict[str, Any]


def answers(
    findings: Sequence[Mapping[str, Any]], known: Sequence[Scored], scoring: Scoring
) -> list[dict[str, Answer]]:
    """What each model version says of the contents found; `known` learns what is new.

    Args:
        findings: rows of `inference.found_schema`. Tasks that met the same content at once differ
            in the last digits: the first row's count.
        known: of each model version, the ensemble's last.
        scoring: the models.
    """
    models = known[: len(scoring.models)]
    for finding in findings:
        for number, model in enumerate(models):
            if (said := finding[f"model_{number}"]) is not None:
                answer = Answer(np.array(said), *(finding[name] for name in UIDS))
                model.add(finding["content_sha256"], answer)
    contents = {found["content_sha256"] for found in findings if found["reason"] is None}
    said_by = [model.answers(contents) for model in models]
    return [*said_by, _mean(said_by)] if scoring.ensemble else said_by


def _mean(said_by: Sequence[dict[str, Answer]]) -> dict[str, Answer]:
    """The mean of the models' probabilities of each content."""
    return {
        content: first._replace(
            probabilities=np.mean([said[content].probabilities for said in said_by], axis=0)
        )
        for content, first in said_by[0].items()
    }


def rows_of(
    image: Mapping[str, Any],
    finding: Mapping[str, Any],
    said_by: Sequence[dict[str, Answer]],
    known: Sequence[Scored],
) -> Iterator[Row]:
    """The rows of an image, by model version that lacks one.

    A file that can't be read, and couldn't when it was last tried, has its row already.
    """
    of_image = {name: image[name] for name in OF_A_FILE}
    of_image["content_sha256"] = finding["content_sha256"]
    for number, one in enumerate(known):
        if not image[f"lacks_{number}"]:
            continue
        if finding["content_sha256"] is None and one.has_unread(image):
            continue
        uids = {name: finding[name] for name in UIDS}
        if finding["reason"] is None:
            answer = said_by[number][finding["content_sha256"]]
            result = _prediction(answer.probabilities)
            uids = {name: uids[name] or getattr(answer, name) for name in UIDS}
        else:
            result = {"error": finding["reason"], "detail": finding["detail"]}
        yield of_image | uids | result | {"model_version": one.model_version}


def _prediction(probabilities: NDArray[np.float64]) -> Row:
    if not np.isfinite(probabilities).all():
        return NO_DISTRIBUTION
    best = int(probabilities.argmax())
    plogp = probabilities * np.log(np.clip(probabilities, 1e-300, None))
    return {
        "probabilities": dict(zip(CLASS_COLUMNS, probabilities.tolist(), strict=True)),
        "predicted_label": CLASSES[best],
        "confidence": float(probabilities[best]),
        "entropy": float(-plogp.sum()),
    }
