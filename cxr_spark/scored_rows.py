"""Images with their true class, a model's probabilities, and the slices they are in."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from cxr_spark import baselines
from cxr_spark.metrics import Booleans, Floats, Integers
from cxr_spark.slices import Names


@dataclass(frozen=True)
class ScoredRows:
    """N images; every array has a row for each.

    Attributes:
        image_id: (N,) str.
        source: (N,) str.
        group_id: (N,) str, patients joined with duplicates.
        label_index: (N,) int64, the true class's place in labels.CLASSES.
        probabilities: (N, 9) float64, in the order of labels.CLASSES.
        slices: (N,) names by kind, see slices.slices_of.
        known_as_train: (N,) bool, the source's own list says that it is no test image; None: no
            list is known, or none matters.
    """

    image_id: Names
    source: Names
    group_id: Names
    label_index: Integers
    probabilities: Floats
    slices: Mapping[str, Names] = field(default_factory=dict)
    known_as_train: Booleans | None = None

    def __len__(self) -> int:
        return len(self.label_index)

    def where(self, wanted: NDArray[np.bool_]) -> "ScoredRows":
        """The rows that are True in `wanted` (N,)."""
        known_as_train = self.known_as_train
        return ScoredRows(
            self.image_id[wanted],
            self.source[wanted],
            self.group_id[wanted],
            self.label_index[wanted],
            self.probabilities[wanted],
            {kind: names[wanted] for kind, names in self.slices.items()},
            None if known_as_train is None else known_as_train[wanted],
        )

    def within(self, allowed: Booleans) -> "ScoredRows":
        """The same rows, where only some classes (9,) are possible."""
        return replace(self, probabilities=baselines.within(self.probabilities, allowed))
