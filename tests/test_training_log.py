"""What is told of a training: lines now and then, events that TensorBoard reads."""

import struct
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from tensorboardX.proto.event_pb2 import Event

from cxr_spark import training_log
from cxr_spark.checkpoints import Standing
from cxr_spark.read_plans import RowFile
from cxr_spark.train_options import TrainOptions
from cxr_spark.training_log import TrainingLog
from cxr_spark.training_plan import TrainingPlan

# Seven steps an epoch.
PLAN = TrainingPlan(
    TrainOptions(epochs=4, batch_size=16), 32, (RowFile("/a", 108),), (RowFile("/b", 20),)
)
METRICS = {"epoch": 1, "step": 7, "train_cce": 2.0, "val_cce": 1.25, "val_accuracy": 0.5}
METRICS |= {"val_ece": 0.1, "val_auroc_covid": None}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Seconds that tests set."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(training_log, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def events(folder: Path) -> Iterator[tuple[str, int, float]]:
    """Name, step and value of what the event files hold, the oldest file first."""
    for path in sorted(folder.glob("events.out.tfevents*")):
        content = path.read_bytes()
        while content:  # length, its checksum, the event, its checksum
            (length,) = struct.unpack("<Q", content[:8])
            event = Event.FromString(content[12 : 12 + length])
            content = content[length + 16 :]
            for value in event.summary.value:
                yield value.tag, event.step, value.simple_value


def test_lines_tell_step_speed_loss_and_time_left(tmp_path: Path, clock: SimpleNamespace) -> None:
    lines: list[str] = []
    standing = Standing(0.5, 0.2, [12] * 9)
    log = TrainingLog(PLAN, tmp_path, standing, lines.append)
    standing.step, standing.share, standing.seconds, clock.now = 1, 0.03, 4.0, 4.0
    log.stepped(lambda: pytest.fail("the loss costs a wait"), 1e-3)
    assert lines == []
    standing.step, standing.share, standing.seconds, clock.now = 6, 0.2, 12.0, 12.0
    log.stepped(lambda: 1.5, 1e-3)
    assert lines == ["epoch 1 of 4, step 6 of 28, 8 images/s, loss 1.500, 48 s left"]
    standing.step, standing.share, standing.seconds, clock.now = 7, 0.25, 16.0, 16.0
    log.validated([METRICS])
    log.close()
    assert lines[1:] == [
        "epoch 1 of 4, step 7 of 28, 7 images/s, train_cce 2.000, val_cce 1.250, "
        "val_accuracy 0.500, val_ece 0.100, 48 s left"
    ]


def test_events_are_read_back_as_they_were_told(tmp_path: Path, clock: SimpleNamespace) -> None:
    standing = Standing(0.5, 0.2, [12] * 9)
    log = TrainingLog(PLAN, tmp_path, standing, lambda line: None)
    standing.step, clock.now = 6, 12.0
    log.stepped(lambda: 1.5, 0.25)
    standing.step = 7
    log.validated([METRICS])
    log.close()
    found = {(name, step): value for name, step, value in events(tmp_path)}
    assert found["train_loss", 6] == 1.5 and found["learning_rate", 6] == 0.25
    assert found["images_per_second", 6] == pytest.approx(6 * 108 / 7 / 12)
    assert found["val_cce", 7] == 1.25
    assert ("val_auroc_covid", 7) not in found
