"""How far a training run is, by steps or by time, and the learning rate there."""

import math
import time

# What follows the last validation: the artifact, the commits, Spark's end, and the ONNX copy, which
# takes the longer the more modules a network has (on a busy core: resnet18 with 68 of them 2
# seconds, efficientnet_v2_s with the most 12).
FINISH_SECONDS = 15.0
EXPORT_SECONDS = 0.02  # a module


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
        modules: of the network.
        share: how far the run was when it was interrupted; it never falls back behind that.

    Attributes:
        validation_seconds: how long a validation takes; None: not known yet, and needed.
        step_seconds: how long a step takes at least: time for one is left, too.
    """

    def __init__(
        self, steps: int | None, seconds_left: float, *, modules: int = 0, share: float = 0.0
    ) -> None:
        self.steps, self.first_share = steps, share
        self.seconds_left = seconds_left - FINISH_SECONDS - EXPORT_SECONDS * modules
        self.validation_seconds: float | None = None if seconds_left < math.inf else 0.0
        self.step_seconds = 0.0
        self.began = time.monotonic()

    def share(self, step: int) -> float:
        """The share done in the middle of a step, counted from 0; 1 or more where time is up."""
        by_steps = (step + 0.5) / self.steps if self.steps else 0.0
        return max(self.first_share, by_steps, self._share_by_time())

    def _share_by_time(self) -> float:
        if self.seconds_left == math.inf:
            return 0.0
        elapsed = time.monotonic() - self.began
        available = self.seconds_left - (self.validation_seconds or 0.0) - self.step_seconds
        done = elapsed / available if elapsed < available else 1.0
        return self.first_share + (1 - self.first_share) * done
