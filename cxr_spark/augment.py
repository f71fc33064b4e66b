"""Small random changes of images, a batch at a time, so that pose and exposure tell nothing."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

# How an image may differ from one epoch to the next. It is mirrored only if that is asked for: the
# side that the heart is on is a finding.
ROTATION_DEGREES = 4.0
SCALE = 0.06
SHIFT = 0.06  # of the side
GAIN = 0.15
OFFSET = 0.1  # standard deviations


def augment(images: Tensor, generator: torch.Generator, *, flip: bool = False) -> Tensor:
    """Turn, scale, shift, brighten and stretch each image a little; the edge is continued.

    Each image has draws of its own, in one call for the batch. torchvision's v2 transforms draw
    once a call, so a batch would turn as one.

    Args:
        images: (B, 1, S, S) float32, standardised.
        generator: on the CPU.
        flip: also mirror half of the images, left to right.

    Returns:
        (B, 1, S, S) float32.
    """
    draws = 2 * torch.rand(6, len(images), generator=generator).to(images.device) - 1
    angle = draws[0] * math.radians(ROTATION_DEGREES)
    scale = 1 + draws[1] * SCALE
    shift = draws[2:4] * 2 * SHIFT  # affine_grid's side is 2
    cosine, sine = angle.cos() * scale, angle.sin() * scale
    side = torch.ones_like(angle)
    if flip:
        side = 1 - 2 * torch.randint(2, angle.shape, generator=generator).to(angle)
    rows = [cosine * side, -sine, shift[0], sine * side, cosine, shift[1]]
    matrices = torch.stack(rows, dim=1)
    grid = F.affine_grid(matrices.view(-1, 2, 3), list(images.shape), align_corners=False)
    moved = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    gain, offset = 1 + draws[4] * GAIN, draws[5] * OFFSET
    return moved * gain.view(-1, 1, 1, 1) + offset.view(-1, 1, 1, 1)
