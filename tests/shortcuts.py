"""Linear models on what a radiograph shouldn't give away: thumbnails, borders, brightness."""

import warnings

import cv2
import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from cxr_spark import phantom

Images = NDArray[np.uint8]
Features = NDArray[np.float32]
STRENGTHS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)


def draw_at_96(label: str, number: int) -> Images:
    """A radiograph as the sample draws it, brought to (96, 96) as curation would."""
    cv2.setNumThreads(1)
    pixels = phantom.draw([label], [7, number]).pixels
    return np.asarray(cv2.resize(pixels, (96, 96), interpolation=cv2.INTER_AREA), dtype=np.uint8)


def thumbnails(images: Images, side: int = 8) -> Features:
    """The images (n, size, size) brought to side x side, flat: (n, side²)."""
    small = [cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA) for image in images]
    return np.stack(small).reshape(len(images), -1).astype(np.float32)


def border(images: Images) -> Features:
    """The outermost sixteenth of the images on every side, at 48 x 48 pixels: (n, 540)."""
    outer = np.ones((48, 48), dtype=bool)
    outer[3:-3, 3:-3] = False
    return thumbnails(images, 48)[:, outer.ravel()]


def brightness(images: Images) -> Features:
    """Mean and spread of the images: (n, 2)."""
    flat = images.reshape(len(images), -1).astype(np.float32)
    return np.stack([flat.mean(axis=1), flat.std(axis=1)], axis=1)


def linear_probabilities(
    train: Features, labels: NDArray[np.int64], test: Features
) -> NDArray[np.float64]:
    """What a logistic regression on standardised features says of the test rows: (n, classes).

    Its regularisation is the best of STRENGTHS on the last fifth of the train rows.
    """
    inner = len(train) * 4 // 5
    losses = {}
    for strength in STRENGTHS:
        model = _fitted(strength, train[:inner], labels[:inner])
        losses[strength] = cross_entropy(model.predict_proba(train[inner:]), labels[inner:])
    best = min(losses, key=lambda strength: losses[strength])
    return np.asarray(_fitted(best, train, labels).predict_proba(test))


def cross_entropy(probabilities: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
    """Mean of -ln p(true class)."""
    true = probabilities[np.arange(len(labels)), labels]
    return float(-np.log(np.clip(true, 1e-15, 1)).mean())


def linear_cce(features: Features, labels: NDArray[np.int64], cut: int) -> float:
    """Test CCE of the linear model that learns the rows before the cut, on those behind it."""
    probabilities = linear_probabilities(features[:cut], labels[:cut], features[cut:])
    return cross_entropy(probabilities, labels[cut:])


def _fitted(strength: float, features: Features, labels: NDArray[np.int64]) -> Pipeline:
    model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=300))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model.fit(features, labels)
