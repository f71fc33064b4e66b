"""Training learns, keeps its best epoch, repeats by seed; ranks agree, fail loudly, end as one."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from cxr_spark import fit as module
from cxr_spark.fit import (
    Diverged,
    FitPlan,
    Logits,
    evaluate,
    fit,
    learning_rate_share,
    make_optimizer,
    train_statistics,
)
from cxr_spark.models import build_model
from cxr_spark.ranks import Place, first_failure
from cxr_spark.reader import RowFile

SIZE = 32
ALONE = Place()


def toy_images(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Noise with a bright square whose place among nine tells the class."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 9
    pixels = rng.integers(0, 128, (count, SIZE, SIZE), dtype=np.uint8)
    for image, label in zip(pixels, labels, strict=True):
        row, column = divmod(int(label), 3)
        image[10 * row + 2 : 10 * row + 10, 10 * column + 2 : 10 * column + 10] += 100
    return pixels, labels


def toy_file(path: Path, count: int, seed: int) -> RowFile:
    pixels, labels = toy_images(count, seed)
    columns = {
        "label_index": pa.array(labels, pa.int32()),
        "pixels": pa.array([image.tobytes() for image in pixels], pa.binary()),
    }
    pq.write_table(pa.table(columns), path)
    return RowFile(str(path), count)


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> FitPlan:
    root = tmp_path_factory.mktemp("toy")
    return FitPlan(
        architecture="resnet18",
        image_size=SIZE,
        train_files=(toy_file(root / "a", 64, 0), toy_file(root / "b", 44, 1)),
        val_files=(toy_file(root / "c", 150, 2),),
        epochs=4,
        batch_size=16,
        learning_rate=2e-3,
        seed=0,
    )


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def launch(program: str, *arguments: object, ranks: int = 2) -> subprocess.Popen:
    """Start a program in several ranks by torchrun, as TorchDistributor does."""
    lines = textwrap.dedent(program)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--no-python"]
    return subprocess.Popen(
        [*command, f"--nproc-per-node={ranks}", sys.executable, "-c", lines, *map(str, arguments)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        stderr=subprocess.PIPE,
        text=True,
    )


def plan_as_json(plan: FitPlan, path: Path) -> Path:
    path.write_text(json.dumps(plan.__dict__))
    return path


READ_PLAN = """
import json, sys
from cxr_spark.fit import FitPlan
from cxr_spark.reader import RowFile
values = json.load(open(sys.argv[1]))
for name in ("train_files", "val_files"):
    values[name] = tuple(RowFile(*file) for file in values[name])
plan, folder = FitPlan(**values), sys.argv[2]
"""


def test_a_model_learns_and_says_how_well(plan: FitPlan) -> None:
    lines: list[str] = []
    model, fitted = fit(plan, ALONE, lines.append)
    cces = [epoch["val_cce"] for epoch in fitted.metrics]
    assert [epoch["epoch"] for epoch in fitted.metrics] == [1, 2, 3, 4]
    assert fitted.metrics[-1]["train_cce"] < 0.5 * fitted.metrics[0]["train_cce"]
    assert min(cces) < 0.5
    assert fitted.val_cce_uncalibrated == min(cces) == cces[fitted.kept_epoch - 1]
    assert fitted.val_cce < fitted.val_cce_uncalibrated
    statistics = module.Statistics(fitted.mean, fitted.std, fitted.train_counts)
    val = evaluate(model, plan.val_files, SIZE, ALONE, statistics)
    assert val.cce(fitted.temperature) == pytest.approx(fitted.val_cce, abs=1e-9)
    assert "epoch 4 of 4, step 28 of 28" in lines[-1] and lines[-1].endswith(" 0 s left")


def test_the_same_seed_gives_the_same_weights_and_another_gives_others(plan: FitPlan) -> None:
    short = replace(plan, epochs=1)
    first, again, other = (
        fit(replace(short, seed=seed), ALONE, lambda line: None)[0].state_dict()
        for seed in (3, 3, 4)
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["fc.weight"], other["fc.weight"])


def test_the_epoch_with_the_lowest_val_cce_is_kept(
    plan: FitPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.Tensor] = []
    margins = iter([1.0, 5.0, -20.0])  # a spike at the end

    def scripted(model: torch.nn.Module, *rest: object) -> Logits:
        seen.append(model.get_parameter("fc.weight").detach().clone())
        return Logits(np.eye(9, dtype=np.float32) * next(margins), np.arange(9))

    monkeypatch.setattr(module, "evaluate", scripted)
    model, fitted = fit(replace(plan, epochs=3), ALONE, lambda line: None)
    assert fitted.kept_epoch == 2
    assert torch.equal(model.get_parameter("fc.weight"), seen[1])
    assert not torch.equal(seen[1], seen[2])


def test_a_loss_that_is_no_number_ends_the_run(plan: FitPlan) -> None:
    with pytest.raises(Diverged, match="in epoch 1: try a lower learning rate"):
        fit(replace(plan, learning_rate=1e30), ALONE, lambda line: None)


def test_train_statistics_are_those_of_all_pixels(plan: FitPlan) -> None:
    (first, first_labels), (second, second_labels) = toy_images(64, 0), toy_images(44, 1)
    pixels = np.concatenate([first, second]) / 255
    statistics = train_statistics(plan, ALONE)
    assert statistics.mean == pytest.approx(pixels.mean(), abs=1e-12)
    assert statistics.std == pytest.approx(pixels.std(), abs=1e-12)
    assert statistics.counts == np.bincount([*first_labels, *second_labels]).tolist()


def test_evaluation_is_over_every_row_in_the_order_of_the_files(plan: FitPlan) -> None:
    torch.manual_seed(0)
    model = build_model("resnet18")
    statistics = train_statistics(plan, ALONE)
    val = evaluate(model, plan.val_files, SIZE, ALONE, statistics)
    pixels, labels = toy_images(150, 2)
    inputs = torch.from_numpy((pixels[:, None] / 255 - statistics.mean) / statistics.std).float()
    with torch.inference_mode():
        np.testing.assert_allclose(val.logits, model.eval()(inputs).numpy(), atol=1e-4)
    assert (val.labels == labels).all()


def test_the_learning_rate_warms_up_and_falls_to_nothing() -> None:
    shares = [learning_rate_share(step, 100) for step in range(101)]
    assert shares[:8] == pytest.approx([(step + 1) / 8 for step in range(8)])
    assert max(shares) == 1.0
    assert shares[8 + 46] == pytest.approx(0.5)
    assert shares[100] == pytest.approx(0.0)
    assert all(later <= earlier for earlier, later in pairwise(shares[8:]))


def test_norms_and_biases_are_not_decayed() -> None:
    model = build_model("resnet18")
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decay = {
        names[id(parameter)]: group["weight_decay"]
        for group in make_optimizer(model, 1e-3).param_groups
        for parameter in group["params"]
    }
    assert decay.keys() == set(names.values())
    assert decay["conv1.weight"] == decay["fc.weight"] == 0.05
    undecayed = {"bn1.weight", "bn1.bias", "fc.bias", "layer1.0.bn1.weight"}
    assert {decay[name] for name in undecayed} == {0.0}


def test_two_ranks_agree_with_each_other_and_evaluate_like_one(
    plan: FitPlan, tmp_path: Path
) -> None:
    program = READ_PLAN + textwrap.dedent(
        """
        import dataclasses, numpy, torch
        from cxr_spark import fit, ranks
        from cxr_spark.models import build_model
        with ranks.joined(folder) as place:
            torch.manual_seed(0)
            model = build_model("resnet18")
            statistics = fit.train_statistics(plan, place)
            val = fit.evaluate(model, plan.val_files, plan.image_size, place, statistics)
            model, fitted = fit.fit(dataclasses.replace(plan, epochs=1), place, print)
            weights = {name: value.numpy() for name, value in model.state_dict().items()}
            numpy.savez(f"{folder}/{place.rank}.npz", logits=val.logits, labels=val.labels,
                mean=statistics.mean, std=statistics.std, counts=statistics.counts,
                val_cce=fitted.val_cce, train_cce=fitted.metrics[0]["train_cce"], **weights)
        """
    )
    ranks = launch(program, plan_as_json(plan, tmp_path / "plan.json"), tmp_path)
    assert ranks.wait(timeout=120) == 0, ranks.communicate()[1]
    first, second = (np.load(tmp_path / f"{rank}.npz") for rank in range(2))
    assert {name for name in first if not np.array_equal(first[name], second[name])} == set()
    torch.manual_seed(0)
    statistics = train_statistics(plan, ALONE)
    alone = evaluate(build_model("resnet18"), plan.val_files, SIZE, ALONE, statistics)
    assert (first["mean"], first["std"]) == (statistics.mean, statistics.std)
    assert first["counts"].tolist() == statistics.counts
    assert np.array_equal(first["logits"], alone.logits)
    assert np.array_equal(first["labels"], alone.labels)


def test_a_rank_that_fails_ends_the_run_with_its_own_traceback(
    plan: FitPlan, tmp_path: Path
) -> None:
    missing = replace(plan, train_files=(plan.train_files[0], RowFile(str(tmp_path / "gone"), 44)))
    program = READ_PLAN + "from cxr_spark.fit import run_rank; run_rank(plan, folder)"
    began = time.monotonic()
    ranks = launch(program, plan_as_json(missing, tmp_path / "plan.json"), tmp_path)
    assert ranks.wait(timeout=120) != 0
    assert time.monotonic() - began < 60
    failure = first_failure(tmp_path)
    assert failure is not None and failure.startswith("rank-1:\nTraceback")
    assert "ReadFailed" in failure and str(tmp_path / "gone") in failure
    assert "train_statistics" in failure
    assert not (tmp_path / "fitted.json").exists()


def test_ranks_end_when_their_parent_is_killed(plan: FitPlan, tmp_path: Path) -> None:
    program = """
    import os, pathlib, sys, time
    from cxr_spark import ranks
    with ranks.joined(sys.argv[1]) as place:
        pathlib.Path(sys.argv[1], f"pid-{place.rank}").write_text(str(os.getpid()))
        time.sleep(300)
    """
    parent = launch(program, tmp_path)
    pids = [tmp_path / f"pid-{rank}" for rank in range(2)]
    wait_until(lambda: all(path.exists() and path.read_text() for path in pids), 60)
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    wait_until(lambda: not any(is_alive(int(path.read_text())) for path in pids), 10)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def wait_until(condition: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)
