"""The learning rate warms up and falls; time that is given is kept to."""

import math
import time
from itertools import pairwise

import pytest

from cxr_spark import schedule as module
from cxr_spark.schedule import (
    EXPORT_SECONDS,
    FINISH_SECONDS,
    Schedule,
    learning_rate_share,
)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that tests set."""
    now = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def by_time(seconds: float, steps: int | None = None, **more: float) -> Schedule:
    schedule = Schedule(steps, seconds + FINISH_SECONDS, **more)
    assert schedule.validation_seconds is None
    schedule.validation_seconds = 0.0
    return schedule


def test_the_learning_rate_warms_up_and_falls_to_nothing() -> None:
    shares = [learning_rate_share(place / 100, 0.08) for place in range(101)]
    assert shares[:9] == pytest.approx([place / 8 for place in range(9)])
    assert shares[8 + 46] == pytest.approx(0.5)
    assert shares[100] == pytest.approx(0.0)
    assert all(later <= earlier for earlier, later in pairwise(shares[8:]))


def test_without_warm_up_it_begins_at_its_highest() -> None:
    assert learning_rate_share(0.0, 0.0) == 1.0


def test_by_steps_the_share_follows_them_alone() -> None:
    schedule = Schedule(20, math.inf)
    assert schedule.validation_seconds == 0.0  # none needs to be timed
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
    schedule = by_time(100, share=0.6)
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


def test_time_for_a_step_is_left_too(clock: list[float]) -> None:
    schedule = by_time(100)
    schedule.step_seconds = 5.0
    clock[0] += 94
    assert schedule.share(9) < 1
    clock[0] += 1
    assert schedule.share(10) == 1.0


def test_a_network_of_many_modules_is_left_more_time_to_write(clock: list[float]) -> None:
    few, many = (Schedule(None, 100 + FINISH_SECONDS, modules=number) for number in (0, 1000))
    clock[0] += 40
    assert few.share(9) == pytest.approx(0.4)
    assert many.share(9) == pytest.approx(40 / (100 - 1000 * EXPORT_SECONDS))


def test_a_run_that_goes_on_by_steps_never_falls_back(clock: list[float]) -> None:
    schedule = Schedule(100, math.inf, share=0.6)  # by a time that it had before
    assert [schedule.share(step) for step in (20, 59, 60)] == [0.6, 0.6, 0.605]


def test_time_that_is_too_short_is_over_at_once(clock: list[float]) -> None:
    schedule = Schedule(None, FINISH_SECONDS / 2)
    clock[0] += 0.001
    assert schedule.share(0) == 1.0
    assert time.monotonic() == clock[0]
