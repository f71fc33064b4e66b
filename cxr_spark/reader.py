"""Petastorm readers that follow a plan: batches of pixels and labels, read ahead in threads."""

import warnings
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from itertools import accumulate, chain, islice
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlparse

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from petastorm import make_batch_reader
from petastorm.workers_pool import EmptyResultError

from cxr_spark.read_plans import Portion, ReaderInputError, ReadPlan

# Rows are permuted within a window of this many bytes of pixels; a rank holds about two of them.
WINDOW_BYTES = 64 << 20
BATCHES_AHEAD = 4
# Petastorm decodes in the thread that asks: two threads read by turns, each some row groups ahead.
READERS = 2
ROW_GROUPS_AHEAD = 2
# Large batches, and large row groups, are fewer ahead: as many as this holds, or one.
AHEAD_BYTES = 64 << 20

Columns = dict[str, NDArray]
Item = TypeVar("Item")


class ReadFailed(RuntimeError):
    """A file is not what the table's log says of it, or cannot be read."""


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


def read_batches(
    plan: ReadPlan, *, image_size: int, columns: Sequence[str] = (), skip: int = 0
) -> Generator[Batch, None, None]:
    """Read what a plan says, a few batches ahead in threads of its own.

    What goes wrong in a thread is raised here; closing the generator ends the threads.

    Args:
        plan: of this rank.
        image_size: side of the images, pixels.
        columns: further columns, for the batches' `columns`.
        skip: leave out so many batches; those after them are the same as without.

    Raises:
        ReaderInputError: a path that a URL cannot hold.
        ReadFailed: a file that is missing, broken, or not what the plan says.
    """
    batches = _batches(plan, image_size, ("pixels", "label_index", *columns), skip)
    yield from _read_ahead(batches, batches_ahead(plan.batch_sizes, image_size))


def batches_ahead(batch_sizes: Sequence[int], image_size: int) -> int:
    """How many batches are read ahead, by the bytes of their pixels."""
    return _ahead(BATCHES_AHEAD, max(batch_sizes, default=0) * image_size**2)


def _ahead(at_most: int, item_bytes: int) -> int:
    return max(1, min(at_most, AHEAD_BYTES // max(1, item_bytes)))


def _read_ahead(items: Generator[Item, None, None], count: int) -> Generator[Item, None, None]:
    """The items, up to so many of them made ahead in a thread."""
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="reader") as thread:
        ahead = deque(thread.submit(next, items, None) for _ in range(count))
        try:
            while (item := ahead.popleft().result()) is not None:
                ahead.append(thread.submit(next, items, None))
                yield item
        finally:
            for waiting in ahead:
                waiting.cancel()
            thread.submit(items.close)


def _batches(
    plan: ReadPlan, image_size: int, names: tuple[str, ...], skip: int
) -> Generator[Batch, None, None]:
    sizes = deque(enumerate(plan.batch_sizes))
    order = np.random.default_rng(plan.shuffle_seed)
    rows: list[Columns] = []
    places = np.empty((0, 2), np.intp)  # row group, row: what is left of the windows so far
    with closing(_in_turn(plan.portions, image_size, names)) as row_groups:
        for window in _windows(_with_repeats(row_groups, plan)):
            fresh = _drawn(window, plan.class_weights, order)
            fresh[:, 0] += len(rows)
            places = np.concatenate([places, fresh])
            rows += window
            if plan.shuffle_seed is not None:
                order.shuffle(places)
            while sizes and sizes[0][1] <= len(places):
                number, size = sizes.popleft()
                here, places = np.split(places, [size])
                if number >= skip:
                    yield _batch(_taken(rows, here))
            rows = [_taken(rows, places)]
            places = _all_places(rows)
    assert not sizes, f"batches of {[size for _, size in sizes]} rows are left without rows"


def _all_places(rows: Sequence[Columns]) -> NDArray[np.intp]:
    """(n, 2) row group and row of every row."""
    counts = [len(part["pixels"]) for part in rows]
    groups = np.repeat(np.arange(len(counts)), counts)
    within = np.concatenate([np.arange(count) for count in counts])
    return np.column_stack([groups, within])


def _drawn(
    window: Sequence[Columns], class_weights: tuple[float, ...] | None, order: np.random.Generator
) -> NDArray[np.intp]:
    """(n, 2) places of a window's rows: each once, or drawn by the weight of its class."""
    places = _all_places(window)
    if class_weights is None or not len(places):
        return places
    labels = np.concatenate([part["label_index"] for part in window])
    weights = np.asarray(class_weights)[labels]
    return places[order.choice(len(places), size=len(places), p=weights / weights.sum())]


def _with_repeats(row_groups: Iterator[Columns], plan: ReadPlan) -> Iterator[Columns]:
    """The row groups, then again the first rows of the first one as often as the plan says.

    The first is the first of which the plan has rows: those before it in its file have none.
    """
    with_rows = (group for group in row_groups if len(group["pixels"]))
    opening = next(with_rows, None)
    if opening is None:
        return iter(())
    again = {name: column[: plan.repeated] for name, column in opening.items()}
    return chain([opening], with_rows, [again])


def _windows(row_groups: Iterator[Columns]) -> Iterator[list[Columns]]:
    window: list[Columns] = []
    for row_group in row_groups:
        window.append(row_group)
        if sum(part["pixels"].nbytes for part in window) >= WINDOW_BYTES:
            yield window
            window = []
    if window:
        yield window


def _taken(rows: Sequence[Columns], places: NDArray[np.intp]) -> Columns:
    """The rows at (n, 2) places, copied once."""
    taken = {
        name: np.empty((len(places), *column.shape[1:]), np.result_type(*(r[name] for r in rows)))
        for name, column in rows[0].items()
    }
    for group in np.unique(places[:, 0]):
        here = np.flatnonzero(places[:, 0] == group)
        for name, column in rows[group].items():
            taken[name][here] = column[places[here, 1]]
    return taken


def _batch(rows: Columns) -> Batch:
    further = {name: rows[name] for name in rows if name not in ("pixels", "label_index")}
    return Batch(rows["pixels"], rows["label_index"].astype(np.int64), further)


def _in_turn(
    portions: Sequence[Portion], image_size: int, names: tuple[str, ...]
) -> Generator[Columns, None, None]:
    """The rows of the portions in order, one row group at a time; portions are read in turn."""
    # Asking for one row group too many could hang: the dummy pool may then wait for ever for its
    # ventilator. So the footers say how many there are.
    groups = [(portion, _row_group_sizes(portion)) for portion in portions]
    shares = [groups[start::READERS] for start in range(min(READERS, len(groups)))]
    largest = max((size for _, sizes in groups for size in sizes), default=0)
    count = _ahead(ROW_GROUPS_AHEAD, READERS * largest * image_size**2)
    with ExitStack() as readers:
        ahead = [_read_ahead(_row_groups(share, image_size, names), count) for share in shares]
        for reader in ahead:
            readers.enter_context(closing(reader))
        for place, (_, sizes) in enumerate(groups):
            yield from islice(ahead[place % READERS], len(sizes))


def _row_groups(
    groups: Sequence[tuple[Portion, list[int]]], image_size: int, names: tuple[str, ...]
) -> Generator[Columns, None, None]:
    """The rows of portions, one row group of a file at a time."""
    _silence_petastorm()
    # Petastorm takes expressions, and would warn of a name that only begins another one.
    with make_batch_reader(
        [_url(portion.file.path) for portion, _ in groups],
        schema_fields=[f"{name}$" for name in names],
        reader_pool_type="dummy",  # in this thread; the thread pool loses rows in some versions
        shuffle_row_groups=False,
        num_epochs=1,
    ) as reader:
        reader._results_queue_reader = ArrowTables()
        for portion, sizes in groups:
            start = 0
            for num_rows in sizes:
                wanted = slice(max(portion.first - start, 0), max(portion.last - start, 0))
                try:
                    rows = next(reader)
                except (pa.ArrowException, OSError) as error:
                    raise ReadFailed(f"{portion.file.path}: {error}") from error
                yield _checked(portion.file.path, rows, wanted, num_rows, image_size)
                start += num_rows


def _row_group_sizes(portion: Portion) -> list[int]:
    """Rows of the row groups of a file, up to the last that the portion touches."""
    path, num_rows, held = portion.file
    held = num_rows if held is None else held
    try:
        footer = pq.read_metadata(path)
    except (pa.ArrowException, OSError) as error:
        raise ReadFailed(f"{path}: {error}") from error
    if footer.num_rows != held:
        raise ReadFailed(f"{path}: holds {footer.num_rows} rows where the table's log says {held}")
    sizes = [footer.row_group(index).num_rows for index in range(footer.num_row_groups)]
    starts = accumulate(sizes, initial=0)
    return [size for size, start in zip(sizes, starts, strict=False) if start < portion.last]


class ArrowTables:
    """Row groups as petastorm's worker reads them, pixels in one buffer.

    Its own `ArrowReaderWorkerResultsQueueReader` makes a Python object of each image.
    """

    batched_output = True

    def read_next(self, workers_pool: Any, schema: Any, ngram: Any) -> pa.Table:
        """The next row group.

        Raises:
            StopIteration: there is none.
        """
        try:
            return workers_pool.get_results()
        except EmptyResultError as error:
            raise StopIteration from error


def _checked(path: str, table: pa.Table, wanted: slice, num_rows: int, image_size: int) -> Columns:
    """The wanted rows of a row group, pixels as one (n, 1, S, S) uint8 array in its memory.

    Raises:
        ReadFailed: columns of different lengths, a null, or pixels of another size.
    """
    columns = dict(zip(table.column_names, table.combine_chunks().columns, strict=True))
    if {len(column) for column in columns.values()} != {num_rows}:
        raise ReadFailed(f"{path}: columns of a row group differ in length")
    if columns["label_index"].null_count:
        raise ReadFailed(f"{path}: a label_index is null")
    pixels = columns.pop("pixels").chunk(0)
    lengths = pc.fill_null(pc.binary_length(pixels), 0).to_numpy()
    if sizes := sorted(set(np.unique(lengths).tolist()) - {image_size**2}):
        raise ReadFailed(f"{path}: pixels of {sizes} bytes, expected {image_size} x {image_size}")
    _, offsets, values = pixels.buffers()
    first = np.frombuffer(offsets, np.int32)[pixels.offset] if values else 0
    images = np.frombuffer(values or b"", np.uint8)[first : first + num_rows * image_size**2]
    rows = {name: column.to_numpy() for name, column in columns.items()}
    rows["pixels"] = images.reshape(-1, 1, image_size, image_size)
    return {name: column[wanted] for name, column in rows.items()}


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
