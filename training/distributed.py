"""Communication between the processes that torchrun starts; a program started without torchrun is one process.

One all-reduce averages the gradients after the last backward pass of an update. We do not use DistributedDataParallel,
because its hooks expect one forward and one backward pass of every network: our step calls each generator several
times, runs backward term by term, and freezes the discriminators in between. The averages are the same.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed.nn.functional  # imported before any process group exists: its default arguments would keep one
from torch import Tensor
from torch import distributed as dist

from console import UserError, printable

MAX_WAIT = 3600  # The other processes wait up to this many seconds while the first one scans, evaluates or saves.


def rank() -> int:
    """The number of this process among all processes, from 0; process 0 reports and saves."""
    number = _from_environment("RANK", 0)
    if number >= count():
        raise UserError(f"RANK={number} must be less than WORLD_SIZE={count()}; torchrun sets both, else unset them")
    return number


def count() -> int:
    """The number of processes on all machines."""
    return max(1, _from_environment("WORLD_SIZE", 1))


def local_rank() -> int:
    """The number of this process on its machine, from 0, which is also the number of its GPU."""
    return _from_environment("LOCAL_RANK", 0)


def _from_environment(name: str, default: int) -> int:
    """A number that torchrun sets; UserError if something else has set it."""
    text = os.environ.get(name, str(default))
    if not re.fullmatch("[0-9]{1,6}", text):
        raise UserError(f"{name}={printable(text)} in the environment is not a number: unset it, or use torchrun")
    return int(text)


@contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Connect the processes inside the block: GPU tensors travel over NCCL, all others over Gloo."""
    if count() == 1:
        yield
        return
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=timedelta(seconds=MAX_WAIT))
    succeeded = False
    try:
        yield
        any_process(False)  # waits for all: torchrun stops the others when one exits with a status other than 0
        succeeded = True
    finally:
        if succeeded or backend == "gloo":  # after an error NCCL would block, because the others wait for this process
            dist.destroy_process_group()  # ends Gloo's threads, which might abort the process when Python exits


@torch.no_grad()
def average(tensors: Sequence[Tensor]) -> None:
    """Replace tensors, all of one dtype and on one device, by their means over all processes."""
    if count() == 1:
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(flat)
    means = torch.split(flat.div_(count()), [tensor.numel() for tensor in tensors])
    for tensor, mean in zip(tensors, means, strict=True):
        tensor.copy_(mean.view(tensor.shape))


def any_process(flag: bool) -> bool:
    """Whether `flag` is true in any process; all processes get the same answer."""
    if count() == 1:
        return flag
    flags = torch.tensor(int(flag))  # on the CPU, so that nothing waits for the GPU
    dist.all_reduce(flags, dist.ReduceOp.MAX)
    return bool(flags)


def all_equal(number: int) -> bool:
    """Whether `number` is the same in all processes."""
    if count() == 1:
        return True
    extremes = torch.tensor([number, -number])
    dist.all_reduce(extremes, dist.ReduceOp.MAX)
    return bool(extremes[0] == -extremes[1])


def gather_to_first(value: Any) -> list[Any] | None:
    """The values of all processes in the order of rank, in the first process; None in the others."""
    if count() == 1:
        return [value]
    values = [None] * count() if rank() == 0 else None
    dist.gather_object(value, values)
    return values


def is_peer_failure(error: RuntimeError) -> bool:
    """Whether an error means that another process has ended or cannot be reached."""
    return count() > 1 and (
        isinstance(error, dist.DistError) or bool(re.search(r"gloo|NCCL|[Cc]onnection", str(error)))
    )
