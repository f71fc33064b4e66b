"""A checkpoint comes back bit for bit, or the one before it; its folder has one writer."""

import multiprocessing
import time
from pathlib import Path

import pytest
import torch

from cxr_spark import checkpoints
from cxr_spark.checkpoints import FolderInUse, Kept, Standing

STANDING = Standing(
    0.5, 0.2, [1] * 9, step=3, share=0.1, loss=2.5, rows=8.0, metrics=[{"epoch": 1, "x": None}]
)


def test_what_was_saved_comes_back_in_any_memory_format_and_type(tmp_path: Path) -> None:
    tensors = {
        "last": torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "step": torch.tensor(7.0),
        "count": torch.tensor(12),
    }
    checkpoints.save(tmp_path, STANDING, tensors)
    found = checkpoints.load(tmp_path)
    assert found is not None and found[0] == STANDING
    assert found[1].keys() == tensors.keys()
    assert all(torch.equal(found[1][name], tensors[name]) for name in tensors)
    assert STANDING.epoch == 2


def test_without_a_checkpoint_there_is_none(tmp_path: Path) -> None:
    assert checkpoints.load(tmp_path) is None


def test_what_the_last_checkpoint_does_not_name_goes(tmp_path: Path) -> None:
    (tmp_path / "plan.json").touch()
    for name in ("step-00000002-0001", "kept-0002"):  # a kill while they were written
        (tmp_path / f".{name}.safetensors.77").touch()
    for step in (1, 2, 3):
        kept = Kept(step, 1.0, f"kept-{step:04}.safetensors")
        checkpoints.write_tensors(tmp_path / kept.file, {"a": torch.ones(step)})
        standing = Standing(0.5, 0.2, [1] * 9, step=step, kept=kept)
        checkpoints.save(tmp_path, standing, {"a": torch.ones(step)})
    assert {path.name for path in tmp_path.iterdir()} == {
        "plan.json",
        "checkpoint.json",
        "step-00000003-0001.safetensors",
        "kept-0003.safetensors",
    }


def hold(folder: Path, seconds: float) -> None:
    with checkpoints.locked(folder, by_us=True):
        (folder / "held").touch()
        time.sleep(seconds)


def held_for(folder: Path, seconds: float) -> multiprocessing.Process:
    """A process that holds the lock."""
    process = multiprocessing.get_context("spawn").Process(target=hold, args=(folder, seconds))
    process.start()
    while not (folder / "held").exists():
        time.sleep(0.05)
    return process


def test_a_second_writer_waits_for_the_first(tmp_path: Path) -> None:
    first = held_for(tmp_path, 1.0)
    with checkpoints.locked(tmp_path, by_us=True):
        first.join(timeout=10)
        assert first.exitcode == 0


def test_a_second_writer_does_not_wait_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "LOCK_SECONDS", 0.1)
    first = held_for(tmp_path, 30.0)
    with pytest.raises(FolderInUse), checkpoints.locked(tmp_path, by_us=True):
        pass
    with checkpoints.locked(tmp_path, by_us=False):
        first.kill()
