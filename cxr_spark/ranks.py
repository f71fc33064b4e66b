"""One rank of a distributed run: its place among the others, what it shares, and how it ends."""

import ctypes
import hashlib
import os
import platform
import signal
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from cxr_spark.training_run import TRACEBACKS

PR_SET_PDEATHSIG = 1  # of prctl(2)
LOOK_SECONDS = 0.5


class Place(NamedTuple):
    """Which of how many ranks a process is, and the device that it computes on."""

    rank: int = 0
    world: int = 1
    device: torch.device = torch.device("cpu")


class StopSign:
    """Whether ranks should stop at their next step: a file asks all, SIGTERM this one.

    Args:
        file: what the driver leaves.
        failures: the folder of tracebacks; with one in it, SIGTERM means that torchrun ends this
            rank for another's failure, and it ends at once.
    """

    def __init__(self, file: Path, failures: Path) -> None:
        self.file, self.failures = file, failures
        self.is_set, self.looked_at = False, -LOOK_SECONDS
        signal.signal(signal.SIGTERM, self._terminated)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})

    def look(self) -> bool:
        """Whether to stop; looks for the file twice a second."""
        if not self.is_set and time.monotonic() - self.looked_at > LOOK_SECONDS:
            self.looked_at = time.monotonic()
            self.is_set = self.file.exists()
        return self.is_set

    def _terminated(self, signum: int, frame: object) -> None:
        if any(self.failures.glob(TRACEBACKS)):
            os._exit(128 + signum)
        self.is_set = True


@contextmanager
def joined(folder: str | Path, cores: int | None = None) -> Iterator[Place]:
    """Join the other ranks for the length of a block, as torchrun's environment says.

    The process ends with its parent, uses its share of the cores, and where the block raises,
    leaves the whole traceback as a file: of a rank's output, TorchDistributor keeps 100 lines.

    Args:
        folder: for tracebacks; every rank and the driver see it.
        cores: that a rank may use at the most; None: its share of the machine's.
    """
    _end_with_parent()
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    try:
        place = Place(rank, world, _device(int(os.environ["LOCAL_WORLD_SIZE"])))
        # Tensors on the CPU go by gloo also beside a GPU: what ranks agree on waits for no kernel.
        dist.init_process_group("cpu:gloo,cuda:nccl" if place.device.type == "cuda" else "gloo")
        torch.set_num_threads(_threads(place, cores))
        yield place
        dist.destroy_process_group()
    except BaseException:
        (Path(folder) / f"rank-{rank}.txt").write_text(traceback.format_exc(), "utf-8")
        raise


def replica(model: nn.Module, place: Place) -> nn.Module:
    """The model as training calls it: gradients are averaged over the ranks."""
    if place.world == 1:
        return model
    # Batch statistics are averaged before each evaluation: no need to send them at each step.
    return DistributedDataParallel(model, forward_sync_buffers=False, gradient_as_bucket_view=True)


def average_buffers(model: nn.Module, place: Place) -> None:
    """Make running means and variances the mean of all ranks', on all of them."""
    buffers = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
    if place.world == 1 or not buffers:
        return
    means = sum_over_ranks(torch.cat([buffer.flatten() for buffer in buffers]), place)
    means /= place.world
    for buffer, mean in zip(buffers, means.split([b.numel() for b in buffers]), strict=True):
        buffer.copy_(mean.view_as(buffer))


def agree(stop: bool, share: float, place: Place) -> tuple[bool, float]:
    """Whether any rank wants to stop, and the share of rank 0's clock; the same on all ranks."""
    if place.world == 1:
        return stop, share
    votes = torch.tensor([stop, share if place.rank == 0 else 0], dtype=torch.float64)
    dist.all_reduce(votes)
    return votes[0].item() > 0, votes[1].item()


def sum_over_ranks(values: Tensor, place: Place) -> Tensor:
    """The sum of a tensor over all ranks, on all of them; changes the tensor given."""
    if place.world > 1:
        dist.all_reduce(values)
    return values


def rows_of_all_ranks(rows: Tensor, counts: Sequence[int], place: Place) -> Tensor:
    """The rows of ranks 0, 1, ... one after the other, on all of them.

    Args:
        rows: (n, ...), those of this rank.
        counts: n on each rank.
        place: this rank.
    """
    if place.world == 1:
        return rows
    parts = [rows.new_empty((count, *rows.shape[1:])) for count in counts]
    parts[place.rank] = rows.contiguous()
    for rank, part in enumerate(parts):
        if len(part):
            dist.broadcast(part, src=rank)
    return torch.cat(parts)


def idle_gpus(workers: int) -> str | None:
    """What to say of GPUs that so many ranks on this machine are too many for; None: nothing."""
    gpus = torch.cuda.device_count()
    if not 0 < gpus < workers:
        return None
    return (
        f"training on the CPU: {workers} workers need a GPU each, and there "
        f"{'is' if gpus == 1 else 'are'} {gpus}; --workers {gpus} trains on "
        f"{'it' if gpus == 1 else 'them'}"
    )


def _threads(place: Place, cores: int | None) -> int:
    """This rank's share of its machine's cores; torchrun knows of its own ranks alone, and on a
    cluster each has a torchrun of its own."""
    name = hashlib.sha256(platform.node().encode()).digest()
    machine = torch.tensor([int.from_bytes(name[:7], "big")])
    machines = rows_of_all_ranks(machine, [1] * place.world, place)
    share = len(os.sched_getaffinity(0)) // int((machines == machine).sum())
    return max(1, share if cores is None else min(share, cores))


def _device(on_this_machine: int) -> torch.device:
    """A GPU of its own for each rank of this machine, or the CPU for all."""
    if torch.cuda.device_count() < on_this_machine:
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    torch.cuda.set_device(device)
    return device


def _end_with_parent() -> None:
    """Have the system kill this process when its parent ends.

    torchrun starts each rank in a session of its own: a SIGKILL of the driver's process group
    would leave them training.
    """
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() == 1:  # it ended before that
        os.kill(os.getpid(), signal.SIGKILL)
