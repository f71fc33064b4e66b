"""The torchvision backbones that can be trained, by name; needs no torch."""

from typing import NamedTuple


class Backbone(NamedTuple):
    """Names of a network's first convolution and of the module that makes the logits."""

    stem: str
    head: str


BACKBONES = {
    "resnet18": Backbone("conv1", "fc"),
    "resnet50": Backbone("conv1", "fc"),
    "densenet121": Backbone("features.conv0", "classifier"),
    "efficientnet_b0": Backbone("features.0.0", "classifier"),
    "efficientnet_v2_s": Backbone("features.0.0", "classifier"),
    "convnext_tiny": Backbone("features.0.0", "classifier"),
}
