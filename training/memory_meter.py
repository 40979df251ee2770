"""Measure the memory that a training step needs, beyond what stays allocated between steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks


def peak_memory(step: Callable[[], object], device: torch.device) -> float:
    """Run a step, and return its peak memory in bytes.

    On a GPU this is all memory that the step allocates. On a CPU it is what autograd saves for the backward pass.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        return float(torch.cuda.max_memory_allocated(device) - before)
    with saved_activations() as meter:
        step()
    return float(meter.peak)


@dataclass
class Meter:
    """Bytes of the tensors that autograd saves for the backward pass.

    Attributes:
        current: the bytes that are saved now.
        peak: the most bytes that were saved at one time.
    """

    current: int = 0
    peak: int = 0


@contextmanager
def saved_activations() -> Iterator[Meter]:
    """Measure what autograd saves inside the block, except weights: the memory that grows with the images."""
    meter = Meter()
    num_owners: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor | _SavedTensor:
        return tensor if isinstance(tensor, nn.Parameter) else _SavedTensor(tensor, meter, num_owners)

    def unpack(saved: Tensor | _SavedTensor) -> Tensor:
        return saved.tensor if isinstance(saved, _SavedTensor) else saved

    with saved_tensors_hooks(pack, unpack):
        yield meter


class _SavedTensor:
    """A tensor that autograd saves; the meter counts its storage until its last owner is freed.

    Args:
        tensor: the tensor.
        meter: the meter to update.
        num_owners: by the address of each storage, how many saved tensors share it.
    """

    def __init__(self, tensor: Tensor, meter: Meter, num_owners: dict[int, int]) -> None:
        self.tensor = tensor
        self.meter = meter
        self.num_owners = num_owners
        storage = tensor.untyped_storage()
        self.address = storage.data_ptr()
        self.num_bytes = storage.nbytes()
        num_owners[self.address] = num_owners.get(self.address, 0) + 1
        if num_owners[self.address] == 1:
            meter.current += self.num_bytes
            meter.peak = max(meter.peak, meter.current)

    def __del__(self) -> None:
        self.num_owners[self.address] -= 1
        if self.num_owners[self.address] == 0:
            self.meter.current -= self.num_bytes
