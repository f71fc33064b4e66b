"""Where a model looks: Grad-CAM heat maps of every backbone, and heat laid over an image."""

import io

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

# Torchvision's resnets name the part before pooling so; all other backbones call it `features`.
LAST_OF_RESNET = "layer4"
LAST_OF_OTHERS = "features"

# From cold to hot, evenly spaced: dark blue, violet, orange, yellow. Lightness only rises, so that
# the order survives grey printing and colour blindness.
HEAT_COLOURS = np.array([[20, 20, 90], [130, 30, 130], [235, 110, 50], [255, 230, 110]], np.float32)
GREATEST_OPACITY = 0.6


def grad_cam(model: nn.Module, images: Tensor, class_index: Tensor | int) -> NDArray[np.float32]:
    """How much each place of an image speaks for a class (Selvaraju et al. 2017, arXiv 1610.02391).

    The last feature maps are added up, each weighted by the mean gradient of the class's logit with
    respect to it; what speaks against the class counts as nothing.

    Args:
        model: in evaluation mode, of any architecture in `backbones.BACKBONES`.
        images: (B, 1, S, S) float32, standardised, on the model's device.
        class_index: the class, or (B,) int64, one for each image.

    Returns:
        (B, S, S) float32. The hottest place of an image is 1; one where nothing speaks for the
        class is 0 throughout.
    """
    kept: list[Tensor] = []

    def cut(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        # Gradients end here, so the backbone's own activations aren't kept; a copy goes on, as
        # densenet's next step is in place.
        kept.append(output.detach().requires_grad_())
        return kept[0].clone()

    name = LAST_OF_RESNET if hasattr(model, LAST_OF_RESNET) else LAST_OF_OTHERS
    hook = model.get_submodule(name).register_forward_hook(cut)
    try:
        with torch.enable_grad():
            logits = model(images)
            wanted = torch.as_tensor(class_index, device=logits.device).expand(len(images))
            of_class = logits.gather(1, wanted[:, None]).sum()
            (gradients,) = torch.autograd.grad(of_class, kept[0])
    finally:
        hook.remove()
    weights = gradients.mean(dim=(2, 3), keepdim=True)
    heat = F.relu((weights * kept[0].detach()).sum(dim=1, keepdim=True))
    heat = F.interpolate(heat, size=images.shape[-2:], mode="bilinear", align_corners=False)
    hottest = heat.amax(dim=(2, 3), keepdim=True)
    scaled = torch.where(hottest > 0, heat / hottest.clamp_min(torch.finfo(heat.dtype).tiny), 0.0)
    return np.asarray(scaled[:, 0].float().cpu().numpy())


def overlay(pixels: NDArray[np.uint8], heat: NDArray[np.float32]) -> bytes:
    """A PNG of an image with heat laid over it, more opaque where it is hotter.

    Args:
        pixels: (S, S) uint8 grey.
        heat: (S, S) float32 in 0 to 1, as `grad_cam` gives it.
    """
    assert pixels.dtype == np.uint8 and pixels.shape == heat.shape, (pixels.shape, heat.shape)
    steps = np.linspace(0, 1, len(HEAT_COLOURS))
    colours = np.stack([np.interp(heat, steps, channel) for channel in HEAT_COLOURS.T], axis=-1)
    opacity = GREATEST_OPACITY * np.clip(heat, 0, 1)[..., None]
    mixed = (1 - opacity) * pixels[..., None] + opacity * colours
    png = io.BytesIO()
    Image.fromarray(np.rint(mixed).astype(np.uint8)).save(png, format="PNG", optimize=True)
    return png.getvalue()
