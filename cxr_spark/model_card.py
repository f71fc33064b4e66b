"""What is written down about a trained model: its card, and its row in models."""

from dataclasses import asdict
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

import cxr_spark
from cxr_spark.artifact import Card
from cxr_spark.images import Preprocessing
from cxr_spark.labels import CLASSES
from cxr_spark.training_plan import Fitted, TrainingPlan

PACKAGES = ("torch", "torchvision", "petastorm", "pyarrow", "numpy", "pyspark", "deltalake")
INTENDED_USE = (
    "Research and development on chest radiographs: the probabilities of nine classes for one "
    "frontal image, to sort and search archives and to compare methods."
)
LIMITS = (
    "Not a medical device and not evaluated for diagnosis. Labels of the public sources are mined "
    "from reports or from whole collections and are partly wrong. Covid and Tuberculosis come "
    "from one collection each, so that a model can tell them by their source: look at the "
    "metrics by source and beside the source-only baseline. One class an image: several findings "
    "at once, other findings, lateral views and children outside the Pneumonia source are not "
    "covered. Probabilities are calibrated on val, at the class shares of the train split."
)


def package_versions() -> dict[str, str]:
    """Versions of what trains a model."""
    versions = {name: metadata.version(name) for name in PACKAGES}
    return versions | {"cxr_spark": cxr_spark.__version__}


def card_of(plan: TrainingPlan, fitted: Fitted) -> Card:
    """The card of what a run found, but for what saving the artifact sets."""
    priors = np.array(fitted.train_counts) / sum(fitted.train_counts)
    found = asdict(fitted) | {
        "train_counts": tuple(fitted.train_counts),
        "learned_priors": tuple(fitted.learned_priors),
        "metrics": tuple(fitted.metrics),
    }
    return Card(
        architecture=plan.options.arch,
        classes=CLASSES,
        image_size=plan.image_size,
        preprocessing=plan.preprocessing,
        preprocessing_fingerprint=Preprocessing.from_json(plan.preprocessing).fingerprint(),
        train_priors=tuple(priors.tolist()),
        images_version=plan.options.images_version or 0,
        images_sha256=plan.images_sha256,
        label_policy=plan.label_policy,
        arguments=asdict(plan.options),
        packages=plan.packages,
        run_id=plan.run_id,
        created_at=plan.created_at,
        intended_use=INTENDED_USE,
        limits=LIMITS,
        **found,
    )


def models_row(folder: Path, card: Card) -> dict[str, Any]:
    """The row in models of an artifact."""
    return {
        "model_version": card.model_version,
        "artifact_path": str(folder),
        "artifact_sha256": card.weights_sha256,
        "architecture": card.architecture,
        "image_size": card.image_size,
        "preprocessing": card.preprocessing_fingerprint,
        "mean": card.mean,
        "std": card.std,
        "temperature": card.temperature,
        "train_priors": list(card.train_priors),
        "images_version": card.images_version,
        "label_policy": card.label_policy,
        "arguments": {k: str(v) for k, v in card.arguments.items() if v is not None},
        "val_cce": card.val_cce,
        "run_id": card.run_id,
        "created_at": datetime.fromisoformat(card.created_at),
    }
