"""The ONNX copy of a network gives its logits, for any number of images."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from cxr_spark.models import standardise
from cxr_spark.onnx_export import to_onnx
from tests import artifacts


@pytest.mark.parametrize("architecture", ["resnet18", "densenet121", "efficientnet_b0"])
def test_onnx_gives_the_networks_logits_of_raw_pixels_in_batches_of_any_size(
    architecture: str,
) -> None:
    model = artifacts.network(architecture)
    content = to_onnx(model, image_size=64, mean=0.45, std=0.3)
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    for images in (1, 5):
        pixels = np.random.default_rng(images).integers(0, 256, (images, 1, 64, 64), np.uint8)
        with torch.inference_mode():
            expected = model(standardise(torch.from_numpy(pixels), 0.45, 0.3)).numpy()
        (logits,) = session.run(["logits"], {"pixels": pixels})
        assert logits.dtype == np.float32 and logits.shape == (images, 9)
        np.testing.assert_allclose(logits, expected, atol=1e-5 * np.abs(expected).max())


def test_the_same_network_gives_the_same_bytes_and_stays_as_it_was() -> None:
    model = artifacts.network().train()
    contents = {to_onnx(model, image_size=32, mean=0.5, std=0.2) for _ in range(2)}
    assert len(contents) == 1
    assert model.training
    graph = onnx.load_from_string(contents.pop()).graph
    assert "BatchNormalization" not in {node.op_type for node in graph.node}  # it's in evaluation
