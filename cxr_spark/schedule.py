"""How far a training run is, by steps or by time, and the learning rate there."""

import math
import time

# Forward alone takes about this part of a training step, until a validation has been timed.
FORWARD_SHARE = 0.4
# What follows the last validation: the ONNX copy, the artifact, the commits, Spark's end.
FINISH_SECONDS = 15.0


def learning_rate_share(share: float, warm_up: float) -> float:
    """The share of the highest learning rate: a linear warm-up, then a cosine to 0.

    Args:
        share: of the whole training, 0 to 1.
        warm_up: the share that the warm-up takes.
    """
    if share < warm_up:
        return share / warm_up
    return (1 + math.cos(math.pi * min(1.0, (share - warm_up) / (1 - warm_up)))) / 2


class Schedule:
    """The share of the training that is done; where steps and time are given, what is further.

    Time that is left holds the last validation and what follows it, too: they are taken off.

    Args:
        steps: of all epochs; None where time alone decides.
        seconds_left: until the run must have ended; infinite where steps decide.
        val_share: images of val for each one of train.
        epoch_steps: optimiser steps of an epoch.
        step, share: how far the run was when it was interrupted.
    """

    def __init__(
        self,
        steps: int | None,
        seconds_left: float,
        *,
        val_share: float,
        epoch_steps: int,
        step: int = 0,
        share: float = 0.0,
    ) -> None:
        self.steps, self.seconds_left = steps, seconds_left
        self.first_step, self.first_share = step, share
        # Until one has been timed, a validation is taken to last as long as so many steps.
        self.validation_steps = FORWARD_SHARE * val_share * epoch_steps
        self.validation_seconds: float | None = None
        self.began = time.monotonic()

    def share(self, step: int) -> float:
        """The share done in the middle of a step, counted from 0; 1 or more where time is up."""
        by_steps = (step + 0.5) / self.steps if self.steps else 0.0
        return max(by_steps, self._share_by_time(step))

    def _share_by_time(self, step: int) -> float:
        if self.seconds_left == math.inf:
            return 0.0
        elapsed = time.monotonic() - self.began
        validation = self.validation_seconds
        if validation is None:
            validation = self.validation_steps * elapsed / max(1, step - self.first_step)
        available = self.seconds_left - FINISH_SECONDS - validation
        done = elapsed / available if elapsed < available else 1.0
        return self.first_share + (1 - self.first_share) * done
