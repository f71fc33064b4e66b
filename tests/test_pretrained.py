"""Weights of a file are torchvision's, folded to grey, less a classifier of other classes."""

import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import torchvision

from cxr_spark.models import build_model
from cxr_spark.pretrained import WeightsError, read_weights


@pytest.fixture(scope="module")
def original() -> torch.nn.Module:
    """A network as torchvision publishes them: three channels, a thousand classes."""
    torch.manual_seed(0)
    return torchvision.models.resnet18(weights=None).eval()


@pytest.fixture(scope="module")
def file(original: torch.nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "resnet18.pth"
    torch.save(original.state_dict(), path)
    return path


def test_a_grey_image_gives_the_features_that_the_original_has_of_it(
    original: torch.nn.Module, file: Path
) -> None:
    model = build_model("resnet18").eval()
    fitting = safetensors.torch.load(read_weights(file, "resnet18"))
    missing = model.load_state_dict(fitting, strict=False).missing_keys
    assert missing == ["fc.weight", "fc.bias"]
    model.fc, headless = torch.nn.Identity(), torch.nn.Sequential(*list(original.children())[:-1])
    image = torch.rand(1, 1, 64, 64)
    with torch.inference_mode():
        expected = headless(image.expand(-1, 3, -1, -1)).flatten(1)
        torch.testing.assert_close(model(image), expected, rtol=1e-4, atol=1e-5)


def test_both_kinds_of_file_give_the_same(file: Path, tmp_path: Path) -> None:
    other = tmp_path / "resnet18.safetensors"
    safetensors.torch.save_file(torch.load(file, weights_only=True), other)
    assert read_weights(other, "resnet18") == read_weights(file, "resnet18")


def test_our_own_weights_come_back_with_their_classifier(tmp_path: Path) -> None:
    model = build_model("densenet121")
    path = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(model.state_dict(), path)
    assert build_model("densenet121").load_state_dict(
        safetensors.torch.load(read_weights(path, "densenet121"))
    )


def test_the_names_in_torchvisions_own_files_of_densenets_are_understood(tmp_path: Path) -> None:
    tensors = torchvision.models.densenet121(weights=None).state_dict()
    torch.save(tensors, tmp_path / "new.pth")
    published = {
        re.sub(r"(denselayer\d+\.(?:norm|conv))([12])\.", r"\1.\2.", name): tensor
        for name, tensor in tensors.items()
    }
    assert "features.denseblock1.denselayer1.norm.1.weight" in published
    torch.save(published, tmp_path / "published.pth")
    ours = read_weights(tmp_path / "published.pth", "densenet121")
    assert ours == read_weights(tmp_path / "new.pth", "densenet121")


def test_weights_of_another_network_are_refused_in_one_line(file: Path) -> None:
    with pytest.raises(WeightsError, match=r"not torchvision's densenet121: .*missing.*unknown"):
        read_weights(file, "densenet121")


class Harmful:
    """Runs a command when unpickled."""

    def __reduce__(self) -> Any:
        return (Path.touch, (Path("/tmp/cxr_spark_was_unpickled"),))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.pt", b"no weights", "no file of weights"),
        ("a.safetensors", b"no weights", "no safetensors file"),
        ("a.pt", pickle.dumps({"a": Harmful()}), "no file of weights"),
    ],
)
def test_what_holds_no_weights_is_refused_and_not_run(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightsError, match=message):
        read_weights(tmp_path / name, "resnet18")
    assert not Path("/tmp/cxr_spark_was_unpickled").exists()


def test_a_missing_file_and_a_whole_training_state_are_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="No such file"):
        read_weights(tmp_path / "none.pt", "resnet18")
    torch.save({"epoch": 3, "model": {}}, tmp_path / "state.pt")
    with pytest.raises(WeightsError, match="expected a dictionary of tensors"):
        read_weights(tmp_path / "state.pt", "resnet18")
