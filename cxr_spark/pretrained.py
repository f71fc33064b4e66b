"""Weights of a file, folded to one grey channel and fitted to our classes."""

import pickle
import re
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from cxr_spark.backbones import BACKBONES
from cxr_spark.models import build_model

# Torchvision's files of densenets are older than its code, which renames these on loading, too.
OLD_NAME = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.)")


class WeightsError(ValueError):
    """A file of weights that the network can't begin with."""


def read_weights(path: str | Path, architecture: str) -> bytes:
    """The tensors of a weights file that `build_model(architecture)` takes, as safetensors.

    The first convolution is folded to one channel by the sum of its weights over the channels,
    which gives on a grey image what the original gives on it repeated. Tensors of the classifier
    whose shape is another are left out: it begins afresh.

    Args:
        path: `.safetensors`, or `.pt` or `.pth` as torch.save writes a state_dict; nothing in it is
            unpickled but tensors. Names are torchvision's.
        architecture: a name in `BACKBONES`.

    Raises:
        WeightsError: the file can't be read, or its tensors are not the network's.
    """
    given = {OLD_NAME.sub(r"\1\2", name): tensor for name, tensor in _read(Path(path)).items()}
    expected = build_model(architecture).state_dict()
    stem, head = BACKBONES[architecture]
    first = given.get(f"{stem}.weight")
    if first is not None and first.ndim == 4:
        given[f"{stem}.weight"] = first.sum(dim=1, keepdim=True)
    fitting = {
        name: tensor
        for name, tensor in given.items()
        if not (name.startswith(f"{head}.") and _shape(expected, name) != tensor.shape)
    }
    _refuse_misfits(path, architecture, fitting, expected)
    return safetensors.torch.save({n: t.contiguous() for n, t in fitting.items()})


def _read(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise WeightsError(f"{path}: no file of weights: {error}") from error
    except safetensors.SafetensorError as error:
        raise WeightsError(f"{path}: no safetensors file: {error}") from error
    if not isinstance(content, dict) or not all(isinstance(v, Tensor) for v in content.values()):
        raise WeightsError(
            f"{path}: expected a dictionary of tensors, as torch.save(model.state_dict()) writes it"
        )
    return content


def _refuse_misfits(
    path: str | Path, architecture: str, given: dict[str, Tensor], expected: dict[str, Tensor]
) -> None:
    head = f"{BACKBONES[architecture].head}."
    # Files from before torch 0.4.1 lack the counters of batches, which nothing is computed from.
    needed = {n for n in expected if not n.startswith(head) and "num_batches_tracked" not in n}
    found = {
        "missing": needed - given.keys(),
        "unknown": given.keys() - expected.keys(),
        "of another shape": {
            n for n, t in given.items() if _shape(expected, n) not in (None, t.shape)
        },
    }
    told = [
        f"{len(names)} {kind} ({', '.join(sorted(names)[:3])} ...)"
        for kind, names in found.items()
        if names
    ]
    if told:
        raise WeightsError(f"{path}: not torchvision's {architecture}: tensors {'; '.join(told)}")


def _shape(tensors: dict[str, Tensor], name: str) -> torch.Size | None:
    return tensors[name].shape if name in tensors else None
