"""Which models score together: checked ones, of one preprocessing, under names of their own."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cxr_spark.artifact import ArtifactError
from cxr_spark.scoring import Scoring, ScoringError, claim_ensemble, load_model
from cxr_spark.tables import Warehouse
from tests import artifacts


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for seed, size in ((0, 32), (1, 32), (2, 40)):
        artifacts.save(folder, seed=seed, size=size)
    return folder


def model(models: Path, seed: int):
    return load_model(sorted(models.iterdir())[seed])


@pytest.mark.parametrize("name", ["weights.safetensors", "model.onnx"])
def test_a_model_with_a_changed_file_is_refused(models: Path, tmp_path: Path, name: str) -> None:
    folder = sorted(models.iterdir())[0]
    changed = Path(shutil.copytree(folder, tmp_path / folder.name))
    content = bytearray((changed / name).read_bytes())
    content[-1] ^= 1
    (changed / name).write_bytes(content)
    with pytest.raises(ArtifactError, match=f"{name}.*changed"):
        load_model(changed)


def test_a_link_is_followed_once_and_for_all(models: Path, tmp_path: Path) -> None:
    first, second, _ = sorted(models.iterdir())
    current = tmp_path / "current"
    current.symlink_to(first)
    loaded = load_model(current)
    current.unlink()
    current.symlink_to(second)
    assert (loaded.folder, loaded.card.model_version) == (str(first), first.name)


@pytest.mark.parametrize("of_card", [{"preprocessing_fingerprint": "0" * 64}, {"image_size": 40}])
def test_a_model_whose_card_contradicts_itself_is_refused(
    tmp_path: Path, of_card: dict[str, Any]
) -> None:
    with pytest.raises(ScoringError, match="train it again"):
        load_model(artifacts.save(tmp_path, size=32, **of_card))


def test_models_that_cannot_score_together_are_refused(models: Path) -> None:
    first, second, larger = (model(models, seed) for seed in range(3))
    assert len(Scoring((first, second), ensemble="both").model_versions) == 3
    with pytest.raises(ScoringError, match="in two runs"):
        Scoring((first, larger))
    with pytest.raises(ScoringError, match="stands twice"):
        Scoring((first, first))
    with pytest.raises(ScoringError, match="twice or more"):
        Scoring((first,), ensemble="alone")
    with pytest.raises(ScoringError, match="letters, digits"):
        Scoring((first, second), ensemble="a/b")
    with pytest.raises(ScoringError, match="at least one image"):
        Scoring((first,), commit_every=0)


def test_an_ensembles_name_stands_for_the_same_models_for_ever(
    models: Path, tmp_path: Path
) -> None:
    first, second = model(models, 0), model(models, 1)
    warehouse, scoring = Warehouse(tmp_path), Scoring((first, second), ensemble="both")
    members = f"{first.card.model_version},{second.card.model_version}"
    assert claim_ensemble(warehouse, scoring) == {"ensemble_of": members}
    # A run that was killed after its first commit has left rows, and none in runs.
    warehouse.append_rows(
        "predictions", [{"image_id": "a", "model_version": "both", "run_id": "r"}]
    )
    assert claim_ensemble(warehouse, Scoring((second, first), ensemble="both"))
    alike = model(models, 0)
    other = alike._replace(card=replace(alike.card, model_version="another"))
    with pytest.raises(ScoringError, match=f"the mean of {first.card.model_version}, "):
        claim_ensemble(warehouse, Scoring((first, other), ensemble="both"))
    (tmp_path / "ensembles" / "both.json").unlink()
    with pytest.raises(ScoringError, match="to say of which models"):
        claim_ensemble(warehouse, scoring)


def test_an_ensemble_may_not_take_a_models_name(models: Path, tmp_path: Path) -> None:
    warehouse = Warehouse(tmp_path)
    warehouse.append_rows("models", [{"model_version": "taken", "run_id": "r"}])
    scoring = Scoring((model(models, 0), model(models, 1)), ensemble="taken")
    with pytest.raises(ScoringError, match="a model is named so"):
        claim_ensemble(warehouse, scoring)
