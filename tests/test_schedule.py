"""The learning rate warms up and falls; time that is given is kept to."""

import math
import time
from itertools import pairwise

import pytest

from cxr_spark import schedule as module
from cxr_spark.schedule import FINISH_SECONDS, Schedule, learning_rate_share


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that tests set."""
    now = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def by_time(seconds: float, **more: float) -> Schedule:
    given = {"steps": None, "val_share": 0.0, "epoch_steps": 10} | more
    return Schedule(seconds_left=seconds + FINISH_SECONDS, **given)


def test_the_learning_rate_warms_up_and_falls_to_nothing() -> None:
    shares = [learning_rate_share(place / 100, 0.08) for place in range(101)]
    assert shares[:9] == pytest.approx([place / 8 for place in range(9)])
    assert shares[8 + 46] == pytest.approx(0.5)
    assert shares[100] == pytest.approx(0.0)
    assert all(later <= earlier for earlier, later in pairwise(shares[8:]))


def test_without_warm_up_it_begins_at_its_highest() -> None:
    assert learning_rate_share(0.0, 0.0) == 1.0


def test_by_steps_the_share_follows_them_alone() -> None:
    schedule = Schedule(20, math.inf, val_share=0.5, epoch_steps=5)
    assert [schedule.share(step) for step in (0, 9, 19)] == [0.025, 0.475, 0.975]


def test_by_time_the_share_follows_the_clock(clock: list[float]) -> None:
    schedule = by_time(100)
    for elapsed, share in ((0, 0.0), (50, 0.5), (100, 1.0), (150, 1.0)):
        clock[0] = 1000 + elapsed
        assert schedule.share(3) == pytest.approx(share)


def test_with_steps_and_time_what_is_further_counts(clock: list[float]) -> None:
    schedule = by_time(100, steps=10)
    clock[0] += 30
    assert schedule.share(2) == pytest.approx(0.3)
    assert schedule.share(6) == pytest.approx(0.65)


def test_a_run_that_goes_on_spreads_what_is_left_over_its_time(clock: list[float]) -> None:
    schedule = by_time(100, share=0.6, step=30)
    assert schedule.share(30) == pytest.approx(0.6)
    clock[0] += 50
    assert schedule.share(40) == pytest.approx(0.8)
    clock[0] += 50
    assert schedule.share(50) == pytest.approx(1.0)


def test_the_last_validation_is_taken_off_as_long_as_it_was_seen_to_last(
    clock: list[float],
) -> None:
    schedule = by_time(100)
    schedule.validation_seconds = 20.0
    clock[0] += 40
    assert schedule.share(5) == pytest.approx(0.5)


def test_before_one_was_seen_it_is_judged_by_the_steps(clock: list[float]) -> None:
    schedule = by_time(100, val_share=0.5, epoch_steps=100)
    clock[0] += 10  # 10 steps of a second each: a validation of half an epoch takes 20
    assert schedule.share(10) == pytest.approx(10 / 80)


def test_time_that_is_too_short_is_over_at_once(clock: list[float]) -> None:
    schedule = Schedule(None, FINISH_SECONDS / 2, val_share=0.1, epoch_steps=10)
    clock[0] += 0.001
    assert schedule.share(0) == 1.0
    assert time.monotonic() == clock[0]
