"""Petastorm readers over the files of one version of images: who reads which rows, in which order.

The rows of a list of files, in the order of the list, are numbered 0 to N - 1, and every rank
takes a contiguous range of them: each row is read exactly once an epoch, however many files and
ranks there are, and a rank opens only the files that its range touches.
"""

import warnings
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, pairwise
from typing import NamedTuple
from urllib.parse import urlparse

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from petastorm import make_batch_reader

# Rows are permuted within a window of this many bytes of pixels; a rank holds about three of them.
WINDOW_BYTES = 64 << 20
BATCHES_AHEAD = 4

Columns = dict[str, NDArray]


class ReaderInputError(ValueError):
    """Files, rows and ranks that do not fit together."""


class ReadFailed(RuntimeError):
    """A file is not what the table's log says of it, or cannot be read."""


class RowFile(NamedTuple):
    """A Parquet file: absolute path and its number of rows by the table's log."""

    path: str
    num_rows: int


class Portion(NamedTuple):
    """The rows `first <= row < last` of a file."""

    file: RowFile
    first: int
    last: int


class ReadPlan(NamedTuple):
    """What one rank reads in one pass.

    Attributes:
        portions: the rows, in the order of reading.
        batch_sizes: rows of each batch.
        repeated: how many of the rows are given out twice, to fill up the batches.
        shuffle_seed: seed of the order within windows; None keeps the order of the rows.
    """

    portions: list[Portion]
    batch_sizes: list[int]
    repeated: int = 0
    shuffle_seed: tuple[int, ...] | None = None


class Batch(NamedTuple):
    """Images with their classes.

    Attributes:
        pixels: (B, 1, S, S) uint8, grey.
        labels: (B,) int64, places in labels.CLASSES.
        columns: further columns that were asked for, (B,) each.
    """

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]
    columns: Columns


def plan_training(
    files: Sequence[RowFile], *, batch_size: int, seed: int, epoch: int, rank: int, world: int
) -> ReadPlan:
    """Plan an epoch of training: equally many batches on every rank, in an order of its own.

    The files are permuted by (seed, epoch), the rows within a window by (seed, epoch, rank).
    Batches of all ranks together hold `batch_size` rows or a few less, so that an epoch has
    equally many steps whatever the number of ranks, and none ends in a tiny batch. A rank
    repeats one of its rows only where it has a row less than steps, which takes batches of one
    row a rank.

    Args:
        files: the files of the split.
        batch_size: rows of a step, over all ranks.
        seed, epoch: 0 or more; the same two give the same order.
        rank, world: which of how many ranks.

    Raises:
        ReaderInputError: fewer rows, or a smaller batch, than ranks.
    """
    total = sum(file.num_rows for file in files)
    if min(total, batch_size) < world:
        raise ReaderInputError(
            f"{world} workers need at least {world} rows and a batch size of {world}; "
            f"there are {total} rows and the batch size is {batch_size}"
        )
    order = np.random.default_rng((seed, epoch, 0)).permutation(len(files))
    steps = -(-total // batch_size)
    first, last = _share(total, rank, world)
    repeated = max(0, steps - (last - first))
    batch_sizes = _sizes(last - first + repeated, steps)
    portions = _portions([files[place] for place in order], first, last)
    return ReadPlan(portions, batch_sizes, repeated, shuffle_seed=(seed, epoch, rank + 1))


def plan_evaluation(
    files: Sequence[RowFile], *, batch_size: int, rank: int, world: int
) -> ReadPlan:
    """Plan an exact pass in the order of the files: every row once over all ranks.

    Ranks share out whole batches, so the batches are the same ones whatever the number of ranks,
    and joining the results of ranks 0, 1, ... gives the rows in the order of the files. A rank
    may have no batch.

    Args:
        files: the files of the split.
        batch_size: rows of a batch, on one rank.
        rank, world: which of how many ranks.
    """
    total = sum(file.num_rows for file in files)
    first, last = _share(-(-total // batch_size), rank, world)
    bounds = [min(batch * batch_size, total) for batch in range(first, last + 1)]
    batch_sizes = [end - start for start, end in pairwise(bounds)]
    return ReadPlan(_portions(files, bounds[0], bounds[-1]), batch_sizes)


def read_batches(
    plan: ReadPlan, *, image_size: int, columns: Sequence[str] = ()
) -> Generator[Batch, None, None]:
    """Read what a plan says, a few batches ahead in a thread of its own.

    What goes wrong in the thread is raised here; closing the generator ends the thread.

    Args:
        plan: of this rank.
        image_size: side of the images, pixels.
        columns: further columns, for the batches' `columns`.

    Raises:
        ReaderInputError: a path that a URL cannot hold.
        ReadFailed: a file that is missing, broken, or not what the plan says.
    """
    batches = _batches(plan, image_size, ("pixels", "label_index", *columns))
    try:
        yield from _read_ahead(batches)
    finally:
        batches.close()


def _share(total: int, rank: int, world: int) -> tuple[int, int]:
    return rank * total // world, (rank + 1) * total // world


def _sizes(total: int, parts: int) -> list[int]:
    """As equal as whole numbers can be."""
    return [end - start for start, end in (_share(total, part, parts) for part in range(parts))]


def _portions(files: Sequence[RowFile], first: int, last: int) -> list[Portion]:
    """The rows `first <= row < last` of all files together, by file."""
    portions = []
    start = 0
    for file in files:
        inside = Portion(file, max(first - start, 0), min(last - start, file.num_rows))
        if inside.first < inside.last:
            portions.append(inside)
        start += file.num_rows
    return portions


def _read_ahead(batches: Iterator[Batch]) -> Generator[Batch, None, None]:
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="reader") as thread:
        ahead = deque(thread.submit(next, batches, None) for _ in range(BATCHES_AHEAD))
        try:
            while (batch := ahead.popleft().result()) is not None:
                ahead.append(thread.submit(next, batches, None))
                yield batch
        finally:
            for waiting in ahead:
                waiting.cancel()


def _batches(
    plan: ReadPlan, image_size: int, names: tuple[str, ...]
) -> Generator[Batch, None, None]:
    sizes = deque(plan.batch_sizes)
    order = np.random.default_rng(plan.shuffle_seed)
    rest: list[Columns] = []
    for window in _windows(_with_repeats(_row_groups(plan.portions, image_size, names), plan)):
        rows = _joined([*rest, window])
        count = len(rows["pixels"])
        places = np.arange(count) if plan.shuffle_seed is None else order.permutation(count)
        while sizes and sizes[0] <= len(places):
            here, places = np.split(places, [sizes.popleft()])
            yield _batch(_taken(rows, here))
        rest = [_taken(rows, places)]
    assert not sizes, f"batches of {list(sizes)} rows are left without rows"


def _with_repeats(row_groups: Iterator[Columns], plan: ReadPlan) -> Iterator[Columns]:
    """The row groups, then again the first rows of the first one as often as the plan says."""
    opening = next(row_groups, None)
    if opening is None:
        return iter(())
    again = {name: column[: plan.repeated] for name, column in opening.items()}
    return chain([opening], row_groups, [again])


def _windows(row_groups: Iterator[Columns]) -> Iterator[Columns]:
    window: list[Columns] = []
    for row_group in row_groups:
        window.append(row_group)
        if sum(part["pixels"].nbytes for part in window) >= WINDOW_BYTES:
            yield _joined(window)
            window = []
    if window:
        yield _joined(window)


def _joined(parts: Sequence[Columns]) -> Columns:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _taken(rows: Columns, places: NDArray[np.intp]) -> Columns:
    return {name: column[places] for name, column in rows.items()}


def _batch(rows: Columns) -> Batch:
    further = {name: rows[name] for name in rows if name not in ("pixels", "label_index")}
    return Batch(rows["pixels"], rows["label_index"].astype(np.int64), further)


def _row_groups(
    portions: Sequence[Portion], image_size: int, names: tuple[str, ...]
) -> Iterator[Columns]:
    """The rows of the portions, one row group of a file at a time."""
    if not portions:
        return
    # Asking for one row group too many could hang: the dummy pool may then wait for ever for its
    # ventilator. So the footers say how many there are.
    group_sizes = [_row_group_sizes(portion.file) for portion in portions]
    _silence_petastorm()
    # Petastorm takes expressions, and would warn of a name that only begins another one.
    with make_batch_reader(
        [_url(portion.file.path) for portion in portions],
        schema_fields=[f"{name}$" for name in names],
        reader_pool_type="dummy",  # in this thread; the thread pool loses rows in some versions
        shuffle_row_groups=False,
        num_epochs=1,
    ) as reader:
        for portion, sizes in zip(portions, group_sizes, strict=True):
            start = 0
            for num_rows in sizes:
                wanted = slice(max(portion.first - start, 0), max(portion.last - start, 0))
                try:
                    rows = next(reader)._asdict()
                except (pa.ArrowException, OSError) as error:
                    raise ReadFailed(f"{portion.file.path}: {error}") from error
                yield _checked(portion.file.path, rows, wanted, num_rows, image_size)
                start += num_rows
                if start >= portion.last:
                    break


def _row_group_sizes(file: RowFile) -> list[int]:
    try:
        footer = pq.read_metadata(file.path)
    except (pa.ArrowException, OSError) as error:
        raise ReadFailed(f"{file.path}: {error}") from error
    if footer.num_rows != file.num_rows:
        raise ReadFailed(
            f"{file.path}: holds {footer.num_rows} rows where the table's log says {file.num_rows}"
        )
    return [footer.row_group(index).num_rows for index in range(footer.num_row_groups)]


def _checked(
    path: str, rows: Mapping[str, NDArray], wanted: slice, num_rows: int, image_size: int
) -> Columns:
    """The wanted rows of a row group, pixels as one (n, 1, S, S) uint8 array.

    Raises:
        ReadFailed: columns of different lengths, a null, or pixels of another size.
    """
    if {len(column) for column in rows.values()} != {num_rows}:
        raise ReadFailed(f"{path}: columns of a row group differ in length")
    if rows["label_index"].dtype.kind != "i":
        raise ReadFailed(f"{path}: a label_index is null")
    images = rows["pixels"][wanted]
    sizes = {len(image) if image is not None else 0 for image in images} - {image_size**2}
    if sizes:
        raise ReadFailed(
            f"{path}: pixels of {sorted(sizes)} bytes, expected {image_size} x {image_size}"
        )
    stacked = np.frombuffer(b"".join(images), np.uint8).reshape(-1, 1, image_size, image_size)
    return {name: column[wanted] for name, column in rows.items()} | {"pixels": stacked}


def _url(path: str) -> str:
    url = f"file://{path}"
    if urlparse(url).path != path:
        raise ReaderInputError(
            f"{path}: Petastorm opens files by URL, so the path must hold no '#', '?' or line break"
        )
    return url


def _silence_petastorm() -> None:
    """Petastorm 0.12.1 calls what pyarrow 14 deprecates, and says that it skips `boxes`."""
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"petastorm\.")
    warnings.filterwarnings(
        "ignore", r"\[ARROW-1644\] Ignoring unsupported structure", UserWarning, r"petastorm\."
    )
