"""Readers give every row exactly once, in equal batches, shuffled by seed, and fail loudly."""

import resource
import threading
import warnings
from collections import Counter
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cxr_spark import reader
from cxr_spark.read_plans import (
    ReaderInputError,
    ReadPlan,
    RowFile,
    first_rows,
    plan_evaluation,
    plan_training,
    repeated_rows,
)
from cxr_spark.reader import ReadFailed, batches_ahead, read_batches
from cxr_spark.tables import Warehouse
from tests.conftest import Chain

SIZE = 8


def write_file(path: Path, ids: Sequence[int], row_group_size: int = 1000) -> RowFile:
    """A file of images whose pixels and label tell their id."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table(
        {
            "image_id": [f"nih:{number}" for number in ids],
            "label": ["Edema"] * len(ids),
            "label_index": pa.array([number % 9 for number in ids], pa.int32()),
            "boxes": pa.array([[{"label": "Edema", "x": 1.0}]] * len(ids)),
            "pixels": pa.array(
                [np.full(SIZE * SIZE, number, np.uint8).tobytes() for number in ids], pa.binary()
            ),
        }
    )
    pq.write_table(table, path, row_group_size=row_group_size)
    return RowFile(str(path), len(ids))


def write_files(root: Path, row_counts: list[int]) -> list[RowFile]:
    """Files in a partition's folder under a writer's folder, as curate leaves them."""
    ends = np.cumsum(row_counts)
    return [
        write_file(root / f"j-1 a/split=train/part-{place}.parquet", range(end - count, end))
        for place, (count, end) in enumerate(zip(row_counts, ends, strict=True))
    ]


def ids_of(batches: list[reader.Batch]) -> list[str]:
    return [str(image_id) for batch in batches for image_id in batch.columns["image_id"]]


def read(plan: ReadPlan) -> list[reader.Batch]:
    return list(read_batches(plan, image_size=SIZE, columns=["image_id"]))


def train_plans(
    files: list[RowFile], world: int, batch_size: int = 6, seed: int = 1, epoch: int = 0
) -> list[ReadPlan]:
    return [
        plan_training(files, batch_size=batch_size, seed=seed, epoch=epoch, rank=rank, world=world)
        for rank in range(world)
    ]


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("row_counts", [[23], [11, 12], [1, 9, 2, 10, 1]])
def test_an_epoch_reads_every_row_once_in_equally_many_batches(
    tmp_path: Path, row_counts: list[int], world: int
) -> None:
    files = write_files(tmp_path, row_counts)
    ranks = [read(plan) for plan in train_plans(files, world)]
    assert Counter(ids_of([*chain(*ranks)])) == Counter(f"nih:{number}" for number in range(23))
    assert [len(batches) for batches in ranks] == [4] * world


@pytest.mark.parametrize("world", [1, 2, 3, 20])
@pytest.mark.parametrize("row_counts", [[23], [11, 12], [1, 9, 2, 10, 1]])
def test_evaluation_reads_every_row_once_and_in_order(
    tmp_path: Path, row_counts: list[int], world: int
) -> None:
    files = write_files(tmp_path, row_counts)
    plans = [plan_evaluation(files, batch_size=6, rank=rank, world=world) for rank in range(world)]
    batches = [batch for plan in plans for batch in read(plan)]
    assert ids_of(batches) == [f"nih:{number}" for number in range(23)]
    assert [len(batch.labels) for batch in batches] == [6, 6, 6, 5]


def test_pixels_and_labels_stay_with_their_row(tmp_path: Path) -> None:
    (plan,) = train_plans(write_files(tmp_path, [11, 12]), world=1)
    for batch in read(plan):
        numbers = np.array([int(i.removeprefix("nih:")) for i in batch.columns["image_id"]])
        assert batch.pixels.dtype == np.uint8
        assert batch.pixels.shape == (len(numbers), 1, SIZE, SIZE)
        assert (batch.pixels == numbers[:, None, None, None]).all()
        assert (batch.labels == numbers % 9).all()


def test_files_of_several_row_groups_are_read_whole(tmp_path: Path) -> None:
    files = [write_file(tmp_path / "a.parquet", range(10), row_group_size=3)]
    plans = [plan_evaluation(files, batch_size=4, rank=rank, world=2) for rank in range(2)]
    assert ids_of([*chain(*map(read, plans))]) == [f"nih:{number}" for number in range(10)]


def test_a_share_of_the_rows_is_the_first_of_each_file_and_part_of_any_larger_share(
    tmp_path: Path,
) -> None:
    files = [write_file(tmp_path / "a.parquet", range(10), row_group_size=3)]
    files += [write_file(tmp_path / "b.parquet", range(10, 15), row_group_size=3)]

    def kept(share: float) -> set[str]:
        plans = train_plans(first_rows(files, share), world=2, batch_size=4)
        ids = ids_of([*chain(*map(read, plans))])
        assert len(ids) == len(set(ids))
        return set(ids)

    assert kept(0.4) == {f"nih:{number}" for number in (0, 1, 2, 3, 10, 11)}
    assert kept(0.01) == {"nih:0", "nih:10"}
    assert kept(0.4) < kept(0.7) < kept(1.0)
    assert len(kept(1.0)) == 15


def test_a_share_of_a_file_is_held_to_what_the_log_says_of_the_whole_file(tmp_path: Path) -> None:
    write_file(tmp_path / "a.parquet", range(10))
    (half,) = first_rows([RowFile(str(tmp_path / "a.parquet"), 12)], 0.5)
    plan = plan_evaluation([half], batch_size=4, rank=0, world=1)
    with pytest.raises(ReadFailed, match="holds 10 rows where the table's log says 12"):
        read(plan)


def test_the_batches_of_all_ranks_together_keep_to_the_batch_size(tmp_path: Path) -> None:
    files = [RowFile("a", 130)]
    for world in (1, 2, 3, 5):
        plans = train_plans(files, world, batch_size=16)
        assert {len(plan.batch_sizes) for plan in plans} == {9}
        assert max(map(sum, zip(*(plan.batch_sizes for plan in plans), strict=True))) <= 16 + world
        assert min(min(plan.batch_sizes) for plan in plans) >= 130 // 9 // world - 1


def test_a_rank_repeats_at_most_one_row_and_only_with_batches_of_one_row(tmp_path: Path) -> None:
    files = write_files(tmp_path, [5])
    plans = train_plans(files, world=2, batch_size=2)
    assert [plan.repeated for plan in plans] == [1, 0]
    read_ids = Counter(ids_of([*chain(*map(read, plans))]))
    assert sorted(read_ids.values()) == [1, 1, 1, 1, 2]
    assert all(
        plan.repeated == 0
        for total in range(4, 40)
        for batch_size in range(8, 20)
        for plan in train_plans([RowFile("a", total)], world=4, batch_size=batch_size)
    )


def test_what_an_epoch_repeats_is_known_before_it_is_planned() -> None:
    assert repeated_rows(5, batch_size=2, world=2) == 1
    for total in range(4, 30):
        for world in (1, 2, 3, 4):
            plans = train_plans([RowFile("a", total)], world=world, batch_size=4)
            repeated = sum(plan.repeated for plan in plans)
            assert repeated_rows(total, batch_size=4, world=world) == repeated


def test_a_row_is_repeated_also_where_it_is_not_in_its_files_first_row_group(
    tmp_path: Path,
) -> None:
    files = [write_file(tmp_path / "a.parquet", range(7), row_group_size=2)]
    plans = train_plans(files, world=3, batch_size=3)
    assert [plan.repeated for plan in plans] == [1, 1, 0]
    ranks = [read(plan) for plan in plans]
    assert [len(batches) for batches in ranks] == [3, 3, 3]
    assert len(set(ids_of([*chain(*ranks)]))) == 7


def test_large_batches_and_row_groups_are_read_less_far_ahead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert batches_ahead([32, 31], 224) == reader.BATCHES_AHEAD
    assert batches_ahead([500], 224) == 2
    assert batches_ahead([5000], 224) == 1
    real, ahead = reader._read_ahead, []

    def watched(items: Any, count: int) -> Any:
        ahead.append(count)
        return real(items, count)

    monkeypatch.setattr(reader, "_read_ahead", watched)
    monkeypatch.setattr(reader, "AHEAD_BYTES", 25 * SIZE * SIZE)
    read(plan_evaluation(write_files(tmp_path, [10, 10]), batch_size=8, rank=0, world=1))
    assert ahead == [3, 1, 1]  # of 8 rows; of 10 rows by two readers


def test_fewer_rows_than_ranks_are_refused() -> None:
    with pytest.raises(ReaderInputError, match="3 workers need at least 3 rows"):
        train_plans([RowFile("a", 2)], world=3)


def test_a_rank_opens_only_the_files_of_its_rows(tmp_path: Path) -> None:
    files = write_files(tmp_path, [10, 10, 10, 10])
    first, second = (plan_evaluation(files, batch_size=5, rank=rank, world=2) for rank in range(2))
    Path(files[3].path).unlink()
    assert len(ids_of(read(first))) == 20
    with pytest.raises(ReadFailed, match=r"part-3\.parquet"):
        read(second)


def test_the_order_follows_seed_and_epoch(tmp_path: Path) -> None:
    files = write_files(tmp_path, [20, 20])
    orders = {
        key: ids_of(read(*train_plans(files, world=1, seed=key[0], epoch=key[1])))
        for key in [(1, 0), (1, 1), (2, 0)]
    }
    assert len({tuple(order) for order in orders.values()}) == 3
    assert orders[1, 0] == ids_of(read(*train_plans(files, world=1, seed=1, epoch=0)))


def test_each_epoch_deals_the_files_to_the_ranks_anew() -> None:
    files = [RowFile(str(place), 5) for place in range(20)]
    hands = [
        {portion.file for portion in train_plans(files, world=2, epoch=epoch)[0].portions}
        for epoch in range(2)
    ]
    assert [len(hand) for hand in hands] == [10, 10]
    assert hands[0] != hands[1] and set(files[:10]) not in hands


def test_shuffling_mixes_the_rows_of_files(tmp_path: Path) -> None:
    files = write_files(tmp_path, [40, 40, 40, 40])
    batches = read(*train_plans(files, world=1, batch_size=16))
    for batch in batches:
        files_of_rows = {int(i.removeprefix("nih:")) // 40 for i in batch.columns["image_id"]}
        assert len(files_of_rows) >= 3


def _mean_run(labels: np.ndarray) -> float:
    return len(labels) / (1 + np.count_nonzero(np.diff(labels)))


def _mean_distinct(labels: np.ndarray, size: int) -> float:
    whole = len(labels) // size * size
    return float(np.mean([len(set(batch)) for batch in labels[:whole].reshape(-1, size)]))


def _over_a_perfect_shuffle(
    files: list[RowFile], size: int, *, world: int, passes: int
) -> list[float]:
    """Mean length of runs of a label, and mean number of labels in a batch of eight, of what the
    ranks read in some epochs, over the same of perfect shuffles."""
    epochs = []
    for epoch in range(passes):
        for rank in range(world):
            plan = plan_training(files, batch_size=8, seed=0, epoch=epoch, rank=rank, world=world)
            batches = read_batches(plan, image_size=size)
            epochs.append(np.concatenate([batch.labels for batch in batches]))
    rng, labels = np.random.default_rng(0), np.concatenate(epochs[:world])
    perfect = [rng.permutation(labels)[: len(epochs[0])] for _ in range(400)]
    figures = (_mean_run, lambda labels: _mean_distinct(labels, 8))
    means = [
        [float(np.mean([figure(e) for e in order])) for figure in figures]
        for order in (epochs, perfect)
    ]
    return [found / ideal for found, ideal in zip(*means, strict=True)]


@pytest.mark.parametrize("world", [1, 2])
def test_the_order_of_labels_is_as_random_as_a_perfect_shuffle(chain: Chain, world: int) -> None:
    version = chain.curate["versions"]["images"]
    files = [
        RowFile(file.path, file.num_rows)
        for file in Warehouse(chain.warehouse).files("images", version)
        if file.partition["split"] == "train"
    ]
    found = _over_a_perfect_shuffle(files, 64, world=world, passes=20 // world)
    assert found == pytest.approx([1, 1], rel=0.1)


def test_small_windows_mix_labels_only_if_the_rows_lie_mixed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "WINDOW_BYTES", 16 * SIZE * SIZE)
    mixed = np.random.default_rng(0).permutation(180)
    by_label = mixed[np.argsort(mixed % 9, kind="stable")]
    ratios = {}
    for name, ids in (("mixed", mixed), ("by label", by_label)):
        files = [
            write_file(tmp_path / name / f"{start}.parquet", ids[start : start + 60], 8)
            for start in range(0, 180, 60)
        ]
        ratios[name] = _over_a_perfect_shuffle(files, SIZE, world=2, passes=4)
    assert ratios["mixed"] == pytest.approx([1, 1], rel=0.1)
    assert ratios["by label"][0] > 1.5 and ratios["by label"][1] < 0.7


def test_memory_stays_flat_over_twenty_epochs(tmp_path: Path) -> None:
    files = [write_file(tmp_path / f"{n}.parquet", range(2_000)) for n in range(8)]
    resident = []
    for epoch in range(20):
        plan = plan_training(files, batch_size=100, seed=0, epoch=epoch, rank=0, world=1)
        assert sum(len(batch.labels) for batch in read_batches(plan, image_size=SIZE)) == 16_000
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        resident.append(pages * resource.getpagesize())
    assert resident[-1] - resident[4] < 8 << 20  # of 1 MB of pixels kept an epoch, 15 MB


def test_small_windows_still_give_every_row_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "WINDOW_BYTES", 7 * SIZE * SIZE)
    files = write_files(tmp_path, [5, 5, 5, 5, 3])
    (plan,) = train_plans(files, world=1)
    batches = read(plan)
    assert sorted(ids_of(batches)) == sorted(f"nih:{number}" for number in range(23))
    assert [len(batch.labels) for batch in batches] == plan.batch_sizes


@pytest.mark.parametrize("skip", [1, 3, 4])
def test_batches_after_skipped_ones_are_the_same_as_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, skip: int
) -> None:
    monkeypatch.setattr(reader, "WINDOW_BYTES", 7 * SIZE * SIZE)
    (plan,) = train_plans(write_files(tmp_path, [5, 5, 5, 5, 3]), world=1)
    rest = [*read_batches(plan, image_size=SIZE, columns=["image_id"], skip=skip)]
    assert [ids_of([batch]) for batch in rest] == [ids_of([batch]) for batch in read(plan)[skip:]]


def test_class_weights_change_the_shares_of_what_is_given_out(tmp_path: Path) -> None:
    files = write_files(tmp_path, [400, 500])
    weights = (8.0, 1.0, 0.01, *[1.0] * 6)
    plan = plan_training(
        files, batch_size=30, seed=1, epoch=0, rank=0, world=1, class_weights=weights
    )
    labels = np.concatenate([batch.labels for batch in read(plan)])
    shares = np.bincount(labels, minlength=9) / len(labels)
    assert len(labels) == 900
    assert np.allclose(shares, np.array(weights) / sum(weights), atol=0.05)


def test_rows_that_wait_for_the_next_window_are_not_drawn_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "WINDOW_BYTES", 9 * SIZE * SIZE)
    files = write_files(tmp_path, [9] * 200)
    weights = (1.0, *[0.25] * 8)
    plan = plan_training(
        files, batch_size=8, seed=1, epoch=0, rank=0, world=1, class_weights=weights
    )
    labels = np.concatenate([batch.labels for batch in read(plan)])
    assert abs((labels == 0).mean() - 1 / 3) < 0.03


def test_a_broken_file_ends_the_reading_with_its_cause_and_no_thread(tmp_path: Path) -> None:
    files = write_files(tmp_path, [300, 300])
    path = Path(files[1].path)
    content = bytearray(path.read_bytes())
    content[200:400] = b"\xff" * 200
    path.write_bytes(bytes(content))
    before = threading.active_count()
    with pytest.raises(ReadFailed, match=r"part-1\.parquet") as raised:
        read(plan_evaluation(files, batch_size=50, rank=0, world=1))
    assert isinstance(raised.value.__cause__, pa.ArrowException | OSError)
    assert threading.active_count() == before


def test_row_counts_other_than_the_log_says_are_refused(tmp_path: Path) -> None:
    (file,) = write_files(tmp_path, [10])
    plan = plan_evaluation([file._replace(num_rows=9)], batch_size=5, rank=0, world=1)
    with pytest.raises(ReadFailed, match="holds 10 rows where the table's log says 9"):
        read(plan)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("pixels", [b"\0" * 64, b"\0" * 63, b"\0" * 65], r"pixels of \[63, 65\] bytes"),
        ("pixels", [b"\0" * 64, None, b"\0" * 64], r"pixels of \[0\] bytes"),
        ("label_index", pa.array([1, None, 2], pa.int32()), "label_index is null"),
    ],
)
def test_rows_that_no_model_could_take_are_refused(
    tmp_path: Path, column: str, value: object, message: str
) -> None:
    rows = {"pixels": [b"\0" * 64] * 3, "label_index": pa.array([1, 2, 3], pa.int32())}
    pq.write_table(pa.table(rows | {column: value}), tmp_path / "a.parquet")
    plan = plan_evaluation([RowFile(str(tmp_path / "a.parquet"), 3)], batch_size=5, rank=0, world=1)
    with pytest.raises(ReadFailed, match=message):
        list(read_batches(plan, image_size=SIZE))


def test_rows_that_petastorm_loses_are_missed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = reader.ArrowTables.read_next
    monkeypatch.setattr(
        reader.ArrowTables, "read_next", lambda *arguments: real(*arguments).slice(1)
    )
    files = write_files(tmp_path, [10])
    with pytest.raises(ReadFailed, match="columns of a row group differ in length"):
        read(plan_evaluation(files, batch_size=5, rank=0, world=1))


def test_a_path_that_no_url_can_hold_is_refused(tmp_path: Path) -> None:
    file = write_file(tmp_path / "a#b" / "part.parquet", range(3))
    with pytest.raises(ReaderInputError, match="no '#'"):
        read(plan_evaluation([file], batch_size=5, rank=0, world=1))


def test_leaving_off_early_ends_the_thread(tmp_path: Path) -> None:
    files = write_files(tmp_path, [50])
    before = threading.active_count()
    batches = read_batches(plan_evaluation(files, batch_size=2, rank=0, world=1), image_size=SIZE)
    next(batches)
    assert threading.active_count() > before
    batches.close()
    assert threading.active_count() == before


def test_reading_warns_of_nothing(tmp_path: Path) -> None:
    files = write_files(tmp_path, [5, 5])
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always", FutureWarning)
        warnings.simplefilter("always", UserWarning)
        read(plan_evaluation(files, batch_size=5, rank=0, world=1))
    assert [str(warning.message) for warning in seen] == []
