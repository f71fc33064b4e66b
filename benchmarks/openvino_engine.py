"""A graph on OpenVINO, one thread, at f32; runs where OpenVINO is, beside `benchmarks.engines`.

    python -m benchmarks.openvino_engine MODEL.onnx PIXELS.npy LOGITS.npy ROUNDS

Prints the milliseconds of each round as a JSON list; OpenVINO takes bf16 where the CPU has it,
unless it is asked for f32.
"""

import json
import sys
import time

import numpy as np
import openvino


def main() -> None:
    """Run it."""
    graph, pixels_file, logits_file, rounds = sys.argv[1:]
    pixels = np.load(pixels_file)
    settings = {"INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(graph, "CPU", settings)
    logits = compiled([pixels])[0]
    np.save(logits_file, logits)
    milliseconds = []
    for _ in range(int(rounds)):
        began = time.process_time()
        compiled([pixels])
        milliseconds.append(1000 * (time.process_time() - began) / len(pixels))
    print(json.dumps(milliseconds))


if __name__ == "__main__":
    main()
