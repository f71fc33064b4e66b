"""Training learns, keeps its best epoch, and goes on after interruptions as if there were none."""

import json
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cxr_spark import fit as module
from cxr_spark.artifact import CLASSES
from cxr_spark.fit import Diverged, Training
from cxr_spark.read_plans import RowFile
from cxr_spark.training_plan import TrainingPlan
from cxr_spark.training_run import begin
from cxr_spark.validation import Logits, evaluate
from tests.conftest import REPOSITORY
from tests.toys import SIZE, launch, toy_images, toy_plan, trained, write_images


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> TrainingPlan:
    return toy_plan(tmp_path_factory.mktemp("toy"))


def with_options(plan: TrainingPlan, **options: object) -> TrainingPlan:
    return replace(plan, options=replace(plan.options, **options))


@pytest.fixture(scope="module")
def short(plan: TrainingPlan) -> TrainingPlan:
    """Two epochs of seven steps, with a checkpoint at each third step."""
    return with_options(plan, epochs=2, checkpoint_every=3)


@pytest.fixture(scope="module")
def undisturbed(short: TrainingPlan, tmp_path_factory: pytest.TempPathFactory) -> Training:
    """What an interrupted run of `short` must come to."""
    return trained(short, tmp_path_factory.mktemp("undisturbed"))


class Killed(BaseException):
    """Stands for SIGKILL: nothing is written after it."""


def after(steps: int, *, killed: bool = False) -> Callable[[], bool]:
    """A request to stop, or a kill, before the step that comes after so many."""
    taken = iter(range(steps))

    def should_stop() -> bool:
        over = next(taken, None) is None
        if over and killed:
            raise Killed
        return over

    return should_stop


def same_state(one: Training, other: Training) -> bool:
    """Whether weights, optimiser, and what was measured are the same, bit for bit."""
    first, second = one.learner.tensors(), other.learner.tensors()
    timed = [[m | {"seconds": 0} for m in training.standing.metrics] for training in (one, other)]
    return (
        first.keys() == second.keys()
        and all(torch.equal(first[name], second[name]) for name in first)
        and timed[0] == timed[1]
    )


def test_a_model_learns_and_says_how_well(plan: TrainingPlan, tmp_path: Path) -> None:
    lines: list[str] = []
    training = trained(plan, tmp_path, say=lines.append)
    weights, onnx, fitted = training.results()
    cces = [epoch["val_cce"] for epoch in fitted.metrics]
    assert [epoch["epoch"] for epoch in fitted.metrics] == [1, 2, 3, 4]
    assert fitted.metrics[-1]["train_cce"] < 0.5 * fitted.metrics[0]["train_cce"]
    assert fitted.val_cce_uncalibrated == min(cces) == cces[fitted.kept_epoch - 1] < 0.5
    assert fitted.val_cce <= fitted.val_cce_uncalibrated
    assert "epoch 4 of 4, step 28 of 28" in lines[-1]
    model = module.build_model("resnet18")
    model.load_state_dict(module.safetensors.torch.load(weights))
    val = evaluate(model, plan.val_files, SIZE, training.place, training.statistics)
    assert module.cce(val.probabilities(training.offset, fitted.temperature), val.labels) == (
        pytest.approx(fitted.val_cce, abs=1e-9)
    )
    assert len(onnx) > 4e7


def test_the_same_seed_gives_the_same_weights_and_another_gives_others(
    short: TrainingPlan, undisturbed: Training, tmp_path: Path
) -> None:
    assert same_state(trained(short, tmp_path / "again"), undisturbed)
    other = trained(with_options(short, seed=4, epochs=1), tmp_path / "other")
    assert other.standing.metrics[0] != undisturbed.standing.metrics[0]


def test_stops_and_kills_at_any_step_change_nothing(
    short: TrainingPlan, undisturbed: Training, tmp_path: Path
) -> None:
    # Twice within the first epoch, once before a checkpoint was written, and at its very end.
    for steps in (2, 1, 4, 1):
        with pytest.raises(Killed):
            trained(short, tmp_path, should_stop=after(steps, killed=True))
    stopped = [trained(short, tmp_path, should_stop=after(steps)) for steps in (0, 2, 2)]
    assert [training.standing.step for training in stopped][1:] == [5, 7]
    resumed = trained(short, tmp_path)
    assert same_state(resumed, undisturbed)
    assert resumed.results()[0] == undisturbed.results()[0]


def test_a_kill_while_a_checkpoint_is_written_leaves_the_one_before(
    short: TrainingPlan, undisturbed: Training, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, written = module.checkpoints.write_json, []

    def dying(path: Path, content: dict) -> None:
        written.append(content["standing"]["step"])
        if len(written) == 3:
            raise Killed
        real(path, content)

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(module.checkpoints, "write_json", dying)
        trained(short, tmp_path)
    assert written == [3, 6, 7]
    assert json.loads((tmp_path / "checkpoint.json").read_text())["standing"]["step"] == 6
    assert same_state(trained(short, tmp_path), undisturbed)


@pytest.mark.parametrize(
    "options",
    [{"ema": 0.9}, {"imbalance": "sampling"}, {"arch": "efficientnet_b0", "batch_size": 54}],
)
def test_averages_draws_and_dropout_go_on_as_they_were(
    short: TrainingPlan, tmp_path: Path, options: dict
) -> None:
    plan = with_options(short, **{"epochs": 1, "batch_size": 27} | options)
    trained(plan, tmp_path / "resumed", should_stop=after(1))
    assert same_state(trained(plan, tmp_path / "resumed"), trained(plan, tmp_path / "undisturbed"))


def test_training_begins_with_the_weights_that_are_given(
    short: TrainingPlan, tmp_path: Path
) -> None:
    given = module.build_model("resnet18").state_dict()
    initial = module.checkpoints.serialise(given)
    run = begin(tmp_path, replace(short, run_id="given"), initial=initial)
    begun = Training(run.plan, run.folder).learner.model.state_dict()
    assert all(torch.equal(begun[name], given[name]) for name in given)


def test_a_finished_run_trains_no_further(
    short: TrainingPlan, tmp_path: Path, undisturbed: Training
) -> None:
    trained(short, tmp_path)
    began = time.monotonic()
    again = trained(short, tmp_path, should_stop=after(0, killed=True))
    assert time.monotonic() - began < 5
    assert same_state(again, undisturbed)


def test_metrics_csv_holds_each_epoch_once_after_an_interruption(
    short: TrainingPlan, tmp_path: Path
) -> None:
    trained(short, tmp_path, should_stop=after(9))
    trained(short, tmp_path)
    lines = (tmp_path / "metrics.csv").read_text().splitlines()
    assert lines[0].startswith("epoch,step,train_cce,val_cce,val_accuracy,val_ece,val_auroc_")
    assert [line.split(",")[:2] for line in lines[1:]] == [["1", "7"], ["2", "14"]]


def scripted(monkeypatch: pytest.MonkeyPatch, margins: list[float]) -> list[torch.Tensor]:
    """Let validations find logits of these margins for the true class; the weights they saw."""
    seen: list[torch.Tensor] = []

    def evaluation(model: torch.nn.Module, *rest: object) -> Logits:
        margin = margins[len(seen)]
        seen.append(model.get_parameter("fc.weight").detach().clone())
        return Logits(np.eye(9, dtype=np.float32) * margin, np.arange(9))

    monkeypatch.setattr(module, "evaluate", evaluation)
    return seen


def test_the_epoch_with_the_lowest_val_cce_is_kept(
    plan: TrainingPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = scripted(monkeypatch, [1.0, 5.0, -20.0])  # a spike at the end
    training = trained(with_options(plan, epochs=3, batch_size=54), tmp_path)
    weights, _, fitted = training.results()
    assert fitted.kept_epoch == 2
    assert torch.equal(module.safetensors.torch.load(weights)["fc.weight"], seen[1])
    assert not torch.equal(seen[1], seen[2])


def test_patience_ends_a_run_that_gets_no_better_but_not_for_a_spike(
    plan: TrainingPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(monkeypatch, [1.0, -20.0, 5.0, 4.0, 3.0])
    training = trained(with_options(plan, epochs=9, batch_size=108, patience=2), tmp_path)
    assert len(training.standing.metrics) == 5


def test_time_that_is_up_ends_the_run_within_an_epoch_and_validated(
    plan: TrainingPlan, tmp_path: Path
) -> None:
    endless = with_options(plan, epochs=None, batch_size=16)
    seconds = module.schedule.FINISH_SECONDS + 6
    began = time.monotonic()
    training = trained(endless, tmp_path, seconds_left=seconds)
    assert time.monotonic() - began < seconds
    standing = training.standing
    assert standing.ended and standing.metrics[-1]["step"] == standing.step > 0
    assert training.results()[2].val_rows == 150


def test_before_a_validation_was_seen_a_batch_tells_how_long_it_takes(
    plan: TrainingPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "seconds_an_image", lambda *arguments: 2.0)
    endless = with_options(plan, epochs=None)
    training = trained(endless, tmp_path, seconds_left=1000.0, should_stop=after(1))
    assert training.schedule.validation_seconds == 2.0 * 150
    assert training.schedule.step_seconds > 0


def test_time_that_is_up_just_after_a_validation_ends_the_run_there(
    plan: TrainingPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module.schedule.Schedule, "share", lambda self, step: step / 7)
    training = trained(with_options(plan, epochs=None), tmp_path)
    assert [epoch["step"] for epoch in training.standing.metrics] == [7]
    assert training.results()[2].kept_epoch == 1


def test_a_loss_that_is_no_number_ends_the_run(plan: TrainingPlan, tmp_path: Path) -> None:
    broken = with_options(plan, learning_rate=0.99, clip=1e30, warm_up=0.0)
    training = Training(broken, tmp_path)
    with torch.no_grad():
        training.learner.model.get_parameter("fc.weight").fill_(float("nan"))
    with pytest.raises(Diverged, match="in epoch 1: try a lower learning rate"):
        training.run()


def test_against_imbalance_val_cce_is_that_of_the_natural_shares(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a prior of eight to one, uncorrected probabilities of a weighted loss are worse."""
    pixels, labels = toy_images(450, seed=0)
    blurred = (pixels // 8 + np.random.default_rng(1).integers(0, 224, pixels.shape)) // 1
    kept = np.flatnonzero((labels == 0) | (np.arange(450) % 8 == 0))
    images, classes = blurred[kept].astype(np.uint8), labels[kept]
    half = len(kept) // 2
    files = [
        write_images(tmp_path / name, images[part], classes[part])
        for name, part in (("train", slice(half)), ("val", slice(half, None)))
    ]
    plan = toy_plan(tmp_path, epochs=3, imbalance="weights")
    plan = replace(plan, train_files=tuple(files[:1]), val_files=tuple(files[1:]))
    training = trained(plan, tmp_path / "run")
    val = evaluate(
        training.learner.judged, plan.val_files, SIZE, training.place, training.statistics
    )
    assert val.cce(training.offset) < val.cce(np.zeros(len(CLASSES)))
    metrics, kept = training.standing.metrics, training.standing.kept
    assert metrics[-1]["val_cce"] == val.cce(training.offset)
    # What is kept, and its temperature, go by the corrected probabilities, too.
    assert kept is not None and kept.val_cce == min(epoch["val_cce"] for epoch in metrics)
    monkeypatch.setattr(module, "to_onnx", lambda *arguments, **options: b"")
    fitted = training.results()[2]
    tensors = module.safetensors.torch.load_file(training.folder / kept.file)
    logits, labels = (tensors[name].numpy() for name in (module.VAL_LOGITS, module.VAL_LABELS))
    assert fitted.temperature == module.fit_temperature(logits + training.offset, labels)
    assert fitted.temperature != module.fit_temperature(logits, labels)
    corrected = Logits(logits, labels).probabilities(training.offset, fitted.temperature)
    assert fitted.val_cce == module.cce(corrected, labels)


TWO_RANKS = """
import sys, torch, json
from cxr_spark import ranks
from cxr_spark.fit import Training, evaluate
from cxr_spark.training_run import open_run
run = open_run(sys.argv[1])
with ranks.joined(run.folder) as place:
    training = Training(run.plan, run.folder, place)
    taken = iter(range(int(sys.argv[2])))
    training.should_stop = lambda: place.rank == 1 and next(taken, None) is None
    ended = training.run()
    torch.save((ended, training.learner.tensors(), training.statistics, training.standing.metrics),
        f"{run.folder}/state-{place.rank}.pt")
"""


def test_two_ranks_agree_stop_together_and_go_on_as_if_they_had_not(
    plan: TrainingPlan, tmp_path: Path
) -> None:
    asked = with_options(plan, epochs=1, workers=2)
    undisturbed, run = (begin(tmp_path, replace(asked, run_id=name)) for name in ("one", "two"))
    ends_at_once = launch(TWO_RANKS, undisturbed.folder, 99)
    assert ends_at_once.wait(timeout=200) == 0, ends_at_once.communicate()[1]
    for steps, ends in ((3, False), (99, True)):
        ranks = launch(TWO_RANKS, run.folder, steps)
        assert ranks.wait(timeout=200) == 0, ranks.communicate()[1]
        first, second = (
            torch.load(run.folder / f"state-{rank}.pt", weights_only=False) for rank in (0, 1)
        )
        assert first[0] is second[0] is ends
        assert first[2] == second[2]
        assert {
            name for name in first[1] if not torch.equal(first[1][name], second[1][name])
        } == set()
        assert json.loads((run.folder / "checkpoint.json").read_text())["standing"]["step"] == (
            7 if ends else 3
        )
    assert [m[0]["val_cce"] for m in (first[3], second[3])] == [first[3][0]["val_cce"]] * 2
    expected = torch.load(undisturbed.folder / "state-0.pt", weights_only=False)
    assert first[3][0]["val_cce"] == pytest.approx(expected[3][0]["val_cce"], rel=1e-4)
    for name, tensor in expected[1].items():
        torch.testing.assert_close(first[1][name], tensor, rtol=1e-3, atol=1e-5)


def test_a_rank_that_fails_ends_the_run_with_its_own_traceback(
    plan: TrainingPlan, tmp_path: Path
) -> None:
    gone = RowFile(str(tmp_path / "gone"), 44)
    run = begin(tmp_path, replace(plan, train_files=(plan.train_files[0], gone), run_id="broken"))
    began = time.monotonic()
    ranks = launch(
        "import sys; from cxr_spark.fit import run_rank; run_rank(sys.argv[1])", run.folder
    )
    assert ranks.wait(timeout=120) != 0
    assert time.monotonic() - began < 60
    failure = run.failure
    assert failure is not None and failure.startswith("rank-1:\nTraceback")
    assert "ReadFailed" in failure and str(tmp_path / "gone") in failure
    assert "train_statistics" in failure
    assert not run.has_trained


KILLED_ANYWHERE = """
import os, random, signal, sys, threading, torch
from pathlib import Path
from cxr_spark.fit import Training
from cxr_spark.training_run import open_run
torch.set_num_threads(1)
run = open_run(sys.argv[1])
if len(sys.argv) > 2:
    threading.Timer(float(sys.argv[2]), lambda: os.kill(os.getpid(), signal.SIGKILL)).start()
training = Training(run.plan, run.folder)
training.run()
Path(run.folder, "weights").write_bytes(training.results()[0])
os._exit(0)
"""


@pytest.mark.long
def test_a_dozen_kills_at_random_moments_change_no_bit(short: TrainingPlan, tmp_path: Path) -> None:
    plan = with_options(short, epochs=12)
    moments = random.Random(0)
    run = begin(tmp_path, replace(plan, run_id="killed"))
    kills = 0
    while not (run.folder / "weights").exists():
        seconds = [moments.uniform(0.2, 3)] if kills < 12 else []
        command = [sys.executable, "-c", KILLED_ANYWHERE, run.folder, *map(str, seconds)]
        ended = subprocess.run(command, cwd=REPOSITORY, capture_output=True, timeout=300)
        assert ended.returncode in (-9, 0), ended.stderr[-2000:]
        kills += ended.returncode == -9
    assert kills == 12
    assert (run.folder / "weights").read_bytes() == trained(plan, tmp_path / "a").results()[0]
