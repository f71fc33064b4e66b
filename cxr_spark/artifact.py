"""The model artifact: a folder with weights, an ONNX copy and card.json, and what makes it valid.

Needs no torch: whoever only wants to know what a model expects reads its card with `load_card`,
and whoever runs it by ONNX Runtime takes the graph by `load_onnx`.
"""

import hashlib
import json
import os
import shutil
import uuid
from dataclasses import asdict, dataclass, fields, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Self

from cxr_spark.calibration import Floats, logit_offset
from cxr_spark.labels import CLASSES

WEIGHTS_FILE = "weights.safetensors"
ONNX_FILE = "model.onnx"
CARD_FILE = "card.json"
CARD_FORMAT = 2


class ArtifactError(ValueError):
    """A folder that holds no model artifact, or one that has been changed or does not fit."""


@dataclass(frozen=True)
class Card:
    """What a model is, what it expects, where it comes from and how good it was on val.

    Attributes:
        architecture: a name in models.BACKBONES.
        classes: the classes in the order of the logits; labels.CLASSES.
        image_size: side of the images, pixels.
        preprocessing: how files become pixels, as images.Preprocessing.to_json gives it.
        preprocessing_fingerprint: its fingerprint, as in the tables' `preprocessing`.
        mean, std: of the train split's pixels / 255; input is (pixels / 255 - mean) / std.
        temperature: probabilities are softmax((logits + logit_offset) / temperature).
        train_counts: images of each class in the train split.
        train_priors: their shares, which the probabilities are for.
        learned_priors: the class shares that the loss made the model learn; others than
            train_priors where it was trained against imbalance.
        images_version: version of the images table that it was trained on.
        images_sha256: of the names, relative to the table, and row counts of that version's files;
            Delta gives a file a name of its own and never changes it.
        label_policy: one of labels.LABEL_POLICIES.
        arguments: of the training run.
        metrics: by epoch, from the first; docs/train.md says what each is.
        kept_epoch: the epoch that the weights are from, counted from 1.
        val_rows: images in the val split.
        val_cce: of the artifact on val, temperature included, nats.
        val_cce_uncalibrated: the same at temperature 1.
        val_ece: calibration error of the artifact on val, 15 bins by confidence.
        packages: versions of what trained it.
        run_id: the training run.
        created_at: ISO 8601, UTC.
        intended_use, limits: words for whoever wants to use it.
        card_format: version of this layout.
        weights_sha256, onnx_sha256: of the files, hex; set by save_artifact.
        model_version: set by save_artifact.
    """

    architecture: str
    classes: tuple[str, ...]
    image_size: int
    preprocessing: dict[str, Any]
    preprocessing_fingerprint: str
    mean: float
    std: float
    temperature: float
    train_counts: tuple[int, ...]
    train_priors: tuple[float, ...]
    learned_priors: tuple[float, ...]
    images_version: int
    images_sha256: str
    label_policy: str
    arguments: dict[str, Any]
    metrics: tuple[dict[str, float | None], ...]
    kept_epoch: int
    val_rows: int
    val_cce: float
    val_cce_uncalibrated: float
    val_ece: float
    packages: dict[str, str]
    run_id: str
    created_at: str
    intended_use: str
    limits: str
    card_format: int = CARD_FORMAT
    weights_sha256: str = ""
    onnx_sha256: str = ""
    model_version: str = ""

    @property
    def logit_offset(self) -> Floats:
        """(9,) what brings the logits to the priors of the train split."""
        return logit_offset(self.train_priors, self.learned_priors)

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Self:
        """The card of a parsed card.json.

        Raises:
            ArtifactError: keys are missing or unknown, or the layout is another one.
        """
        if (found := content.get("card_format")) != CARD_FORMAT:
            raise ArtifactError(f"its format is {found}, this package reads {CARD_FORMAT}")
        known = {field.name for field in fields(cls)}
        if known != content.keys():
            raise ArtifactError(f"keys missing or unknown: {sorted(known ^ content.keys())}")
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in content.items()
        }
        return cls(**values)

    def digest(self) -> str:
        """Short hash of all that the card says but its own version."""
        content = json.dumps(asdict(replace(self, model_version="")), sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:8]


def save_artifact(models: str | Path, card: Card, weights: bytes, onnx: bytes) -> Path:
    """Write `<models>/<model_version>/`, complete or not at all.

    The version is the architecture, the time and a hash of the content. Files are written to a
    hidden folder beside it and synced, then the folder is renamed.

    Args:
        models: the folder of all artifacts.
        card: without what this sets.
        weights: the content of the safetensors file.
        onnx: the same model as onnx_export.to_onnx gives it.

    Returns:
        The artifact's folder, absolute. Where it is there already, it is left as it is: the
        version is the content's, so it was saved by the same run before.
    """
    card = replace(
        card,
        weights_sha256=hashlib.sha256(weights).hexdigest(),
        onnx_sha256=hashlib.sha256(onnx).hexdigest(),
    )
    created = datetime.fromisoformat(card.created_at)
    version = f"{card.architecture}-{created:%Y%m%dT%H%M%SZ}-{card.digest()}"
    card = replace(card, model_version=version)
    folder = Path(models).absolute() / version
    if folder.exists():
        return folder
    unfinished = folder.parent / f".unfinished-{uuid.uuid4().hex}"
    unfinished.mkdir(parents=True)
    try:
        write_synced(unfinished / WEIGHTS_FILE, weights)
        write_synced(unfinished / ONNX_FILE, onnx)
        text = json.dumps(asdict(card), indent=1, ensure_ascii=False)
        write_synced(unfinished / CARD_FILE, text.encode())
        sync_folder(unfinished)
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    sync_folder(folder.parent)
    return folder


def load_card(folder: str | Path) -> Card:
    """Read the card of an artifact.

    Raises:
        ArtifactError: no artifact there, a card that was changed, or other classes than ours.
    """
    path = Path(folder) / CARD_FILE
    try:
        card = Card.from_json(json.loads(path.read_text("utf-8")))
    except OSError as error:
        raise ArtifactError(
            f"{folder}: not a model artifact, which is a folder with {CARD_FILE} and "
            f"{WEIGHTS_FILE}, as jobs/train.py writes it ({error.strerror})"
        ) from error
    except (ArtifactError, ValueError) as error:
        raise ArtifactError(f"{path}: {error}") from error
    if not card.model_version.endswith(f"-{card.digest()}"):
        raise ArtifactError(f"{path}: its content does not fit its version {card.model_version}")
    if card.classes != CLASSES:
        raise ArtifactError(f"{path}: the model's classes are {card.classes}, ours are {CLASSES}")
    return card


def load_weights(folder: str | Path, card: Card) -> bytes:
    """Read the weights file of an artifact and check it against the card.

    Raises:
        ArtifactError: the file is missing or its content is not what the card says.
    """
    return _checked(Path(folder) / WEIGHTS_FILE, card.weights_sha256)


def load_onnx(folder: str | Path, card: Card) -> bytes:
    """Read the ONNX graph of an artifact and check it against the card.

    Its input is `pixels`, uint8 (B, 1, S, S), its output `logits`, float32 (B, 9).

    Raises:
        ArtifactError: the file is missing or its content is not what the card says.
    """
    return _checked(Path(folder) / ONNX_FILE, card.onnx_sha256)


def _checked(path: Path, expected_sha256: str) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"{path}: {error.strerror}") from error
    found = hashlib.sha256(content).hexdigest()
    if found != expected_sha256:
        raise ArtifactError(
            f"{path}: its SHA-256 is {found}, the card says {expected_sha256}; it was changed "
            "or copied in part: take the artifact from where it was trained"
        )
    return content


def write_synced(path: Path, content: bytes) -> None:
    """Write a new file and wait until it is on the disk."""
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
