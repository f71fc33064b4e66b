"""The worker's side of scoring, in this process: what is decoded and loaded, when, how often."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from cxr_spark import delta, engines, inference, isolation, models, score_inputs
from cxr_spark.artifact import ArtifactError, load_card
from cxr_spark.images import Preprocessing, facts_of_file
from cxr_spark.tables import Warehouse
from tests import artifacts
from tests.test_curate import draw

FILES = 33  # more than two batches


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two models."""
    place = tmp_path_factory.mktemp("models")
    return [artifacts.save(place, seed=seed) for seed in (0, 1)]


@pytest.fixture(scope="module")
def piece(tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    """Files, all of which both models are asked about."""
    folder = tmp_path_factory.mktemp("in")
    for number in range(FILES):
        draw(folder / f"{number:02}.png", number, size=64)
    listed = score_inputs.image_files([folder], [])
    for model in range(2):
        listed = listed.append_column(f"asks_{model}", pa.array([True] * FILES))
    return listed.combine_chunks()


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a fresh worker did, in order: `load` and `decode`."""
    seen: list[str] = []

    def noting(name: str, function: Any) -> Any:
        return lambda *given: seen.append(name) or function(*given)

    monkeypatch.setattr(isolation, "settle_worker", lambda: None)
    monkeypatch.setattr(inference, "_models", {})
    monkeypatch.setattr(engines, "load", noting("load", engines.load))
    monkeypatch.setattr(inference, "decode", noting("decode", inference.decode))
    return seen


def said(piece: pa.Table, folders: list[Path], engine: str, **given: Any) -> list[dict[str, Any]]:
    """What a worker tells of the piece as one share."""
    meters = [SimpleNamespace(add=lambda more: None)] * 4
    plan = inference.Plan(
        piece,
        [0, len(piece)],
        given.get("models") or tuple((str(f), load_card(f).model_version) for f in folders),
        Preprocessing(size=64),
        engine,
        SimpleNamespace(value=[np.array([], "S32")] * len(folders)),  # type: ignore[arg-type]
        inference.Meters(*meters),  # type: ignore[arg-type]
    )
    return [row for batch in inference.score_share(shares(1), plan) for row in batch.to_pylist()]


def shares(number: int) -> Iterator[pa.RecordBatch]:
    yield pa.RecordBatch.from_pydict({"id": list(range(number))})


def test_an_image_is_decoded_once_for_several_models_each_loaded_once(
    piece: pa.Table, folders: list[Path], events: list[str]
) -> None:
    rows = said(piece, folders, "onnx")
    assert [row["number"] for row in rows] == list(range(FILES))
    assert (events.count("decode"), events.count("load")) == (FILES, 2)
    square = facts_of_file(piece["path"][20].as_py(), Preprocessing(size=64)).pixels
    pixels = np.frombuffer(square or b"", np.uint8).reshape(1, 64, 64)
    for number, folder in enumerate(folders):
        expected = models.predict(*models.load_model(folder), pixels)[0]
        np.testing.assert_allclose(rows[20][f"model_{number}"], expected, atol=1e-6)


def test_torch_is_loaded_before_decoding_limits_the_memory_of_the_worker(
    piece: pa.Table, folders: list[Path], events: list[str]
) -> None:
    rows = said(piece, folders, "torch")
    assert events == ["load"] * 2 + ["decode"] * FILES
    assert [row["number"] for row in rows] == list(range(FILES))
    assert all(len(row["model_1"]) == 9 for row in rows)


def test_a_model_that_has_taken_anothers_place_says_nothing_in_its_name(
    piece: pa.Table, folders: list[Path], events: list[str]
) -> None:
    planned = ((str(folders[0]), load_card(folders[1]).model_version),)
    with pytest.raises(ArtifactError, match="is there now, not"):
        said(piece, folders[:1], "onnx", models=planned)


def test_curated_images_are_read_from_the_table(
    curated: tuple[Path, Any], folders: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(isolation, "settle_worker", lambda: None)
    warehouse = Warehouse(curated[0])
    at, card = warehouse.published(), load_card(folders[0])
    versions = at["images"], at["images_raw"]
    listed = score_inputs.curated_images(warehouse, *versions, split="val", card=card)
    bounds = [0, 3, len(listed)]
    preprocessing = Preprocessing(size=64)
    read = inference.read_share(shares(2), listed.sort_by("part"), bounds, preprocessing)
    found = {row["image_id"]: row["pixels"] for batch in read for row in batch.to_pylist()}
    columns = ["content_sha256", "pixels"]
    images = delta.read_rows(warehouse.path("images"), columns, at["images"])
    expected = {row["content_sha256"]: row["pixels"] for row in images}
    assert found.keys() == set(listed["content_sha256"].to_pylist())
    assert all(expected[content] == pixels for content, pixels in found.items())
