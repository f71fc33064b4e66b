"""Engines: ONNX Runtime and torch say the same, one of them without torch; decoding runs ahead."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from cxr_spark import engines, models
from cxr_spark.artifact import ArtifactError
from tests import artifacts


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return artifacts.save(tmp_path_factory.mktemp("models"))


def test_both_engines_give_the_models_own_calibrated_probabilities(folder: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 64, 64), np.uint8)
    expected = models.predict(*models.load_model(folder), pixels)
    assert expected.std(axis=0).max() > 1e-3  # images differ
    for engine in ("onnx", "torch"):
        np.testing.assert_allclose(engines.load(folder, engine)(pixels), expected, atol=1e-6)


def test_onnx_runtime_needs_no_torch(folder: Path) -> None:
    code = (
        "import sys, numpy; from cxr_spark import engines, inference\n"
        "said = engines.load(sys.argv[1], 'onnx')(numpy.zeros((2, 64, 64), numpy.uint8))\n"
        "assert said.shape == (2, 9) and 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True)


def test_a_changed_graph_is_refused(folder: Path, tmp_path: Path) -> None:
    changed = tmp_path / folder.name
    changed.mkdir()
    for file in folder.iterdir():
        (changed / file.name).write_bytes(file.read_bytes() + b"x" * (file.suffix == ".onnx"))
    with pytest.raises(ArtifactError, match="changed"):
        engines.load(changed, "onnx")


@pytest.mark.parametrize("engine", ["onnx", "torch"])
def test_another_model_than_the_one_meant_is_refused(folder: Path, engine: str) -> None:
    assert engines.load(folder, engine, folder.name)
    with pytest.raises(ArtifactError, match=f"{folder.name} is there now, not another"):
        engines.load(folder, engine, "another")


@pytest.mark.parametrize(("size", "images"), [(32, 16), (224, 16), (512, 4), (2048, 1)])
def test_large_images_go_through_the_network_in_smaller_batches(size: int, images: int) -> None:
    assert engines.images_at_once(size) == images


@pytest.mark.parametrize("through", [engines.in_turn, engines.decoding_ahead])
def test_every_batch_comes_out_in_order_with_its_answer(through) -> None:
    assert list(through(range(10), lambda batch: -batch)) == [(i, -i) for i in range(10)]


def test_the_next_batches_are_decoded_while_the_model_works() -> None:
    decoded, is_enough = [], threading.Event()

    def batches() -> Iterator[int]:
        for batch in range(4):
            decoded.append(batch)
            if len(decoded) == 3:
                is_enough.set()
            yield batch

    def infer(batch: int) -> bool:
        return is_enough.wait(timeout=10)  # of the first batch: until two more are decoded

    assert [answer for _, answer in engines.decoding_ahead(batches(), infer)] == [True] * 4


def test_what_the_model_raises_ends_the_run() -> None:
    with pytest.raises(ZeroDivisionError):
        list(engines.decoding_ahead([0, 1], lambda batch: 1 // batch))
