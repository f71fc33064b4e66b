"""Which rank reads which rows of a version of images, in which order, in which batches.

The rows of a list of files, in the order of the list, are numbered 0 to N - 1, and every rank
takes a contiguous range of them: each row is read exactly once an epoch, however many files and
ranks there are, and a rank opens only the files that its range touches.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np


class ReaderInputError(ValueError):
    """Files, rows and ranks that do not fit together."""


class RowFile(NamedTuple):
    """A Parquet file.

    Attributes:
        path: absolute.
        num_rows: how many rows of it are read, from the first.
        held: how many it has by the table's log; None: no others.
    """

    path: str
    num_rows: int
    held: int | None = None


def first_rows(files: Sequence[RowFile], share: float) -> tuple[RowFile, ...]:
    """The first rows of each file, at least one of each.

    Rows of images lie in the order of their content's hash: so what is kept is like a draw without
    regard to class, source or patient, and a smaller share is a part of any larger one.

    Args:
        files: of a split.
        share: of the rows of each, above 0 and at most 1.
    """
    kept = ((file, math.ceil(share * file.num_rows)) for file in files)
    return tuple(RowFile(file.path, rows, file.num_rows) for file, rows in kept)


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
        class_weights: by class, how likely a row of a window is drawn, with replacement; None
            gives out every row.
    """

    portions: list[Portion]
    batch_sizes: list[int]
    repeated: int = 0
    shuffle_seed: tuple[int, ...] | None = None
    class_weights: tuple[float, ...] | None = None


def plan_training(
    files: Sequence[RowFile],
    *,
    batch_size: int,
    seed: int,
    epoch: int,
    rank: int,
    world: int,
    class_weights: tuple[float, ...] | None = None,
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
        class_weights: by class; where given, as many rows are drawn from each window as it has,
            with replacement, each row as likely as its class's weight, above 0, says.

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
    repeated = _lacking(steps, first, last)
    batch_sizes = _sizes(last - first + repeated, steps)
    portions = _portions([files[place] for place in order], first, last)
    return ReadPlan(portions, batch_sizes, repeated, (seed, epoch, rank + 1), class_weights)


def repeated_rows(total: int, batch_size: int, world: int) -> int:
    """How many of so many rows an epoch of training gives out twice, over all ranks."""
    steps = -(-total // batch_size)
    return sum(_lacking(steps, *_share(total, rank, world)) for rank in range(world))


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


def _lacking(steps: int, first: int, last: int) -> int:
    """Rows that a rank lacks for a batch of one at least in each step: 1 at the most."""
    return max(0, steps - (last - first))


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
