"""Backbones take one grey channel; artifacts are written whole, checked on loading, not pickled."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision

from cxr_spark import artifact
from cxr_spark.artifact import ArtifactError, Card, load_card, load_onnx, save_artifact
from cxr_spark.backbones import BACKBONES
from cxr_spark.calibration import probabilities
from cxr_spark.checkpoints import serialise
from cxr_spark.labels import CLASSES
from cxr_spark.models import UnknownArchitecture, build_model, load_model, predict, standardise

CARD = Card(
    architecture="resnet18",
    classes=CLASSES,
    image_size=32,
    preprocessing={"size": 32, "fit": "crop"},
    preprocessing_fingerprint="f" * 64,
    mean=0.5,
    std=0.2,
    temperature=0.7,
    train_counts=(1,) * 9,
    train_priors=(0.2, *(0.1,) * 8),
    learned_priors=(1 / 9,) * 9,
    images_version=3,
    images_sha256="a" * 64,
    label_policy="sole",
    arguments={"arch": "resnet18", "images_version": None},
    metrics=({"epoch": 1, "val_cce": 2.0},),
    kept_epoch=1,
    val_rows=9,
    val_cce=1.9,
    val_cce_uncalibrated=2.0,
    val_ece=0.01,
    packages={"torch": torch.__version__},
    run_id="train-1",
    created_at="2030-01-02T03:04:05+00:00",
    intended_use="tests",
    limits="all",
)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.nn.Module]:
    torch.manual_seed(0)
    model = build_model("resnet18").eval()
    return save_artifact(
        tmp_path_factory.mktemp("models"), CARD, serialise(model.state_dict()), b"onnx"
    ), model


@pytest.fixture
def folder(saved: tuple[Path, torch.nn.Module], tmp_path: Path) -> Path:
    """A copy of the artifact that a test may damage."""
    return Path(shutil.copytree(saved[0], tmp_path / saved[0].name))


def random_pixels(count: int = 2) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 1, 32, 32), dtype=np.uint8)


@pytest.mark.parametrize("architecture", ["resnet18", "densenet121"])
def test_a_grey_image_gives_what_it_gives_by_three_channels_in_the_original(
    architecture: str,
) -> None:
    torch.manual_seed(0)
    original = getattr(torchvision.models, architecture)(weights=None, num_classes=9).eval()
    torch.manual_seed(0)
    model = build_model(architecture).eval()
    images = torch.rand(2, 1, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(
            model(images), original(images.expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("architecture", BACKBONES)
def test_every_backbone_has_one_channel_in_and_nine_logits_out(architecture: str) -> None:
    model = build_model(architecture).eval()
    with torch.inference_mode():
        assert model(torch.rand(1, 1, 64, 64)).shape == (1, 9)


def test_an_unknown_architecture_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UnknownArchitecture, match=r"resnet19.*densenet121"):
        build_model("resnet19")


def test_standardised_pixels_are_those_of_the_formula() -> None:
    pixels = torch.tensor([[[[0, 51, 255]]]], dtype=torch.uint8)
    expected = (np.array([0, 51, 255]) / 255 - 0.5) / 0.2
    np.testing.assert_allclose(standardise(pixels, 0.5, 0.2).flatten(), expected, rtol=1e-6)


def test_a_loaded_model_predicts_what_the_saved_one_did(
    saved: tuple[Path, torch.nn.Module],
) -> None:
    folder, original = saved
    model, card = load_model(folder)
    pixels = random_pixels()
    with torch.inference_mode():
        logits = original(standardise(torch.from_numpy(pixels), 0.5, 0.2))
    offset = np.log([1.8, *[0.9] * 8])  # from equal shares to those of train
    expected = probabilities(logits.numpy(), 0.7, offset)
    np.testing.assert_allclose(predict(model, card, pixels), expected, rtol=1e-4)


def test_the_card_comes_back_as_it_was_with_version_and_hashes(
    saved: tuple[Path, torch.nn.Module],
) -> None:
    card = load_card(saved[0])
    assert replace(card, model_version="", weights_sha256="", onnx_sha256="") == CARD
    assert card.model_version == saved[0].name
    assert card.model_version.startswith("resnet18-20300102T030405Z-")


def test_an_artifact_is_weights_onnx_and_card_and_nothing_pickled(
    saved: tuple[Path, torch.nn.Module],
) -> None:
    files = {path.name: path.read_bytes() for path in saved[0].iterdir()}
    assert files.keys() == {"card.json", "weights.safetensors", "model.onnx"}
    header_length = int.from_bytes(files["weights.safetensors"][:8], "little")
    json.loads(files["weights.safetensors"][8 : 8 + header_length])
    json.loads(files["card.json"])


@pytest.mark.parametrize("place", [3, 100_000, -1])
def test_a_changed_byte_of_the_weights_is_refused(folder: Path, place: int) -> None:
    path = folder / "weights.safetensors"
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(ArtifactError, match="SHA-256"):
        load_model(folder)


def test_a_changed_byte_of_the_graph_is_refused(folder: Path) -> None:
    card = load_card(folder)
    assert load_onnx(folder, card) == b"onnx"
    (folder / "model.onnx").write_bytes(b"onny")
    with pytest.raises(ArtifactError, match=r"model\.onnx: its SHA-256"):
        load_onnx(folder, card)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"temperature": 0.7', '"temperature": 0.8', "does not fit its version"),
        ('"Covid"', '"Flu"', "does not fit its version"),
        ('"learned_priors"', '"learnt_priors"', "keys missing or unknown"),
        ('"temperature"', '"temperatur"', "keys missing or unknown: .*'temperatur'"),
        ('"card_format": 2', '"card_format": 1', "its format is 1, this package reads 2"),
        ("{", "[", "Expecting"),
    ],
)
def test_a_changed_card_is_refused(folder: Path, old: str, new: str, message: str) -> None:
    path = folder / "card.json"
    path.write_text(path.read_text("utf-8").replace(old, new, 1), "utf-8")
    with pytest.raises(ArtifactError, match=message):
        load_card(folder)


def test_a_model_of_other_classes_is_refused(tmp_path: Path) -> None:
    card = replace(CARD, classes=CLASSES[::-1])
    with pytest.raises(ArtifactError, match="the model's classes are"):
        load_card(save_artifact(tmp_path, card, b"weights", b"onnx"))


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    card = replace(CARD, architecture="resnet50")
    folder = save_artifact(tmp_path, card, serialise(build_model("resnet18").state_dict()), b"")
    with pytest.raises(ArtifactError, match="weights of another network"):
        load_model(folder)


@pytest.mark.parametrize("name", ["card.json", "weights.safetensors"])
def test_a_folder_that_lacks_a_file_is_refused(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(ArtifactError, match=name):
        load_model(folder)


def test_a_version_is_never_overwritten(tmp_path: Path) -> None:
    folder = save_artifact(tmp_path, CARD, b"weights", b"onnx")
    before = (folder / "card.json").stat().st_mtime_ns
    assert save_artifact(tmp_path, CARD, b"weights", b"onnx") == folder
    assert (folder / "card.json").stat().st_mtime_ns == before
    assert list(tmp_path.iterdir()) == [folder]


def test_other_files_or_another_card_give_another_version(tmp_path: Path) -> None:
    other = replace(CARD, temperature=0.8)
    contents = [(CARD, b"a", b"a"), (CARD, b"b", b"a"), (CARD, b"a", b"b"), (other, b"a", b"a")]
    folders = [save_artifact(tmp_path, *content) for content in contents]
    assert len({folder.name for folder in folders}) == 4


def test_a_save_that_ends_midway_leaves_nothing_under_a_valid_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[str]] = []

    def stop(folder: Path) -> None:
        seen.append([path.name for path in tmp_path.iterdir()])
        raise KeyboardInterrupt

    monkeypatch.setattr(artifact, "sync_folder", stop)
    with pytest.raises(KeyboardInterrupt):
        save_artifact(tmp_path, CARD, b"weights", b"onnx")
    assert [name.startswith(".unfinished-") for name in seen[0]] == [True]
    assert list(tmp_path.iterdir()) == []
