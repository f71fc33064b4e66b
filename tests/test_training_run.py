"""Which run --resume goes on with, and what a run's folder holds before, while and after it."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cxr_spark.read_plans import RowFile
from cxr_spark.run import InputError
from cxr_spark.train_options import DEFAULT_EPOCHS, TrainOptions
from cxr_spark.training_plan import Fitted, TrainingPlan
from cxr_spark.training_run import (
    DifferentRun,
    TrainingRun,
    begin,
    check_folder,
    find_run,
    open_run,
)

OPTIONS = TrainOptions(epochs=3, images_version=4)
FITTED = Fitted(0.5, 0.2, 1.0, [1] * 9, [1 / 9] * 9, [{"epoch": 1, "x": None}], 1, 9, 2.0, 2.1, 0.1)


def plan(number: int, **others: Any) -> TrainingPlan:
    files = (RowFile("/a", 50), RowFile("/b", 50)), (RowFile("/c", 10),)
    identity = {"run_id": f"train-{number}", "created_at": f"2030-01-0{number}T00:00:00+00:00"}
    return replace(TrainingPlan(OPTIONS, 32, *files, images_sha256="a" * 64), **identity | others)


def finished(run: TrainingRun) -> TrainingRun:
    run.finish({"extra": {"model": run.folder.name}})
    return run


def test_a_plan_comes_back_from_its_file_as_it_was(tmp_path: Path) -> None:
    run = begin(tmp_path, plan(1))
    assert open_run(run.folder).plan == plan(1)
    assert run.folder == tmp_path / ".runs" / "train-1"
    assert [path.name for path in run.folder.iterdir()] == ["plan.json"]


def test_without_any_run_there_is_none_to_go_on_with(tmp_path: Path) -> None:
    assert find_run(tmp_path, plan(1)) is None


def test_the_newest_unfinished_run_goes_on(tmp_path: Path) -> None:
    for number in (1, 2):
        begin(tmp_path, plan(number))
    finished(begin(tmp_path, plan(3)))
    found = find_run(tmp_path, plan(4))
    assert found is not None and found.plan.run_id == "train-2"


def test_an_older_run_that_was_asked_the_same_does_not_stand_in_for_the_newest(
    tmp_path: Path,
) -> None:
    begin(tmp_path, plan(1))
    begin(tmp_path, replace(plan(2), options=replace(OPTIONS, seed=1)))
    finished(begin(tmp_path, plan(3)))
    with pytest.raises(DifferentRun, match=r"train-2 is the newest.* seed was 1 and is now 0"):
        find_run(tmp_path, plan(4))


@pytest.mark.parametrize("had_time", [True, False])
def test_a_time_may_come_or_go_where_no_epochs_were_asked_for(
    tmp_path: Path, had_time: bool
) -> None:
    first, second = (replace(plan(number), epochs_given=False) for number in (1, 2))
    begin(tmp_path, first.for_time(had_time))
    found = find_run(tmp_path, second.for_time(not had_time))
    assert found is not None
    assert found.plan.for_time(True).options.epochs is None
    assert found.plan.for_time(False).options.epochs == DEFAULT_EPOCHS
    asked = replace(second, epochs_given=True, options=replace(OPTIONS, epochs=5))
    with pytest.raises(DifferentRun, match=r"epochs was .* and is now 5"):
        find_run(tmp_path, asked)


def test_a_finished_run_that_was_asked_the_same_tells_its_summary(tmp_path: Path) -> None:
    finished(begin(tmp_path, plan(1)))
    found = find_run(tmp_path, plan(2))
    assert found is not None and found.summary == {"extra": {"model": "train-1"}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"options": replace(OPTIONS, seed=7)}, "seed was 0 and is now 7"),
        ({"options": replace(OPTIONS, epochs=None)}, "epochs was 3 and is now None"),
        (
            {"options": replace(OPTIONS, images_version=5), "images_sha256": "b" * 64},
            "images_version was 4 and is now 5; images was aaaaaaaaaaaa and is now bbbbbbbbbbbb",
        ),
        ({"weights_sha256": "c"}, "content of the weights was None and is now c"),
    ],
)
def test_an_unfinished_run_that_was_asked_something_else_is_refused(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    begin(tmp_path, plan(1))
    with pytest.raises(DifferentRun, match=message):
        find_run(tmp_path, replace(plan(2), **change))


def test_a_finished_run_that_was_asked_something_else_is_in_no_ones_way(tmp_path: Path) -> None:
    finished(begin(tmp_path, plan(1)))
    assert find_run(tmp_path, replace(plan(2), options=replace(OPTIONS, seed=7))) is None


def test_a_run_of_a_version_with_other_options_is_passed_over(tmp_path: Path) -> None:
    run = begin(tmp_path, plan(1))
    content = json.loads((run.folder / "plan.json").read_text())
    content["options"]["colour"] = "red"
    (run.folder / "plan.json").write_text(json.dumps(content))
    assert find_run(tmp_path, plan(2)) is None


def test_what_ranks_found_comes_back_as_it_was(tmp_path: Path) -> None:
    run = begin(tmp_path, plan(1))
    assert not run.has_trained
    run.keep_fitted(b"weights", b"onnx", FITTED)
    assert run.has_trained
    assert run.fitted() == (b"weights", b"onnx", FITTED)


def test_after_the_end_plan_summary_metrics_and_events_are_left(tmp_path: Path) -> None:
    run = begin(tmp_path, plan(1), initial=b"weights")
    run.keep_fitted(b"weights", b"onnx", FITTED)
    run.request_stop()
    for name in ("metrics.csv", "events.out.tfevents.1", "rank-0.txt", "step-1-1.safetensors"):
        (run.folder / name).touch()
    finished(run)
    left = {path.name for path in run.folder.iterdir()}
    assert left == {"plan.json", "summary.json", "metrics.csv", "events.out.tfevents.1"}


def test_what_a_kill_at_the_end_leaves_is_removed_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = begin(tmp_path, plan(1), initial=b"weights")
    with monkeypatch.context() as patched:
        patched.setattr(TrainingRun, "tidy", lambda self: None)
        finished(run)
    run.tidy()
    assert {path.name for path in run.folder.iterdir()} == {"plan.json", "summary.json"}


def test_models_that_can_be_no_folder_to_write_to_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    for models in (tmp_path / "file", tmp_path / "file" / "models"):
        with pytest.raises(InputError, match="file is no folder"):
            check_folder(models)
    check_folder(tmp_path / "new" / "models")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)
    with pytest.raises(InputError, match="can't be written to"):
        check_folder(tmp_path / "new" / "models")


def test_the_first_traceback_is_the_failure_and_a_new_attempt_forgets_it(tmp_path: Path) -> None:
    run = begin(tmp_path, plan(1))
    assert run.failure is None
    (run.folder / "rank-1.txt").write_text("the cause")
    (run.folder / "rank-0.txt").write_text("a partner is gone")
    assert run.failure == "rank-1:\nthe cause"
    run.request_stop()
    run.clear_signs()
    assert [path.name for path in run.folder.iterdir()] == ["plan.json"]
