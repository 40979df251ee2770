"""Several processes that train one model, or share other work, as torchrun starts them. Without it there is one.

Gradients are averaged by one all-reduce after the last backward pass of a step. Departs from DistributedDataParallel,
whose hooks expect one forward and one backward pass of every network: our step calls each generator several times, runs
backward term by term, and freezes the discriminators in between. The sum is the same.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed.nn.functional  # its default arguments would hold a process group that was there before it
from torch import Tensor
from torch import distributed as dist

MAX_WAIT = 3600  # seconds for which the others wait while the first process scans, evaluates or saves


def rank() -> int:
    """This process's number among all, from 0 on; the first one reports and saves."""
    return int(os.environ.get("RANK", "0"))


def count() -> int:
    """How many processes there are, on all machines."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_rank() -> int:
    """This process's number on its machine: the number of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))


@contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Let the processes talk to each other inside the block, over NCCL between GPUs and over Gloo otherwise."""
    if count() == 1:
        yield
        return
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=timedelta(seconds=MAX_WAIT))
    succeeded = False
    try:
        yield
        any_process(False)  # all end together: torchrun stops the others when one ends with another status than 0
        succeeded = True
    finally:
        if succeeded or backend == "gloo":  # after an error NCCL would wait for processes that wait for this one
            dist.destroy_process_group()  # ends Gloo's threads, which Python's end would trip over


@torch.no_grad()
def average(tensors: Sequence[Tensor]) -> None:
    """Replace tensors of one dtype and device by their means over all processes."""
    if count() == 1:
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(flat)
    means = torch.split(flat.div_(count()), [tensor.numel() for tensor in tensors])
    for tensor, mean in zip(tensors, means, strict=True):
        tensor.copy_(mean.view(tensor.shape))


def any_process(flag: bool) -> bool:
    """Whether `flag` is true in any process: all get the same answer."""
    if count() == 1:
        return flag
    flags = torch.tensor(int(flag))  # on the CPU: the GPU need not be waited for
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
    """Everybody's value in the order of rank, in the first process; None in the others."""
    if count() == 1:
        return [value]
    values = [None] * count() if rank() == 0 else None
    dist.gather_object(value, values)
    return values


def is_peer_failure(error: RuntimeError) -> bool:
    """Whether an error says that another process is gone, with which this one wanted to talk."""
    return count() > 1 and (
        isinstance(error, dist.DistError) or bool(re.search(r"gloo|NCCL|[Cc]onnection", str(error)))
    )
