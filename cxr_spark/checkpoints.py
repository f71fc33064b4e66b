"""Checkpoints of a training run: tensors as safetensors, the rest as JSON; nothing is pickled.

A checkpoint is whole or it isn't there: checkpoint.json, written last, names the tensors' files,
and files that it doesn't name are leftovers.
"""

import contextlib
import fcntl
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Self

import safetensors.torch
from torch import Tensor

from cxr_spark.training_run import write_atomically, write_json

CHECKPOINT_FILE = "checkpoint.json"
LOCK_FILE = "checkpoints.lock"
LOCK_SECONDS = 30.0

Tensors = dict[str, Tensor]


class FolderInUse(RuntimeError):
    """Ranks of another attempt still write checkpoints to the folder."""


class Kept(NamedTuple):
    """The epoch whose weights stay, so far: their file also holds the logits on val."""

    epoch: int
    val_cce: float
    file: str


@dataclass
class Standing:
    """How far a run is; with the tensors all that it needs to go on.

    Attributes:
        step: optimiser steps done.
        share: of the schedule that is done.
        seconds: spent so far, validation included.
        loss, rows: summed over the rows of the epoch under way, all ranks together.
        metrics: of the epochs validated so far.
        kept: None before the first validation.
        ended: nothing is left to train.
        mean, std: of the train split's pixels / 255.
        train_counts: its images of each class.
    """

    mean: float
    std: float
    train_counts: list[int]
    step: int = 0
    share: float = 0.0
    seconds: float = 0.0
    loss: float = 0.0
    rows: float = 0.0
    metrics: list[dict[str, float | None]] = field(default_factory=list)
    kept: Kept | None = None
    ended: bool = False

    @property
    def epoch(self) -> int:
        """The epoch under way, counted from 1."""
        return len(self.metrics) + 1

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Self:
        """The standing of a parsed checkpoint.json."""
        kept = content["kept"]
        return cls(**content | {"kept": None if kept is None else Kept(*kept)})


def save(folder: Path, standing: Standing, tensors: Tensors) -> None:
    """Write a checkpoint in place of the last one."""
    name = f"step-{standing.step:08}-{standing.epoch:04}.safetensors"
    write_tensors(folder / name, tensors)
    write_json(folder / CHECKPOINT_FILE, {"tensors": name, "standing": asdict(standing)})
    used = {name, standing.kept.file if standing.kept else name}
    # Those that a kill left half written have a dot in front and a suffix more.
    for path in folder.glob("*-*.safetensors*"):
        if path.name not in used:
            path.unlink()


def load(folder: Path) -> tuple[Standing, Tensors] | None:
    """The last checkpoint; None where there is none."""
    try:
        content = json.loads((folder / CHECKPOINT_FILE).read_text("utf-8"))
    except FileNotFoundError:
        return None
    standing = Standing.from_json(content["standing"])
    return standing, safetensors.torch.load_file(folder / content["tensors"])


def kept_name(standing: Standing) -> str:
    """The file for the weights of the epoch under way; they stay if the next checkpoint says so."""
    return f"kept-{standing.epoch:04}.safetensors"


def write_tensors(path: Path, tensors: Tensors) -> None:
    """Write tensors of any device and memory format as a safetensors file."""
    write_atomically(path, serialise(tensors))


def serialise(tensors: Tensors) -> bytes:
    """Tensors of any device and memory format as the content of a safetensors file."""
    return safetensors.torch.save({k: v.detach().cpu().contiguous() for k, v in tensors.items()})


@contextlib.contextmanager
def locked(folder: Path, *, by_us: bool) -> Iterator[None]:
    """Hold the folder's lock, unless that is another rank's task.

    It is waited for: ranks whose driver was killed need a moment to end.

    Raises:
        FolderInUse: another process holds it for long.
    """
    if not by_us:
        yield
        return
    with (folder / LOCK_FILE).open("a") as file:
        end = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if time.monotonic() > end:
                    raise FolderInUse(f"{folder}: ranks of another attempt still run") from error
                time.sleep(0.2)
        yield
