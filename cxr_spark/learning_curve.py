"""How much data it takes: models that learned from shares of train, on the same images."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from cxr_spark.scored_rows import ScoredRows
from cxr_spark.slice_figures import Figure, slice_figures

# Of a model's arguments: in these, models of one curve may differ beside the share.
FREE = frozenset({"train_share", "epochs", "seed", "checkpoint_every", "workers", "patience"})
TOLD = ("cce", "accuracy", "auroc", "ece")


class Point(NamedTuple):
    """A model of the curve.

    Attributes:
        share: of the train split's images that it learned from, above 0 and at most 1.
        train_images: how many these are.
        model_version: as in models.
        rows: what it says of the images that all are judged on.
    """

    share: float
    train_images: int
    model_version: str
    rows: ScoredRows

    @property
    def slice_name(self) -> str:
        """Where its figures stand."""
        return f"train_share={self.share:g}"


def share_of(model: Mapping[str, Any]) -> float:
    """The share of train that a row of models was trained on; all of it where none is named."""
    return float((model["arguments"] or {}).get("train_share", 1))


def models_of(model: Mapping[str, Any], known: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The models of a model's curve: trained alike on the same version, on another share.

    Args:
        model: its row of models; it stands for its own share.
        known: all rows of models, the newest last; of a share the newest counts.

    Returns:
        Rows of models by share, from the smallest.
    """
    by_share = {share_of(other): dict(other) for other in known if _kind(other) == _kind(model)} | {
        share_of(model): dict(model)
    }
    return [by_share[share] for share in sorted(by_share)]


def _kind(model: Mapping[str, Any]) -> tuple[Any, ...]:
    given = model["arguments"] or {}
    fixed = tuple(sorted((name, value) for name, value in given.items() if name not in FREE))
    of_row = ("images_version", "architecture", "preprocessing", "label_policy")
    return (*(model[name] for name in of_row), fixed)


def figures_of(points: Sequence[Point]) -> list[Figure]:
    """CCE, accuracy, mean AUROC and calibration error of each model, and its train images.

    All models are judged on the rows that each of them has scored.
    """
    found: list[Figure] = []
    for point in points:
        name, n = point.slice_name, len(point.rows)
        of_all = slice_figures("all", point.rows, {})
        found += [
            figure._replace(slice_name=name)
            for figure in of_all
            if figure.class_name == "all" and figure.metric in TOLD
        ]
        found.append(Figure(name, "all", "train_images", point.train_images, None, None, n))
    return found
