"""From logits to probabilities: softmax, prior correction and temperature scaling, in numpy."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

# A few images that a model gets all right would ask for 0, and be wrong for ever on the first miss.
TEMPERATURES = (0.2, 5.0)
HALVINGS = 50


def softmax(logits: ArrayLike, temperature: float = 1.0) -> Floats:
    """Probabilities of logits divided by a temperature.

    Args:
        logits: (N, C), any float type.
        temperature: above 0; below 1 sharpens, above 1 softens.

    Returns:
        (N, C) float64; rows sum to 1.
    """
    scaled = np.asarray(logits, np.float64) / temperature
    powers = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def probabilities(logits: ArrayLike, temperature: float, offset: ArrayLike) -> Floats:
    """Calibrated probabilities: softmax((logits + offset) / temperature).

    Args:
        logits: (N, C), as the model gives them.
        temperature: above 0.
        offset: (C,), see `logit_offset`.

    Returns:
        (N, C) float64; rows sum to 1.
    """
    return softmax(np.asarray(logits, np.float64) + np.asarray(offset, np.float64), temperature)


def logit_offset(train_priors: ArrayLike, learned_priors: ArrayLike) -> Floats:
    """What to add to logits that know one prior so that they know another.

    By Bayes' rule the posteriors of two priors differ by their ratio (Saerens et al. 2002, Neural
    Computation 14).

    Args:
        train_priors: (C,) the class shares that probabilities are wanted for.
        learned_priors: (C,) those that the model was made to learn.

    Returns:
        (C,) log ratios; 0 for a class without train images, of which nothing was learned.
    """
    wanted, learned = np.asarray(train_priors, np.float64), np.asarray(learned_priors, np.float64)
    both = (wanted > 0) & (learned > 0)
    return np.log(np.where(both, wanted, 1.0)) - np.log(np.where(both, learned, 1.0))


def fit_temperature(logits: ArrayLike, label_index: ArrayLike) -> float:
    """The temperature that gives the lowest CCE on these rows (Guo et al. 2017, arXiv 1706.04599).

    CCE is convex in the inverse of the temperature, so halving an interval by the sign of its
    derivative, the mean difference of the expected logit and the true class's, finds it.

    Args:
        logits: (N, C), N at least 1.
        label_index: (N,) int, the true classes.

    Returns:
        The temperature, within `TEMPERATURES`.
    """
    rows = np.asarray(logits, np.float64)
    true_logits = rows[np.arange(len(rows)), np.asarray(label_index)]
    low, high = 1 / TEMPERATURES[1], 1 / TEMPERATURES[0]
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        expected_logits = (softmax(rows, 1 / middle) * rows).sum(axis=1)
        if np.mean(expected_logits - true_logits) < 0:
            low = middle
        else:
            high = middle
    return float(2 / (low + high))
