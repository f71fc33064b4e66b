"""Training on one rank: epochs, exact validations, checkpoints, and what is kept in the end.

Runs in one process, or in each of the ranks that TorchDistributor starts (`run_rank`). No Spark.
"""

import math
import time
from collections.abc import Callable
from contextlib import closing, nullcontext
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from cxr_spark import checkpoints, imbalance, ranks, schedule
from cxr_spark.calibration import fit_temperature, logit_offset
from cxr_spark.checkpoints import Kept, Standing
from cxr_spark.learner import Learner
from cxr_spark.metrics import cce, ece
from cxr_spark.models import build_model
from cxr_spark.onnx_export import to_onnx
from cxr_spark.ranks import Place, StopSign
from cxr_spark.read_plans import plan_training
from cxr_spark.training_log import TrainingLog, aloud, silently
from cxr_spark.training_plan import Fitted, TrainingPlan
from cxr_spark.training_run import INITIAL_FILE, STOP_FILE, open_run
from cxr_spark.validation import (
    EVALUATION_BATCH,
    Logits,
    Statistics,
    device_batches,
    evaluate,
    seconds_an_image,
    train_statistics,
)

ALONE = Place()
ADVICE = "try a lower learning rate"
# In the file of what is kept, beside the weights.
VAL_LOGITS, VAL_LABELS = "val.logits", "val.labels"


class Diverged(RuntimeError):
    """The training loss, or what the network says, is infinite or no number any more."""


def run_rank(
    folder: str, deadline: float | None = None, *, cores: int | None = None, quiet: bool = False
) -> None:
    """One rank of a run, from its last checkpoint to its end or to a request to stop.

    Nothing is returned: TorchDistributor lets the ranks write their results over each other.

    Args:
        folder: of the run, with its plan; every rank and the driver see it. Rank 0 leaves weights,
            ONNX and figures in it.
        deadline: Unix time by which the whole run must have ended; None: the steps decide.
        cores: that the rank may use at the most; None: its share of the machine's.
        quiet: tell no progress.
    """
    run = open_run(folder)
    seconds_left = math.inf if deadline is None else deadline - time.time()
    stop_sign = StopSign(run.folder / STOP_FILE, run.folder)
    plan = run.plan.for_time(deadline is not None)
    say = silently if quiet else aloud
    with (
        ranks.joined(folder, cores) as place,
        checkpoints.locked(run.folder, by_us=place.rank == 0),
    ):
        ranks.agree(False, 0.0, place)  # none reads a checkpoint before the lock is held
        if place.rank == 0 and (told := ranks.idle_gpus(place.world)):
            say(told)
        training = Training(plan, run.folder, place, seconds_left, stop_sign.look, say)
        if training.run() and place.rank == 0:
            run.keep_fitted(*training.results())


class Training:
    """A run on one rank, from its last checkpoint on.

    Args:
        plan: the same on all ranks.
        folder: of checkpoints, metrics and events; the same on all ranks.
        place: this rank; where there are several, torch's process group is up.
        seconds_left: until the whole run must have ended; infinite: the steps decide.
        should_stop: asked before each step.
        say: takes lines of progress, from rank 0.
    """

    def __init__(
        self,
        plan: TrainingPlan,
        folder: Path,
        place: Place = ALONE,
        seconds_left: float = math.inf,
        should_stop: Callable[[], bool] = lambda: False,
        say: Callable[[str], None] = aloud,
    ) -> None:
        self.plan, self.folder, self.place, self.should_stop = plan, folder, place, should_stop
        found = checkpoints.load(folder)
        self.standing = found[0] if found else _beginning(plan, place)
        standing = self.standing
        self.statistics = Statistics(standing.mean, standing.std, standing.train_counts)
        initial = None if found else _initial_weights(folder)
        self.learner = Learner(plan.options, self.statistics, place, initial)
        if found:
            self.learner.restore(found[1])
        learned = imbalance.learned_priors(standing.train_counts, plan.options.imbalance)
        self.learned_priors = learned
        self.offset = logit_offset(
            np.array(standing.train_counts) / sum(standing.train_counts), learned
        )
        modules = sum(1 for _ in self.learner.model.modules())
        self.schedule = schedule.Schedule(
            plan.steps, seconds_left, modules=modules, share=standing.share
        )
        self.began = time.monotonic() - standing.seconds
        self._set_total(torch.tensor([standing.loss, standing.rows], dtype=torch.float64))
        self.log = TrainingLog(plan, folder, standing, say) if place.rank == 0 else None

    def run(self) -> bool:
        """Train to the end; False: stopped at a checkpoint, as was asked for.

        Raises:
            Diverged: the loss became infinite or no number.
            ReadFailed, ReaderInputError: see the reader.
        """
        with closing(self.log) if self.log else nullcontext():
            while not self.standing.ended:
                if not self.train_one_epoch():
                    return False
                if not self._is_validated():  # time may be up just after a validation
                    self.validate()
        return True

    def train_one_epoch(self) -> bool:
        """What is left of a pass over the train split; False: stopped at a checkpoint."""
        plan, options, standing = self.plan, self.plan.options, self.standing
        done = standing.step - (standing.epoch - 1) * plan.epoch_steps
        rows = plan_training(
            plan.train_files,
            batch_size=options.batch_size,
            seed=options.seed,
            epoch=standing.epoch,
            rank=self.place.rank,
            world=self.place.world,
            class_weights=self._drawing_weights(),
        )
        batches = device_batches(rows, plan.image_size, self.place, skip=done)
        with closing(batches):
            for pixels, labels in batches:
                if self.schedule.validation_seconds is None:
                    self.schedule.validation_seconds = self._expected_validation_seconds(pixels)
                share = self.schedule.share(standing.step)
                stop, share = ranks.agree(self.should_stop(), share, self.place)
                if stop:
                    self.save()
                    return False
                if share >= 1 and standing.step:
                    standing.ended = True
                    break
                self._step(pixels, labels, share)
        return True

    def _expected_validation_seconds(self, pixels: Tensor) -> float:
        """Of a whole val split, by a batch of train, as none has been seen."""
        some = pixels[:EVALUATION_BATCH]
        seconds = seconds_an_image(self.learner.judged, some, self.statistics)
        return seconds * self.plan.val_rows / self.place.world

    def _drawing_weights(self) -> tuple[float, ...] | None:
        if self.plan.options.imbalance != "sampling":
            return None
        return tuple(imbalance.class_weights(self.standing.train_counts).tolist())

    def _step(self, pixels: Tensor, labels: Tensor, share: float) -> None:
        options, standing, began = self.plan.options, self.standing, time.monotonic()
        learning_rate = options.learning_rate * schedule.learning_rate_share(share, options.warm_up)
        self.total += self.learner.step(
            pixels, labels, number=standing.step, learning_rate=learning_rate
        )
        took = time.monotonic() - began
        self.schedule.step_seconds = min(self.schedule.step_seconds or took, took)
        standing.step += 1
        standing.share = share
        standing.seconds = time.monotonic() - self.began
        if self.log:
            self.log.stepped(self._loss_here, learning_rate)
        ends_epoch = standing.step % self.plan.epoch_steps == 0
        if standing.step % options.checkpoint_every == 0 and not ends_epoch:
            self.save()

    def validate(self) -> None:
        """Judge the network on the whole val split, keep it if it is the best, and save."""
        plan, standing = self.plan, self.standing
        began = time.monotonic()
        self.learner.settle()
        self._gather_loss()
        val = evaluate(
            self.learner.judged, plan.val_files, plan.image_size, self.place, self.statistics
        )
        if not np.isfinite(val.logits).all():
            raise Diverged(f"logits are no numbers after epoch {standing.epoch}: {ADVICE}")
        figures = val.figures(self.offset)
        self._keep_if_best(val, val.cce(self.offset))
        standing.seconds = time.monotonic() - self.began
        standing.metrics.append(
            {
                "epoch": standing.epoch,
                "step": standing.step,
                "train_cce": standing.loss / standing.rows,
                **figures,
                "seconds": round(standing.seconds, 3),
            }
        )
        self._set_total(torch.zeros(2, dtype=torch.float64))
        standing.loss = standing.rows = 0.0
        standing.ended |= self._is_over()
        if self.log:
            self.log.validated(standing.metrics)
        self.save()
        self.schedule.validation_seconds = time.monotonic() - began

    def _is_validated(self) -> bool:
        metrics = self.standing.metrics
        return bool(metrics) and metrics[-1]["step"] == self.standing.step

    def _keep_if_best(self, val: Logits, val_cce: float) -> None:
        standing = self.standing
        if standing.kept is not None and val_cce >= standing.kept.val_cce:
            return
        standing.kept = Kept(standing.epoch, val_cce, checkpoints.kept_name(standing))
        if self.place.rank == 0:
            tensors = dict(self.learner.judged.state_dict())
            tensors |= {VAL_LOGITS: torch.from_numpy(val.logits)}
            tensors |= {VAL_LABELS: torch.from_numpy(val.labels)}
            checkpoints.write_tensors(self.folder / standing.kept.file, tensors)

    def _is_over(self) -> bool:
        """After an epoch: whether it was the last, or val CCE no longer falls."""
        epochs, patience = self.plan.options.epochs, self.plan.options.patience
        trained, kept = len(self.standing.metrics), self.standing.kept
        assert kept is not None
        return (epochs is not None and trained >= epochs) or 0 < patience <= trained - kept.epoch

    def save(self) -> None:
        """Write a checkpoint; all ranks call it."""
        self.learner.settle()
        self._gather_loss()
        if self.place.rank == 0:
            checkpoints.save(self.folder, self.standing, self.learner.tensors())

    def _gather_loss(self) -> None:
        """Sum the epoch's loss over the ranks; rank 0 carries it on.

        Raises:
            Diverged: it is infinite or no number.
        """
        total = ranks.sum_over_ranks(self.total.cpu(), self.place)
        self.standing.loss, self.standing.rows = total.tolist()
        if not math.isfinite(self.standing.loss):
            standing = self.standing
            raise Diverged(f"the loss is {standing.loss} in epoch {standing.epoch}: {ADVICE}")
        self._set_total(total)

    def _set_total(self, total: Tensor) -> None:
        """Loss and rows of the epoch so far, which rank 0 carries for all."""
        here = total if self.place.rank == 0 else torch.zeros_like(total)
        self.total = here.to(self.place.device)

    def _loss_here(self) -> float:
        loss, rows = self.total.tolist()
        return loss / rows

    def results(self) -> tuple[bytes, bytes, Fitted]:
        """Weights, as the content of a safetensors file, ONNX and figures of what is kept."""
        standing, plan = self.standing, self.plan
        assert standing.kept is not None
        tensors = safetensors.torch.load_file(self.folder / standing.kept.file)
        val = Logits(tensors.pop(VAL_LOGITS).numpy(), tensors.pop(VAL_LABELS).numpy())
        model = build_model(plan.options.arch)
        model.load_state_dict(tensors)
        onnx = to_onnx(model, image_size=plan.image_size, mean=standing.mean, std=standing.std)
        temperature = fit_temperature(val.logits + self.offset, val.labels)
        calibrated = val.probabilities(self.offset, temperature)
        fitted = Fitted(
            mean=standing.mean,
            std=standing.std,
            temperature=temperature,
            train_counts=standing.train_counts,
            learned_priors=self.learned_priors.tolist(),
            metrics=standing.metrics,
            kept_epoch=standing.kept.epoch,
            val_rows=len(val.labels),
            val_cce=cce(calibrated, val.labels),
            val_cce_uncalibrated=standing.kept.val_cce,
            val_ece=ece(calibrated, val.labels),
        )
        return checkpoints.serialise(tensors), onnx, fitted


def _beginning(plan: TrainingPlan, place: Place) -> Standing:
    statistics = train_statistics(plan.train_files, plan.image_size, place)
    return Standing(statistics.mean, statistics.std, statistics.counts)


def _initial_weights(folder: Path) -> dict[str, Tensor] | None:
    path = folder / INITIAL_FILE
    return safetensors.torch.load_file(path) if path.exists() else None
