"""Torchvision backbones for one-channel images, and models saved to and loaded from artifacts."""

from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torchvision import models as torchvision_models

from cxr_spark.artifact import ArtifactError, Card, load_card, load_weights
from cxr_spark.backbones import BACKBONES
from cxr_spark.calibration import probabilities
from cxr_spark.labels import CLASSES


class UnknownArchitecture(ValueError):
    """A name that is not in `BACKBONES`."""


def build_model(architecture: str, num_classes: int = len(CLASSES)) -> nn.Module:
    """A freshly initialised network from one grey channel to logits.

    Args:
        architecture: a name in `BACKBONES`.
        num_classes: the number of logits.

    Returns:
        A module from (B, 1, S, S) float32 to (B, num_classes) float32.

    Raises:
        UnknownArchitecture: the name is none of them.
    """
    if architecture not in BACKBONES:
        raise UnknownArchitecture(
            f"unknown architecture {architecture!r}; known are {', '.join(BACKBONES)}"
        )
    model = getattr(torchvision_models, architecture)(weights=None, num_classes=num_classes)
    name = BACKBONES[architecture].stem
    stem = model.get_submodule(name)
    assert isinstance(stem, nn.Conv2d)
    model.set_submodule(name, to_one_channel(stem))
    return model


def to_one_channel(convolution: nn.Conv2d) -> nn.Conv2d:
    """The convolution that gives on a grey image what this one gives on it repeated by channel.

    The sum of the weights over the input channels does that, for weights of any origin.
    """
    one_channel = nn.Conv2d(
        1,
        convolution.out_channels,
        kernel_size=convolution.kernel_size,  # type: ignore[arg-type]
        stride=convolution.stride,  # type: ignore[arg-type]
        padding=convolution.padding,  # type: ignore[arg-type]
        bias=convolution.bias is not None,
    )
    with torch.no_grad():
        one_channel.weight.copy_(convolution.weight.sum(dim=1, keepdim=True))
        if convolution.bias is not None and one_channel.bias is not None:
            one_channel.bias.copy_(convolution.bias)
    return one_channel


def standardise(pixels: Tensor, mean: float, std: float) -> Tensor:
    """The input of a model.

    Args:
        pixels: (B, 1, S, S) uint8.
        mean, std: of the train split's pixels / 255.

    Returns:
        (B, 1, S, S) float32.
    """
    return (pixels.float() - 255 * mean) / (255 * std)


def load_model(folder: str | Path) -> tuple[nn.Module, Card]:
    """Load a model for inference; nothing is unpickled.

    Args:
        folder: the artifact, `<models>/<model_version>/`.

    Returns:
        The network in evaluation mode, on the CPU, and its card.

    Raises:
        ArtifactError: no artifact, a changed one, or weights of another network.
    """
    card = load_card(folder)
    state = safetensors.torch.load(load_weights(folder, card))
    model = build_model(card.architecture, len(card.classes))
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ArtifactError(f"{folder}: weights of another network: {error}") from error
    return model.eval().to(memory_format=torch.channels_last), card


@torch.inference_mode()
def predict(model: nn.Module, card: Card, pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Calibrated probabilities of images.

    Args:
        model, card: as `load_model` gives them.
        pixels: (B, S, S) or (B, 1, S, S) uint8, preprocessed as the card says.

    Returns:
        (B, 9) float64 in the order of card.classes; rows sum to 1.
    """
    size = card.image_size
    assert pixels.dtype == np.uint8 and pixels.shape[-2:] == (size, size), pixels.shape
    images = torch.from_numpy(np.array(pixels)).reshape(-1, 1, size, size)
    device = next(model.parameters()).device
    inputs = standardise(images.to(device), card.mean, card.std)
    logits = model(inputs.contiguous(memory_format=torch.channels_last))
    return probabilities(logits.float().cpu().numpy(), card.temperature, card.logit_offset)
