"""Makes artifacts of networks that have learned nothing, for what needs a model of any kind."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

from cxr_spark.artifact import Card, save_artifact
from cxr_spark.images import Preprocessing
from cxr_spark.labels import CLASSES
from cxr_spark.models import build_model
from cxr_spark.onnx_export import to_onnx

MEAN, STD = 0.5, 0.25


def network(architecture: str = "resnet18", seed: int = 0) -> nn.Module:
    """A network whose answers differ from image to image, as a trained one's do."""
    torch.manual_seed(seed)
    model = build_model(architecture).eval()
    for parameter in list(model.parameters())[-2:]:  # the last layer's
        nn.init.normal_(parameter, std=0.1)
    return model


def save(
    models: Path,
    *,
    architecture: str = "resnet18",
    seed: int = 0,
    size: int = 64,
    bias: float | None = None,
    **of_card: Any,
) -> Path:
    """The folder of an artifact for images of a size, of priors that learning has shifted.

    Args:
        bias: of all classes, in place of a random one.
        of_card: what the card says otherwise.
    """
    model = network(architecture, seed)
    if bias is not None:
        nn.init.constant_(list(model.parameters())[-1], bias)
    preprocessing = Preprocessing(size=size)
    counts = tuple(range(1, 10))
    card = Card(
        architecture=architecture,
        classes=CLASSES,
        image_size=size,
        preprocessing=preprocessing.to_json(),
        preprocessing_fingerprint=preprocessing.fingerprint(),
        mean=MEAN,
        std=STD,
        temperature=1.5,
        train_counts=counts,
        train_priors=tuple(count / sum(counts) for count in counts),
        learned_priors=(1 / 9,) * 9,
        images_version=0,
        images_sha256="0" * 64,
        label_policy="sole",
        arguments={"arch": architecture, "seed": seed},
        metrics=({"epoch": 1, "val_cce": 2.0},),
        kept_epoch=1,
        val_rows=9,
        val_cce=2.0,
        val_cce_uncalibrated=2.0,
        val_ece=0.1,
        packages={"torch": torch.__version__},
        run_id="train-1",
        created_at=f"2030-01-02T03:04:{seed:02}+00:00",
        intended_use="tests",
        limits="all",
    )
    card = replace(card, **of_card)
    weights = {name: value.contiguous() for name, value in model.state_dict().items()}
    onnx = to_onnx(model, image_size=size, mean=MEAN, std=STD)
    return save_artifact(models, card, safetensors.torch.save(weights), onnx)
