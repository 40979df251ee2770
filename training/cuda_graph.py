"""The training step as a CUDA graph: its kernels are recorded once, and from then on the GPU repeats them by itself.

A step consists of thousands of small kernels. Where the host takes longer to launch them than the GPU takes to run
them, a graph saves that time. It repeats the same kernels at the same addresses. Images, random numbers and learning
rates are therefore copied into tensors that stay, and each kind of step, with the gradient penalty or without, has a
graph of its own. All other steps run as they are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from config import Config
from console import reason_of
from training import distributed
from training.draws import Tape, overwrite
from training.model import CycleGAN

Losses = dict[str, Tensor]
Step = Callable[..., Losses]  # It takes a batch of each domain, and by keyword `identity_share` and `r1_gamma`.
WARM_UP = 3  # Each kind of step runs so often first: cuDNN searches, networks compile, Adam makes its moments.


def wants_graph(config: Config) -> bool:
    """Whether the configuration asks for a graph: "auto" does not for compiled networks, which no GPU has tried yet."""
    return config.cuda_graph == "on" or (config.cuda_graph == "auto" and not config.compile)


def fastest_step(step: Step, model: CycleGAN, config: Config, *, say: Callable[[str], object]) -> Step:
    """The step as a CUDA graph where the configuration asks for it and it is possible, else the step itself.

    Args:
        step: a training step of the model; it must draw its random numbers with `draws.drawn` and not read from the
            GPU.
        model: what the step changes.
        config: what `wants_graph` reads. Where a graph is impossible, "auto" does without a word.
        say: prints a line, such as the reason why there is no graph.
    """
    if not wants_graph(config):
        return step
    reason = "the step runs on a CPU or on another GPU than NVIDIA's" if model.device.type != "cuda" else ""
    if distributed.count() > 1:
        reason = "several processes train together"
    if reason and config.cuda_graph == "on":
        say(f"without a CUDA graph: {reason}")
    return step if reason else GraphedStep(step, model, config.batch_size, say=say)


class StaticStep:
    """One kind of step, whose images and random numbers lie in tensors that stay. The first run is on `images`."""

    def __init__(self, step: Callable[[Tensor, Tensor], Losses], images: tuple[Tensor, Tensor], device: torch.device):
        self.step = step
        self.images = tuple(batch.to(device, copy=True) for batch in images)
        self.tape = Tape(device)

    def fill(self, images: tuple[Tensor, Tensor]) -> None:
        """Put new images and random numbers in place of the last ones, once before every run but the first."""
        for buffer, batch in zip(self.images, images, strict=True):
            overwrite(buffer, batch)
        self.tape.refill()

    def run(self) -> Losses:
        """Take a step on what the tensors hold."""
        with self.tape.run():
            return self.step(*self.images)


class CapturedStep:
    """A static step as a CUDA graph; RuntimeError where it cannot be captured. Capturing it does not take a step.

    Args:
        static: a step that has run before.
        optimizers: those that it uses, fused ones.
        pool: the memory that all graphs of one model share, because they run one after another.
    """

    def __init__(self, static: StaticStep, optimizers: list[torch.optim.Adam], pool: Any) -> None:
        self.groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        self.rates = [torch.zeros((), device=static.tape.device) for _ in self.groups]
        self.graph = torch.cuda.CUDAGraph()
        # Other threads, such as the one that pins batches, go on meanwhile: only this one's calls are recorded.
        recording = torch.cuda.graph(self.graph, pool=pool, capture_error_mode="thread_local")
        # The outer stream context is for errors, after which torch.cuda.graph stays in its own stream.
        with torch.cuda.stream(torch.cuda.current_stream()), self._capturable_optimizers(), recording:
            losses = static.run()
            self.names, self.values = list(losses), torch.stack(list(losses.values()))

    @contextmanager
    def _capturable_optimizers(self) -> Iterator[None]:
        """Let the optimisers read their learning rates from tensors, and be captured."""
        settings = [{"lr": group["lr"], "capturable": group["capturable"]} for group in self.groups]
        for group, rate in zip(self.groups, self.rates, strict=True):
            group.update(lr=rate, capturable=True)
        try:
            yield
        finally:
            for group, setting in zip(self.groups, settings, strict=True):
                group.update(setting)

    def replay(self) -> Losses:
        """Take a step, with the optimisers' present learning rates."""
        for group, rate in zip(self.groups, self.rates, strict=True):
            rate.fill_(group["lr"])
        self.graph.replay()
        return dict(zip(self.names, self.values.clone().unbind(), strict=True))  # the next step overwrites the values


class GraphedStep:
    """A training step that runs as a CUDA graph once it has been captured; see `fastest_step`.

    Args:
        step: the step.
        model: what it changes.
        batch_size: smaller batches are left to the step itself.
        say: prints a line.
    """

    def __init__(self, step: Step, model: CycleGAN, batch_size: int, *, say: Callable[[str], object]) -> None:
        self.step, self.model, self.batch_size, self.say = step, model, batch_size, say
        self.num_steps = Counter[tuple[float, float]]()  # by kind: identity share and weight of the gradient penalty
        self.static: dict[tuple[float, float], StaticStep] = {}
        self.captured: dict[tuple[float, float], CapturedStep] = {}
        self.pool = torch.cuda.graph_pool_handle()
        self.said = set[str]()
        self.has_failed = False

    def __call__(self, real_a: Tensor, real_b: Tensor, *, identity_share: float, r1_gamma: float) -> Losses:
        kind, images = (identity_share, r1_gamma), (real_a, real_b)
        step = partial(self.step, identity_share=identity_share, r1_gamma=r1_gamma)
        if self.has_failed or not self._is_usual(len(real_a), identity_share):
            return step(*images)
        self.num_steps[kind] += 1
        if self.num_steps[kind] < WARM_UP:
            return step(*images)
        if kind not in self.static:
            self.static[kind] = StaticStep(step, images, self.model.device)
            return in_side_stream(self.static[kind].run)
        static = self.static[kind]
        static.fill(images)
        if kind not in self.captured and not self._capture(kind):
            return static.run()
        return self.captured[kind].replay()

    def _is_usual(self, num_images: int, identity_share: float) -> bool:
        """Whether steps of this kind are frequent enough for a graph; if not, say so once."""
        reason = "the last batch of an epoch is smaller" if num_images != self.batch_size else ""
        if 0 < identity_share < 1:
            reason = "the weight of the identity loss changes"
        if reason:
            self._say_once(f"some steps run without the CUDA graph: {reason}")
        return not reason

    def _capture(self, kind: tuple[float, float]) -> bool:
        """Capture a kind of step; whether that succeeded. After a failure there are no graphs any more."""
        try:
            self.captured[kind] = CapturedStep(self.static[kind], [self.model.opt_gen, self.model.opt_disc], self.pool)
        except RuntimeError as error:  # torch's and CUDA's, a full memory among them
            first = error.__context__ if isinstance(error.__context__, RuntimeError) else error  # its end fails, too
            self.say(f"training goes on without a CUDA graph, which failed: {reason_of(first)}")
            self.has_failed = True
            self.static.clear()
            self.captured.clear()
        return not self.has_failed

    def _say_once(self, text: str) -> None:
        if text not in self.said:
            self.said.add(text)
            self.say(text)


def in_side_stream(step: Callable[[], Losses]) -> Losses:
    """Run a step in a stream of its own, as CUDA requires before a capture, and let later work wait for it."""
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        losses = step()
    torch.cuda.current_stream().wait_stream(side)
    return losses
