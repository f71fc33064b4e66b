"""Engines that run a trained network: ONNX Runtime on the CPU, torch where there is a GPU.

Measured by `make bench-engines`, ms of one core an image: ONNX Runtime is the fastest that gives
torch's own probabilities, and a worker that uses it imports no torch.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from cxr_spark.artifact import ArtifactError, Card, load_card, load_onnx
from cxr_spark.calibration import probabilities

Predict = Callable[[NDArray[np.uint8]], NDArray[np.float64]]
"""(B, S, S) uint8 pixels to (B, 9) calibrated probabilities."""

ENGINES = ("auto", "onnx", "torch")
# Images through the network at once: more gain nothing on a core, and their activations are large.
IMAGES_AT_ONCE = 16
PIXELS_AT_ONCE = 1 << 20
# Batches that may wait for the model while the next one is decoded.
AHEAD = 2
LOG_ERRORS = 3

Batch = TypeVar("Batch")
Result = TypeVar("Result")


def images_at_once(image_size: int) -> int:
    """How many images of a size go through a network together; 16 at 224 pixels."""
    return max(1, min(IMAGES_AT_ONCE, PIXELS_AT_ONCE // image_size**2))


def resolve(engine: str) -> str:
    """`onnx` or `torch`, of an engine's name; `auto` is torch on a machine with a GPU."""
    if engine != "auto":
        return engine
    return "torch" if any(Path("/dev").glob("nvidia[0-9]*")) else "onnx"


def load(folder: str | Path, engine: str, model_version: str | None = None) -> Predict:
    """A model ready to predict, on one thread: Spark runs a worker a core.

    Args:
        folder: the artifact.
        engine: `onnx`, or `torch`, which takes a GPU if there is one.
        model_version: that must be there; None: any.

    Raises:
        ArtifactError: no artifact, one that was changed, or another one.
    """
    predict, card = _by_torch(folder) if engine == "torch" else _by_onnx(folder)
    if model_version not in (None, card.model_version):
        raise ArtifactError(f"{folder}: {card.model_version} is there now, not {model_version}")
    return predict


def _by_onnx(folder: str | Path) -> tuple[Predict, Card]:
    card = load_card(folder)
    options = onnxruntime.SessionOptions()
    # With one thread each, no pools are made, and none is lost when a worker forks for a decoder.
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = LOG_ERRORS
    session = onnxruntime.InferenceSession(
        load_onnx(folder, card), options, providers=["CPUExecutionProvider"]
    )

    def predict(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
        (logits,) = session.run(["logits"], {"pixels": pixels[:, np.newaxis]})
        return probabilities(logits, card.temperature, card.logit_offset)

    return predict, card


def _by_torch(folder: str | Path) -> tuple[Predict, Card]:
    # Imported late: it takes seconds, and workers that run ONNX Runtime never need it.
    import torch

    from cxr_spark import models

    torch.set_num_threads(1)
    model, card = models.load_model(folder)
    predict = partial(models.predict, model, card)
    if torch.cuda.is_available():
        model.to("cuda")
        # CUDA maps much of what it needs when it first works, which decoding leaves no room for.
        side = card.image_size
        predict(np.zeros((images_at_once(side), side, side), np.uint8))
    return predict, card


def in_turn(
    batches: Iterable[Batch], infer: Callable[[Batch], Result]
) -> Iterator[tuple[Batch, Result]]:
    """Each batch with what the model says of it, before the next batch is made."""
    return ((batch, infer(batch)) for batch in batches)


def decoding_ahead(
    batches: Iterable[Batch], infer: Callable[[Batch], Result]
) -> Iterator[tuple[Batch, Result]]:
    """The same, with the model in a thread of its own, so that decoding goes on meanwhile.

    For a GPU: on one core both would only take it from each other. The batches are made in the
    caller's thread, as decoding under an alarm must run in a process' main thread.
    """
    waiting: deque[tuple[Batch, Future[Any]]] = deque()
    with ThreadPoolExecutor(max_workers=1) as thread:
        for batch in batches:
            waiting.append((batch, thread.submit(infer, batch)))
            if len(waiting) > AHEAD:
                done, future = waiting.popleft()
                yield done, future.result()
        for done, future in waiting:
            yield done, future.result()
