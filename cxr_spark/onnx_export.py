"""A trained network as the content of an ONNX file: uint8 pixels in, logits out."""

import copy
import io
import warnings

import onnx
import torch
from torch import Tensor, nn

from cxr_spark.models import standardise

INPUT, OUTPUT = "pixels", "logits"
# A newer operator set would shut out older engines, and these networks need none of it.
OPSET = 17


class _FromPixels(nn.Module):
    """A network with its standardisation in front."""

    def __init__(self, network: nn.Module, mean: float, std: float) -> None:
        super().__init__()
        self.network, self.mean, self.std = network, mean, std

    def forward(self, pixels: Tensor) -> Tensor:
        return self.network(standardise(pixels, self.mean, self.std))


def to_onnx(model: nn.Module, *, image_size: int, mean: float, std: float) -> bytes:
    """The network in ONNX, with its standardisation inside the graph.

    Written by torch's TorchScript-based exporter: the newer one needs onnxscript, takes several
    times as long, and gives these convolutional networks the same graph.

    Args:
        model: from (B, 1, S, S) float32 to (B, 9) float32; it stays as it is.
        image_size: S.
        mean, std: of the train split's pixels / 255.

    Returns:
        The content of a `.onnx` file: input `pixels`, uint8 (B, 1, S, S) with any B; output
        `logits`, float32 (B, 9), neither corrected nor calibrated.
    """
    network = _FromPixels(copy.deepcopy(model).cpu(), mean, std).eval()
    content = io.BytesIO()
    with warnings.catch_warnings():
        # That the exporter is the older one, and that it follows one path through the network.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network,
            (torch.zeros(2, 1, image_size, image_size, dtype=torch.uint8),),
            content,  # type: ignore[arg-type]  # this exporter writes to a file, open or not
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_axes={INPUT: {0: "batch"}, OUTPUT: {0: "batch"}},
            opset_version=OPSET,
            dynamo=False,
        )
    onnx.checker.check_model(content.getvalue(), full_check=True)
    return content.getvalue()
