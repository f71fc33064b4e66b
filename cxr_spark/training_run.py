"""The folder of a training run: what it was asked for, how far it is, what stays of it.

`<models>/.runs/<run_id>/` holds plan.json from the start, checkpoints and tracebacks while it
trains, metrics.csv and TensorBoard's events, and after the end summary.json.
"""

import contextlib
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from cxr_spark.artifact import sync_folder, write_synced
from cxr_spark.run import InputError
from cxr_spark.training_plan import Fitted, TrainingPlan

RUNS_FOLDER = ".runs"
PLAN_FILE = "plan.json"
SUMMARY_FILE = "summary.json"
METRICS_FILE = "metrics.csv"
EVENTS = "events.out.tfevents"
STOP_FILE = "stop"
TRACEBACKS = "rank-*.txt"
INITIAL_FILE = "initial.safetensors"
WEIGHTS_FILE = "weights.safetensors"
ONNX_FILE = "model.onnx"
FITTED_FILE = "fitted.json"


class DifferentRun(ValueError):
    """The run to go on with was asked for something else."""


class TrainingRun(NamedTuple):
    """A run's folder and what it was asked for."""

    folder: Path
    plan: TrainingPlan

    @property
    def summary(self) -> dict[str, Any] | None:
        """What a finished run said of itself; None of an unfinished one."""
        path = self.folder / SUMMARY_FILE
        return json.loads(path.read_text("utf-8")) if path.exists() else None

    @property
    def has_trained(self) -> bool:
        """Whether the ranks are done: weights, ONNX and figures are there."""
        return (self.folder / FITTED_FILE).exists()

    def fitted(self) -> tuple[bytes, bytes, Fitted]:
        """Weights (the content of a safetensors file), ONNX and figures of ranks that are done."""
        figures = Fitted(**json.loads((self.folder / FITTED_FILE).read_text("utf-8")))
        weights, onnx = ((self.folder / name).read_bytes() for name in (WEIGHTS_FILE, ONNX_FILE))
        return weights, onnx, figures

    def keep_fitted(self, weights: bytes, onnx: bytes, fitted: Fitted) -> None:
        """Leave what the ranks found for the driver, the figures last."""
        write_atomically(self.folder / WEIGHTS_FILE, weights)
        write_atomically(self.folder / ONNX_FILE, onnx)
        write_json(self.folder / FITTED_FILE, asdict(fitted))

    @property
    def failure(self) -> str | None:
        """Rank and traceback of the rank that failed first; None where none has left one.

        The others fail soon after it, as their partner is gone.
        """
        files = sorted(self.folder.glob(TRACEBACKS), key=lambda path: path.stat().st_mtime_ns)
        return f"{files[0].stem}:\n{files[0].read_text('utf-8')}" if files else None

    def clear_signs(self) -> None:
        """Remove what an earlier attempt left: the request to stop and tracebacks."""
        for path in [self.folder / STOP_FILE, *self.folder.glob(TRACEBACKS)]:
            path.unlink(missing_ok=True)

    def request_stop(self) -> None:
        """Ask the ranks to stop at their next step."""
        (self.folder / STOP_FILE).touch()

    def finish(self, summary: dict[str, Any]) -> None:
        """Write the summary, and keep plan, metrics and events beside it alone."""
        write_json(self.folder / SUMMARY_FILE, summary)
        self.tidy()

    def tidy(self) -> None:
        """Remove what a finished run needs no more, which a kill may have left."""
        for path in self.folder.iterdir():
            kept = path.name in (PLAN_FILE, SUMMARY_FILE, METRICS_FILE)
            if not kept and not path.name.startswith(EVENTS):
                path.unlink()


def check_folder(models: str | Path) -> None:
    """Refuse, before anything is done, a folder of artifacts that can't be made or written to.

    Raises:
        InputError: it can't.
    """
    for folder in (Path(models).absolute(), Path(models).absolute() / RUNS_FOLDER):
        there = next(path for path in (folder, *folder.parents) if os.path.exists(path))
        if not there.is_dir():
            raise InputError(f"--models {models}: {there} is no folder")
        if not os.access(there, os.W_OK | os.X_OK):
            raise InputError(f"--models {models}: {there} can't be written to")


def begin(models: str | Path, plan: TrainingPlan, initial: bytes | None = None) -> TrainingRun:
    """Make the folder of a new run, complete or not at all.

    Args:
        models: the folder of the artifacts.
        plan: with its run_id.
        initial: weights to begin with, as models.pretrained_weights gives them.
    """
    folder = Path(models).absolute() / RUNS_FOLDER / plan.run_id
    unfinished = folder.with_name(f".{plan.run_id}")
    unfinished.mkdir(parents=True)
    if initial is not None:
        write_synced(unfinished / INITIAL_FILE, initial)
    write_json(unfinished / PLAN_FILE, plan.to_json())
    unfinished.rename(folder)
    sync_folder(folder.parent)
    return TrainingRun(folder, plan)


def open_run(folder: str | Path) -> TrainingRun:
    """The run of a folder.

    Raises:
        TypeError: another version of cxr_spark, with other options, began it.
    """
    content = json.loads((Path(folder) / PLAN_FILE).read_text("utf-8"))
    return TrainingRun(Path(folder), TrainingPlan.from_json(content))


def find_run(models: str | Path, plan: TrainingPlan) -> TrainingRun | None:
    """The run to go on with: the newest unfinished one.

    Returns:
        Where none is unfinished, the newest finished one that was asked for the same; None where
        there is none of these either.

    Raises:
        DifferentRun: the newest unfinished run was asked for something else.
    """
    runs = _newest_first(Path(models))
    unfinished = next((run for run in runs if run.summary is None), None)
    if unfinished is None:
        return next((run for run in runs if not run.plan.differences(plan)), None)
    if told := "; ".join(unfinished.plan.differences(plan)):
        raise DifferentRun(
            f"{unfinished.folder.name} is the newest unfinished run and can't go on like this: "
            f"{told}. Give it the same again, train without --resume, or give it up by removing "
            f"{unfinished.folder}"
        )
    return unfinished


def _newest_first(models: Path) -> list[TrainingRun]:
    """The runs that this version can go on with."""
    runs = []
    for path in models.absolute().glob(f"{RUNS_FOLDER}/[!.]*/{PLAN_FILE}"):
        with contextlib.suppress(TypeError):
            runs.append(open_run(path.parent))
    return sorted(runs, key=lambda run: run.plan.created_at, reverse=True)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file under its name once it is whole and on the disk."""
    write_atomically(path, json.dumps(content, indent=1).encode())


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file under its name once it is whole and on the disk."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    unfinished.unlink(missing_ok=True)
    write_synced(unfinished, content)
    unfinished.rename(path)
    sync_folder(path.parent)
