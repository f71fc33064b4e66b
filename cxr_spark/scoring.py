"""How images are scored: with which models, checked before anything runs, and in which pieces."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from cxr_spark.artifact import Card, load_card, load_onnx, load_weights
from cxr_spark.images import Preprocessing
from cxr_spark.tables import Warehouse
from cxr_spark.whole_files import replaced

# Images between two commits at most: what a kill costs, and how many small files a table gets.
COMMIT_EVERY = 2_000

ENSEMBLES = "ensembles"  # a folder of the warehouse

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class ScoringError(ValueError):
    """Models or options that can't be used together; the message says which and why."""


class Model(NamedTuple):
    """An artifact whose files are what its card says; `folder` is where links lead to."""

    folder: str
    card: Card


@dataclass(frozen=True)
class Scoring:
    """How images are scored.

    Attributes:
        models: in one pass; of one preprocessing.
        ensemble: a model_version for rows of the mean of the models' probabilities; None: none.
        rescore: score what has been scored once more, too.
        commit_every: images between two commits, at most.
        engine: one of `engines.ENGINES`.
    """

    models: tuple[Model, ...]
    ensemble: str | None = None
    rescore: bool = False
    commit_every: int = COMMIT_EVERY
    engine: str = "auto"

    def __post_init__(self) -> None:
        _check(self)

    @property
    def model_versions(self) -> list[str]:
        """Of the rows, the ensemble's last."""
        versions = [model.card.model_version for model in self.models]
        return versions + ([self.ensemble] if self.ensemble else [])

    @property
    def card(self) -> Card:
        """The first model's: of what is read of it here, the others say the same."""
        return self.models[0].card


def load_model(folder: str | Path) -> Model:
    """A model whose files have been checked against its card, before anything runs.

    Raises:
        ArtifactError: no artifact, or one that was changed.
        PreprocessingError: it expects images as this version of the package can't make them.
        ScoringError: its card contradicts itself.
    """
    folder = Path(folder).resolve()  # a link may lead to another model before the run's end
    card = load_card(folder)
    load_weights(folder, card)
    load_onnx(folder, card)
    preprocessing = Preprocessing.from_json(card.preprocessing)
    said = card.preprocessing_fingerprint, card.image_size
    if said != (preprocessing.fingerprint(), preprocessing.size):
        raise ScoringError(
            f"{folder}: its card has the preprocessing {card.preprocessing}, and the fingerprint "
            f"or the image size ({card.image_size}) of another; train it again"
        )
    return Model(str(folder), card)


def _check(scoring: Scoring) -> None:
    versions = scoring.model_versions
    if len(set(versions)) < len(versions):
        raise ScoringError(f"the model versions {', '.join(versions)}: one stands twice")
    if scoring.commit_every < 1:
        raise ScoringError(f"--commit-every {scoring.commit_every}: at least one image")
    for model in scoring.models[1:]:
        if model.card.preprocessing_fingerprint != scoring.card.preprocessing_fingerprint:
            raise ScoringError(
                f"{scoring.card.model_version} expects images of preprocessing "
                f"{scoring.card.preprocessing}, {model.card.model_version} of "
                f"{model.card.preprocessing}: score with them in two runs"
            )
    if scoring.ensemble is None:
        return
    if len(scoring.models) < 2:
        raise ScoringError(f"--ensemble {scoring.ensemble}: give --model twice or more")
    if not _NAME.fullmatch(scoring.ensemble):
        raise ScoringError(
            f"--ensemble {scoring.ensemble!r}: up to 100 letters, digits, dots, - and _"
        )


def claim_ensemble(warehouse: Warehouse, scoring: Scoring) -> dict[str, str]:
    """Make an ensemble's name stand for its models in this warehouse, for ever.

    `<warehouse>/ensembles/<name>.json` says so before the first row does. To be called by who has
    the name's lock.

    Returns:
        What to record of the ensemble with the run's arguments; nothing without an ensemble.

    Raises:
        ScoringError: the name is a model's, or stands for other models.
    """
    name = scoring.ensemble
    if name is None:
        return {}
    members = sorted(model.card.model_version for model in scoring.models)
    if warehouse.exists("models"):
        models = warehouse.read_arrow("models", ["model_version"])["model_version"].to_pylist()
        if name in models:
            raise ScoringError(f"--ensemble {name}: a model is named so; take another")
    record = warehouse.root / ENSEMBLES / f"{name}.json"
    if record.exists():
        claimed = json.loads(record.read_text("utf-8"))
        if claimed != members:
            raise ScoringError(
                f"--ensemble {name}: in this warehouse the mean of {', '.join(claimed)}; take "
                "another name for these models"
            )
    elif _has_predictions(warehouse, name):
        raise ScoringError(
            f"--ensemble {name}: there are predictions of that name, and no {record} to say of "
            "which models; take another"
        )
    else:
        record.parent.mkdir(parents=True, exist_ok=True)
        with replaced(record) as file:
            file.write(json.dumps(members).encode())
    return {"ensemble_of": ",".join(members)}


def _has_predictions(warehouse: Warehouse, model_version: str) -> bool:
    files = warehouse.files("predictions") if warehouse.exists("predictions") else []
    return any(file.partition["model_version"] == model_version for file in files)
