"""Ways to train against imbalance of the classes, and which class shares the model then learns."""

import numpy as np
from numpy.typing import ArrayLike

from cxr_spark.calibration import Floats

# weights: rare rows count more in the loss. sampling: they are drawn more often. logit-adjustment:
# the log shares are added to the logits in the loss alone (Menon et al. 2020, arXiv 2007.07314).
IMBALANCE = ("none", "weights", "sampling", "logit-adjustment")


def learned_priors(train_counts: ArrayLike, imbalance: str) -> Floats:
    """(C,) class shares that a model learns from counts of train rows by one of `IMBALANCE`.

    All ways but `none` make the classes that occur equally likely.
    """
    counts = np.asarray(train_counts, np.float64)
    learned = counts if imbalance == "none" else (counts > 0).astype(np.float64)
    return learned / learned.sum()


def class_weights(train_counts: ArrayLike) -> Floats:
    """(C,) weights that make the classes equal, 1 in the mean over the rows.

    A class that doesn't occur has the weight 1, which nothing is multiplied by.
    """
    counts = np.asarray(train_counts, np.float64)
    shares = counts / counts.sum()
    return np.where(counts > 0, 1 / ((counts > 0).sum() * np.where(counts > 0, shares, 1)), 1.0)


def logit_adjustment(train_counts: ArrayLike) -> Floats:
    """(C,) log shares to add to the logits in the loss; 0 for a class that doesn't occur.

    Such a class is then trained down like any other, as no row is one of it.
    """
    counts = np.asarray(train_counts, np.float64)
    return np.log(np.where(counts > 0, counts / counts.sum(), 1.0))
