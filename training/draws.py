"""The random numbers of a training step: drawn where they are used, or before the step where that is a CUDA graph.

A CUDA graph repeats what was recorded, and would repeat its random numbers too. What is random in a step therefore is a
tensor that `drawn` gives. A `Tape` remembers in one run of the step which tensors these are; from then on it draws all
of them before the step, in the same order and so from the same random numbers, into the same memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ClassVar

import torch
from torch import Tensor

Draw = Callable[[], Tensor]


def drawn(draw: Draw) -> Tensor:
    """What `draw` returns: a tensor of random numbers, which must not depend on other tensors.

    It may be on the CPU, while the tensor that this function returns is on the device of the running tape.
    """
    return draw() if Tape.running is None else Tape.running.next(draw)


def overwrite(buffer: Tensor, values: Tensor) -> None:
    """Copy values into a buffer of the same shape. Where that is on a GPU, the program does not wait for the copy."""
    if buffer.is_cuda and not values.is_cuda:
        values = values.pin_memory()
    buffer.copy_(values, non_blocking=True)


class Tape:
    """The random tensors of one step, in the order of their use, at addresses that stay."""

    running: ClassVar[Tape | None] = None  # the tape that `drawn` reads from

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.draws: list[Draw] = []
        self.tensors: list[Tensor] = []
        self.is_recorded = False
        self.position = 0  # the place of the next tensor

    @contextmanager
    def run(self) -> Iterator[None]:
        """Record what is drawn in the first block, and give the same tensors in the same order in all later ones.

        RuntimeError where a later block draws more or fewer tensors than the first.
        """
        self.position = 0
        Tape.running = self
        try:
            yield
        finally:
            Tape.running = None
        if self.position != len(self.tensors):
            raise RuntimeError(f"the step drew {self.position} random tensors, and {len(self.tensors)} when recorded")
        self.is_recorded = True

    def next(self, draw: Draw) -> Tensor:
        """The block's next tensor."""
        if not self.is_recorded:
            self.draws.append(draw)
            self.tensors.append(draw().to(self.device, copy=True))
        self.position += 1
        if self.position > len(self.tensors):
            raise RuntimeError(f"the step drew more random tensors than the {len(self.tensors)} that were recorded")
        return self.tensors[self.position - 1]

    def refill(self) -> None:
        """Draw the next block's numbers into the tensors."""
        for draw, tensor in zip(self.draws, self.tensors, strict=True):
            overwrite(tensor, draw())
