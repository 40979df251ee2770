"""Communication between the processes that torchrun starts; a program started without torchrun is one process.

One all-reduce averages the gradients after the last backward pass of an update; other work goes on meanwhile. We do not
use DistributedDataParallel, because its hooks expect one forward and one backward pass of every network: our step calls
each generator several times, runs backward term by term, and freezes the discriminators in between. The averages are
the same.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
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
    """The number of this process on its machine, from 0."""
    return _from_environment("LOCAL_RANK", 0)


def gpu_number() -> int:
    """The number of this process's GPU among those that it sees.

    It is that of the process, unless the program that started it, such as Slurm, has given it a single GPU to see.
    torchrun never does that: there a single GPU is the machine's only one.
    """
    sees_its_own_only = torch.cuda.device_count() == 1 and not dist.is_torchelastic_launched()
    return 0 if sees_its_own_only else local_rank()


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
def begin_average(tensors: Sequence[Tensor]) -> Callable[[], None]:
    """Begin to average tensors, all of one dtype and on one device, over all processes.

    Returns:
        A function that waits for the means and writes them into the tensors, which must not change before. All
        processes must begin in the same order, and call these functions in the same order.
    """
    if count() == 1:
        return lambda: None
    flat = torch.empty(sum(tensor.numel() for tensor in tensors), dtype=tensors[0].dtype, device=tensors[0].device)
    parts = torch.split(flat, [tensor.numel() for tensor in tensors])
    views = [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]
    torch._foreach_copy_(views, list(tensors))
    uses_nccl = flat.is_cuda  # Gloo cannot average
    work = dist.all_reduce(flat, dist.ReduceOp.AVG if uses_nccl else dist.ReduceOp.SUM, async_op=True)

    @torch.no_grad()
    def finish() -> None:
        work.wait()  # on a GPU, its stream waits, and the program does not
        if not uses_nccl:
            flat.div_(count())
        torch._foreach_copy_(list(tensors), views)

    return finish


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
