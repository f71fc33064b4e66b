"""Engines for inference on the CPU: milliseconds of one core an image, and how far from eager.

    make bench-engines
    .venv/bin/python -m benchmarks.engines --arch resnet18 --model models/VERSION

Time of the process, and not of the clock, so that neighbours on the machine count little; one
thread, 16 images at once, 224 pixels. A compile needs a C++ compiler, OpenVINO an environment that
has it; what can't be run is left out.
"""

import argparse
import json
import subprocess
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import onnxruntime
import torch
from torch import nn

from cxr_spark import models
from cxr_spark.artifact import Card
from cxr_spark.calibration import probabilities
from tests import artifacts

SIDE, IMAGES = 224, 16
Engine = Callable[[], np.ndarray]


def of_torch(model: nn.Module, card: Card, pixels: np.ndarray, channels_last: bool) -> Engine:
    """The module as it is, on input in one of two layouts."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    images = torch.from_numpy(pixels)

    def run() -> np.ndarray:
        with torch.inference_mode():
            inputs = models.standardise(images, card.mean, card.std).contiguous(
                memory_format=layout
            )
            return model(inputs).numpy()

    return run


def frozen(model: nn.Module) -> nn.Module:
    """TorchScript, traced, frozen, and optimised for inference."""
    traced = torch.jit.trace(model, torch.zeros(IMAGES, 1, SIDE, SIDE))
    return torch.jit.optimize_for_inference(torch.jit.freeze(traced))


def of_onnx(graph: Path, pixels: np.ndarray) -> Engine:
    """ONNX Runtime."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(["logits"], {"pixels": pixels})[0]


def engines(folder: Path, pixels: np.ndarray) -> dict[str, Engine]:
    """All that run in this process, by name; eager first."""
    network, card = models.load_model(folder)
    plain = network.to(memory_format=torch.contiguous_format)
    made = {"eager": of_torch(plain, card, pixels, False)}
    network, _ = models.load_model(folder)
    last = network.to(memory_format=torch.channels_last)
    made["channels_last"] = of_torch(last, card, pixels, True)
    made["compile"] = of_torch(torch.compile(last), card, pixels, True)
    made["torchscript"] = of_torch(frozen(plain), card, pixels, False)
    made["onnxruntime"] = of_onnx(folder / "model.onnx", pixels)
    return made


def openvino(
    python: str, folder: Path, pixels: np.ndarray, rounds: int
) -> tuple[list[float], np.ndarray] | None:
    """Milliseconds and logits of OpenVINO in its own environment; None without one."""
    with tempfile.TemporaryDirectory() as scratch:
        given, said = f"{scratch}/pixels.npy", f"{scratch}/logits.npy"
        np.save(given, pixels)
        command = [python, "-m", "benchmarks.openvino_engine", str(folder / "model.onnx")]
        try:
            done = subprocess.run(
                [*command, given, said, str(rounds)], capture_output=True, text=True, check=True
            )
        except (OSError, subprocess.CalledProcessError) as error:
            print(f"openvino: left out: {error}")
            return None
        return json.loads(done.stdout.splitlines()[-1]), np.load(said)


def measure(folder: Path, rounds: int, python: str) -> dict[str, dict[str, float]]:
    """By engine: milliseconds of a core an image, its ratio to eager, the largest difference."""
    card = models.load_card(folder)
    shape = (IMAGES, 1, SIDE, SIDE)
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    made = engines(folder, pixels)
    logits, milliseconds = {}, {}
    for name, run in list(made.items()):
        try:
            logits[name] = run()
            milliseconds[name] = []
        except Exception as error:  # no compiler
            print(f"{name}: left out: {type(error).__name__}")
            del made[name]
    for _ in range(rounds):
        for name, run in made.items():
            began = time.process_time()
            run()
            milliseconds[name].append(1000 * (time.process_time() - began) / IMAGES)
    if found := openvino(python, folder, pixels, rounds):
        milliseconds["openvino"], logits["openvino"] = found
    said = {n: probabilities(v, card.temperature, card.logit_offset) for n, v in logits.items()}
    eager = median(milliseconds["eager"])
    return {
        name: {
            "ms": round(median(values), 1),
            "times_eager": round(eager / median(values), 2),
            "difference": float(np.abs(said[name] - said["eager"]).max()),
        }
        for name, values in milliseconds.items()
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--arch", action="append", help="default: resnet18 and densenet121")
    parser.add_argument("--model", help="an artifact of 224 pixels, in place of a random network")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--python", default=".venv-bench/bin/python", help="that has OpenVINO")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as scratch:
        for arch in options.arch or ("resnet18", "densenet121"):
            folder = Path(
                options.model or artifacts.save(Path(scratch), architecture=arch, size=SIDE)
            )
            found = measure(folder, options.rounds, options.python)
            print(json.dumps({"benchmark": "engines", "arch": arch, "engines": found}), flush=True)


if __name__ == "__main__":
    main()
