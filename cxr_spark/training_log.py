"""What a training run tells while it runs: lines, metrics.csv and TensorBoard's events."""

import csv
import io
import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tensorboardX import SummaryWriter

from cxr_spark.checkpoints import Standing
from cxr_spark.training_plan import TrainingPlan
from cxr_spark.training_run import METRICS_FILE, write_atomically

PROGRESS_SECONDS = 10.0
TOLD = ("train_cce", "val_cce", "val_accuracy", "val_ece")


def aloud(line: str) -> None:
    """A line on stderr."""
    print(line, file=sys.stderr, flush=True)


def silently(line: str) -> None:
    """No line."""


class TrainingLog:
    """The log of rank 0.

    Args:
        plan: of the run.
        folder: of the run.
        standing: how far it is; read whenever something is told.
        say: takes the lines.
    """

    def __init__(
        self, plan: TrainingPlan, folder: Path, standing: Standing, say: Callable[[str], None]
    ) -> None:
        self.plan, self.folder, self.standing, self.say = plan, folder, standing, say
        self.first_step = standing.step
        # Events of steps that an interrupted attempt took after its checkpoint are taken back.
        purged = standing.step + 1 if standing.step else None
        self.events = SummaryWriter(str(folder), purge_step=purged, write_to_disk=True)
        self.began = self.spoke_at = time.monotonic()

    def stepped(self, loss: Callable[[], float], learning_rate: float) -> None:
        """After a step: a line now and then; the loss is asked for only then."""
        if time.monotonic() - self.spoke_at < PROGRESS_SECONDS:
            return
        self.spoke_at = time.monotonic()
        figures: dict[str, float | None] = {
            "train_loss": loss(),
            "learning_rate": learning_rate,
            "images_per_second": self.images_per_second,
        }
        self._add_events(figures)
        self._say(self.standing.epoch, f"loss {figures['train_loss']:.3f}")

    def validated(self, metrics: Sequence[dict[str, float | None]]) -> None:
        """After an epoch and its validation: all epochs so far, the last one is new."""
        newest = metrics[-1]
        self._add_events(newest)
        self.events.flush()
        text = io.StringIO()
        rows = csv.DictWriter(text, fieldnames=list(newest))
        rows.writeheader()
        rows.writerows(metrics)
        write_atomically(self.folder / METRICS_FILE, text.getvalue().encode())
        told = ", ".join(f"{name} {newest[name]:.3f}" for name in TOLD)
        self._say(len(metrics), told)

    def close(self) -> None:
        """Write out what waits."""
        self.events.close()

    @property
    def images_per_second(self) -> float:
        """Of this attempt, validation and checkpoints included."""
        steps = self.standing.step - self.first_step
        images = steps * self.plan.train_rows / self.plan.epoch_steps
        return images / (time.monotonic() - self.began)

    def _add_events(self, figures: dict[str, float | None]) -> None:
        for name, value in figures.items():
            if value is not None:
                self.events.add_scalar(name, value, self.standing.step)

    def _say(self, epoch: int, figures: str) -> None:
        plan, standing = self.plan, self.standing
        epochs = f" of {plan.options.epochs}" if plan.options.epochs else ""
        steps = f" of {plan.steps:,}" if plan.steps else ""
        seconds, share = standing.seconds, standing.share
        left = seconds * (1 - share) / share if share > 0 else math.inf
        self.say(
            f"epoch {epoch}{epochs}, step {standing.step:,}{steps}, "
            f"{self.images_per_second:.0f} images/s, {figures}, {left:.0f} s left"
        )
