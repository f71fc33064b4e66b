"""Two models on the same images: paired differences, McNemar's test, images gained and lost."""

from dataclasses import dataclass
from typing import Any

from scipy.stats import binomtest

from cxr_spark import bootstrap, metrics
from cxr_spark.metrics import Booleans, Floats
from cxr_spark.scored_rows import ScoredRows
from cxr_spark.slice_figures import Figure, Ratio, classes_of, figure_of, of_ratios

DIFFERENCES = ("cce_difference", "accuracy_difference")


@dataclass(frozen=True)
class Comparison:
    """What another model says of images that both were judged on.

    Attributes:
        other: the other model's row of the models table.
        rows: the images that neither model was made with, as this model scored them.
        theirs: (N, 9) what the other model gave them.
        related: images of the evaluation that only the other model was made with; left out.
        unscored: images that the other model has no usable prediction of; left out.
    """

    other: dict[str, Any]
    rows: ScoredRows
    theirs: Floats
    related: int
    unscored: int

    @property
    def slice_name(self) -> str:
        """Where its figures stand."""
        return f"compared_with={self.other['model_version']}"

    @property
    def gained(self) -> Booleans:
        """(N,) this model reads the image right, the other one wrong."""
        ours, theirs = self._correct()
        return ours & ~theirs

    @property
    def lost(self) -> Booleans:
        """(N,) this model reads the image wrong, the other one right."""
        ours, theirs = self._correct()
        return ~ours & theirs

    def _correct(self) -> tuple[Booleans, Booleans]:
        labels = self.rows.label_index
        both = (self.rows.probabilities, self.theirs)
        ours, theirs = (metrics.correct(given, labels) for given in both)
        return ours, theirs


def figures_of(comparison: Comparison) -> list[Figure]:
    """Differences, this model's less the other's, over all images and of each class.

    `mcnemar_p` is the exact two-sided p-value of McNemar's test (1947, doi 10.1007/BF02295996) on
    the images that only one of them reads right. It takes images for independent; the intervals,
    which are over groups, don't.
    """
    rows = comparison.rows
    losses = [
        metrics.log_losses(p, rows.label_index) for p in (rows.probabilities, comparison.theirs)
    ]
    gained, lost = comparison.gained, comparison.lost
    differences = (losses[0] - losses[1], gained.astype(float) - lost)
    ratios = [
        Ratio(class_name, metric, difference * of, of)
        for class_name, of in classes_of(rows)
        for metric, difference in zip(DIFFERENCES, differences, strict=True)
    ]
    spreads = of_ratios(ratios, bootstrap.draw_groups(rows.group_id))
    found = [figure_of(comparison.slice_name, spread, rows.group_id) for spread in spreads]
    n_gained, n_lost, n = int(gained.sum()), int(lost.sum()), len(rows)
    p_value = binomtest(n_gained, n_gained + n_lost).pvalue if n_gained + n_lost else 1.0
    counts = {
        "gained": float(n_gained),
        "lost": float(n_lost),
        "mcnemar_p": float(p_value),
        "related_to_other": float(comparison.related),
        "unscored_by_other": float(comparison.unscored),
    }
    return found + [
        Figure(comparison.slice_name, "all", metric, value, None, None, n)
        for metric, value in counts.items()
    ]
