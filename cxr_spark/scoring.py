"""How images are scored: with which models, checked before anything runs, and in which pieces."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from cxr_spark import delta
from cxr_spark.artifact import Card, load_card, load_onnx, load_weights
from cxr_spark.images import Preprocessing
from cxr_spark.tables import Warehouse

# Images between two commits at most: what a kill costs, and how many small files a table gets.
COMMIT_EVERY = 2_000

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class ScoringError(ValueError):
    """Models or options that can't be used together; the message says which and why."""


class Model(NamedTuple):
    """An artifact whose files are what its card says."""

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
    """
    card = load_card(folder)
    load_weights(folder, card)
    load_onnx(folder, card)
    Preprocessing.from_json(card.preprocessing)
    return Model(str(Path(folder).absolute()), card)


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


def check_ensemble(warehouse: Warehouse, scoring: Scoring) -> dict[str, str]:
    """Refuse an ensemble's name that stands for something else in this warehouse already.

    Returns:
        What to record of the ensemble with the run's arguments; nothing without an ensemble.

    Raises:
        ScoringError: the name is a model's, or an earlier run's for other models.
    """
    if scoring.ensemble is None:
        return {}
    members = ",".join(sorted(model.card.model_version for model in scoring.models))
    if warehouse.exists("models"):
        models = warehouse.read_arrow("models", ["model_version"])["model_version"].to_pylist()
        if scoring.ensemble in models:
            raise ScoringError(f"--ensemble {scoring.ensemble}: a model is named so; take another")
    if warehouse.exists("runs"):
        for row in delta.read_rows(warehouse.path("runs"), ["job", "arguments"]):
            earlier = row["arguments"] or {}
            is_other = earlier.get("ensemble_of", members) != members
            if row["job"] == "score" and earlier.get("ensemble") == scoring.ensemble and is_other:
                raise ScoringError(
                    f"--ensemble {scoring.ensemble}: in this warehouse the mean of "
                    f"{earlier['ensemble_of']}; take another name for these models"
                )
    return {"ensemble_of": members}
