"""What can be said of an image without reading it: from class shares, its source, its border."""

from collections.abc import Mapping
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize

from cxr_spark.calibration import softmax
from cxr_spark.labels import CLASSES
from cxr_spark.metrics import Booleans, Floats, Integers, cce

N_CLASSES = len(CLASSES)

THUMBNAIL_SIDE = 16
BORDER_SIDE, BORDER_WIDTH = 32, 2
"""The outermost sixteenth on every side, at 32 x 32 pixels."""
_IS_BORDER = np.ones((BORDER_SIDE, BORDER_SIDE), dtype=bool)
_IS_BORDER[BORDER_WIDTH:-BORDER_WIDTH, BORDER_WIDTH:-BORDER_WIDTH] = False
GLANCE_SIZE = int(_IS_BORDER.sum()) + THUMBNAIL_SIDE**2

# Of the squared weights beside the mean loss; the best on held-out rows is taken.
PENALTIES = (1e-3, 1e-2, 1e-1, 1.0)
ITERATIONS = 200


def class_shares(train_counts: ArrayLike, needed: ArrayLike) -> Floats:
    """Shares of the nine classes among train rows, smoothed only where they must be.

    Args:
        train_counts: (9,) rows of each class in train.
        needed: (9,) bool, the classes that occur among the rows to be judged.

    Returns:
        (9,) shares that sum to 1. Where a needed class never occurs in train, its share would be
        0 and the CCE a matter of the clip, so one row is added to every class.
    """
    counts = np.asarray(train_counts, dtype=np.float64)
    if np.any(counts[np.asarray(needed, dtype=bool)] == 0):
        counts = counts + 1
    return counts / counts.sum()


def prior_probabilities(train_counts: ArrayLike, label_index: ArrayLike) -> Floats:
    """(N, 9) probabilities that know only the class shares of train: the same in every row."""
    labels = np.asarray(label_index, dtype=np.int64)
    return np.tile(class_shares(train_counts, _occurring(labels)), (len(labels), 1))


def source_only_probabilities(
    train_counts: Mapping[str, ArrayLike], source: ArrayLike, label_index: ArrayLike
) -> Floats:
    """(N, 9) probabilities that know only each image's source: that source's class shares in train.

    Args:
        train_counts: (9,) rows of each class in train, by source.
        source: (N,) source of each row.
        label_index: (N,) true classes, which decide the sources whose shares are smoothed (see
            class_shares). A source without any row in train gets the same share for all nine.
    """
    sources, labels = np.asarray(source, dtype=str), np.asarray(label_index, dtype=np.int64)
    probabilities = np.empty((len(labels), N_CLASSES))
    for name in np.unique(sources):
        of_source = sources == name
        counts = train_counts.get(str(name), np.zeros(N_CLASSES))
        probabilities[of_source] = class_shares(counts, _occurring(labels[of_source]))
    return probabilities


def share_of_gain(cce_prior: Floats, cce_source_only: Floats, cce_model: Floats) -> Floats:
    """The part of a model's gain over the prior that the source alone gives; NaN: no gain.

    Args:
        cce_prior, cce_source_only, cce_model: on the same rows, of one shape.
    """
    gain = cce_prior - cce_model
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(gain > 0, (cce_prior - cce_source_only) / gain, np.nan)


def within(probabilities: Floats, allowed: Booleans) -> Floats:
    """Probabilities (N, 9) of rows that are known to be of some classes: the others get 0.

    Args:
        probabilities: each row a distribution.
        allowed: (9,), at least one.

    Returns:
        (N, 9) distributions; the same for all allowed classes where a row gave them nothing.
    """
    kept = np.where(allowed, probabilities, 0.0)
    sums = kept.sum(axis=1, keepdims=True)
    return np.where(sums > 0, kept / np.where(sums > 0, sums, 1.0), allowed / allowed.sum())


def glance(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """What a glance at an image (S, S) gives: its border, and the whole at 16 x 16 pixels.

    Returns:
        (GLANCE_SIZE,) uint8: the border, then the thumbnail.
    """
    small, tiny = (
        cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA)
        for side in (BORDER_SIDE, THUMBNAIL_SIDE)
    )
    return np.concatenate([small[_IS_BORDER], tiny.ravel()]).astype(np.uint8)


@dataclass(frozen=True)
class GlanceModel:
    """A multinomial logistic regression on glances.

    Attributes:
        mean, scale: (F,) of the glances that it was fitted to.
        weights: (F, 9).
        bias: (9,).
    """

    mean: Floats
    scale: Floats
    weights: Floats
    bias: Floats

    def probabilities(self, glances: NDArray[np.uint8]) -> Floats:
        """(N, 9) for glances (N, F)."""
        return softmax((glances - self.mean) / self.scale @ self.weights + self.bias)


def fit_glance_model(
    glances: NDArray[np.uint8],
    labels: Integers,
    held_out: NDArray[np.uint8],
    held_out_labels: Integers,
) -> GlanceModel:
    """Fit to glances (N, F), with that penalty which gives the lowest CCE on the held-out rows.

    Without any of these it is the greatest. Classes that don't occur get small probabilities.
    """
    penalties = PENALTIES if len(held_out_labels) else PENALTIES[-1:]
    fitted = [_fit(glances, labels, penalty) for penalty in penalties]
    losses = [cce(model.probabilities(held_out), held_out_labels) for model in fitted]
    return fitted[int(np.nanargmin(losses))] if len(fitted) > 1 else fitted[0]


def _fit(glances: NDArray[np.uint8], labels: Integers, penalty: float) -> GlanceModel:
    mean, scale = glances.mean(axis=0), glances.std(axis=0)
    scale = np.where(scale > 0, scale, 1.0)
    inputs = (glances - mean) / scale
    truth = np.eye(N_CLASSES)[labels]
    n, width = inputs.shape

    def loss(flat: Floats) -> tuple[float, Floats]:
        weights, bias = flat[:-N_CLASSES].reshape(width, N_CLASSES), flat[-N_CLASSES:]
        given = softmax(inputs @ weights + bias)
        of_truth = np.maximum(given[np.arange(n), labels], np.finfo(np.float64).tiny)
        value = -np.log(of_truth).mean() + penalty / 2 * (weights**2).sum()
        error = (given - truth) / n
        gradient = inputs.T @ error + penalty * weights
        return float(value), np.concatenate([gradient.ravel(), error.sum(axis=0)])

    start = np.zeros((width + 1) * N_CLASSES)
    found = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": ITERATIONS}).x
    return GlanceModel(
        mean, scale, found[:-N_CLASSES].reshape(width, N_CLASSES), found[-N_CLASSES:]
    )


def _occurring(label_index: Integers) -> Booleans:
    return np.bincount(label_index, minlength=N_CLASSES) > 0
