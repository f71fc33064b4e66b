"""Grad-CAM: every backbone, the right place, and the picture that is made of it."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from cxr_spark import models
from cxr_spark.backbones import BACKBONES
from cxr_spark.gradcam import grad_cam, overlay


class Corners(nn.Module):
    """Logit 0 is the brightness, logit 1 the darkness; the feature maps are the image itself."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Identity()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        mean = self.features(images).mean(dim=(2, 3))
        return torch.cat([mean, -mean], dim=1)


def bright_corner() -> torch.Tensor:
    """(1, 1, 32, 32), bright top left and dark elsewhere."""
    image = torch.full((1, 1, 32, 32), -1.0)
    image[:, :, :8, :8] = 4.0
    return image


@pytest.mark.parametrize("architecture", BACKBONES)
def test_every_backbone_gives_a_map_of_the_images_size_between_0_and_1(architecture: str) -> None:
    torch.manual_seed(1)
    model = models.build_model(architecture).eval()
    images = torch.randn(2, 1, 64, 64)
    before = model(images).detach()
    heat = grad_cam(model, images, torch.tensor([3, 7]))
    assert (heat.shape, heat.dtype) == ((2, 64, 64), np.float32)
    assert heat.min() >= 0
    assert set(heat.max(axis=(1, 2)).round(5)) <= {0.0, 1.0}
    torch.testing.assert_close(model(images).detach(), before)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_each_image_is_explained_for_its_own_class_whatever_else_is_in_the_batch() -> None:
    torch.manual_seed(2)
    model = models.build_model("resnet18").eval()
    images = torch.randn(3, 1, 64, 64)
    together = grad_cam(model, images, torch.tensor([0, 4, 8]))
    for place, class_index in enumerate((0, 4, 8)):
        alone = grad_cam(model, images[place : place + 1], class_index)
        np.testing.assert_allclose(together[place], alone[0], atol=1e-4)


def test_heat_lies_where_the_image_speaks_for_the_class() -> None:
    heat = grad_cam(Corners(), bright_corner(), 0)[0]
    assert heat[:8, :8].min() == 1
    assert heat[8:, :].max() == heat[:, 8:].max() == 0
    of_darkness = grad_cam(Corners(), bright_corner(), 1)[0]
    assert of_darkness[:8, :8].max() == 0
    assert of_darkness[8:, 8:].min() == 1


def test_where_nothing_speaks_for_the_class_the_map_is_empty() -> None:
    heat = grad_cam(Corners(), torch.ones(1, 1, 16, 16), 1)
    assert not heat.any()


def test_a_map_can_be_made_inside_inference_code() -> None:
    with torch.no_grad():
        assert grad_cam(Corners(), bright_corner(), 0).max() == 1


def test_an_overlay_leaves_cold_places_grey_and_colours_hot_ones() -> None:
    pixels = np.full((16, 16), 100, dtype=np.uint8)
    heat = np.zeros((16, 16), dtype=np.float32)
    heat[4:8, 4:8] = 1
    picture = np.asarray(Image.open(io.BytesIO(overlay(pixels, heat))))
    assert picture.shape == (16, 16, 3)
    assert (picture[0, 0] == 100).all()
    red, green, blue = picture[5, 5].astype(int)
    assert red > green > blue
