"""A training run: its position, its state beside the model, and how it starts, resumes and is saved."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from config import Config, to_dict
from console import memory_advice, reason_of
from training import checkpoint, distributed
from training.checkpoint import PER_PROCESS_ENTRIES
from training.model import CycleGAN
from training.torch_file import UnusableFileError
from utils import Template, UserError, atomic_write, pick_device, printable, seed_everything

R1_INTERVAL = 8  # The gradient penalty applies in each 8th step and counts for all of them (Karras et al. 2020).
STOP_INTERVAL = {"cuda": 10}  # Processes on GPUs ask one another whether to stop in each 10th step, others in each.
R1_SIDE = 64  # The knob r1_gamma is the penalty's weight for images of this side, px.


@dataclass
class Run:
    """A run in its folder.

    Attributes:
        folder: holds checkpoints, samples, metrics and the configuration.
        config: its configuration.
        data: fingerprints of the training images by domain, "a" and "b".
        steps_per_epoch: steps in one epoch.
        step: finished steps; the position in the epoch, the learning rate and the loss weights follow from it.
        template: where faces' landmarks lie in the training images; None for images of other things.
        best_score: of the evaluations so far; None before the first.
        strength: the best strength of translations by direction, "ab" and "ba"; None where nobody has measured it.
    """

    folder: Path
    config: Config
    data: dict[str, str]
    steps_per_epoch: int
    step: int = 0
    template: Template | None = None
    best_score: float | None = None
    strength: dict[str, float] | None = None

    # --- What follows from the step

    @property
    def num_steps(self) -> int:
        """Steps of the whole run."""
        num_steps = (self.config.num_epochs + self.config.num_decay_epochs) * self.steps_per_epoch
        return min(num_steps, self.config.max_steps or num_steps)

    @property
    def epoch(self) -> int:
        """Finished epochs."""
        return self.step // self.steps_per_epoch

    @property
    def learning_rate(self) -> float:
        """The next step's learning rate: constant, then falling linearly to zero (paper section 4).

        Departs from the paper's code: it falls with every step, not once an epoch, because epochs of many images are
        long.
        """
        decay_steps = self.config.num_decay_epochs * self.steps_per_epoch
        steps_left = (self.config.num_epochs + self.config.num_decay_epochs) * self.steps_per_epoch - self.step
        scale = distributed.count() if self.config.scale_learning_rate else 1
        return self.config.learning_rate * scale * min(1.0, steps_left / max(decay_steps, 1))

    @property
    def r1_gamma(self) -> float:
        """The weight of the gradient penalty in the next step: that of R1_INTERVAL steps in one of them, else 0.

        It grows with the number of pixels, because the squared norm of the gradient with respect to an image falls.
        """
        is_due = self.step % R1_INTERVAL == 0
        return R1_INTERVAL * self.config.r1_gamma * (self.config.image_size / R1_SIDE) ** 2 if is_due else 0.0

    @property
    def identity_share(self) -> float:
        """The fraction of the identity loss's weight that is left in the next step."""
        decay_steps = self.config.identity_epochs * self.steps_per_epoch
        return max(0.0, 1 - self.step / decay_steps) if decay_steps else 1.0

    def is_at_multiple_or_end(self, every_steps: int) -> bool:
        """Whether the steps just finished are a multiple of `every_steps` (0: never), or all of them."""
        return self.step == self.num_steps or self.is_at_multiple_of(every_steps)

    def is_at_multiple_of(self, every_steps: int) -> bool:
        """Whether the steps just finished are a multiple of `every_steps`; never where that is 0."""
        return every_steps > 0 and self.step % every_steps == 0

    # --- Starting and resuming

    def start_or_resume(self, model: CycleGAN) -> bool:
        """Load the newest whole checkpoint into the model, or start afresh where there is none. All processes call it.

        Returns:
            Whether the run resumes.

        Raises:
            UserError: the checkpoint belongs to other settings, images or processes, or none is whole.
        """
        folder = self.folder / "checkpoints"
        if distributed.rank() == 0:
            for place in (self.folder, folder, self.folder / "best", self.folder / "samples"):
                checkpoint.remove_leftovers(place)
        saved, broken = checkpoint.newest_checkpoint(folder)
        if distributed.rank() == 0:
            for error in broken:
                print(f"skipped: {error}")
        if saved is not None:
            self._resume(model, saved)
        elif broken:
            raise UserError(f"no whole checkpoint is left in {printable(folder)}; start afresh with another --run-name")
        elif distributed.rank() > 0:
            # All processes have the same weights; their random numbers differ from here on.
            seed_everything(self.config.seed + distributed.rank())
        if not distributed.all_equal(self.step):
            raise UserError(
                f"the processes disagree on where to resume, this one after step {self.step}:\n"
                f"{printable(self.folder)} must be on a disk that all of them see"
            )
        return saved is not None

    def _resume(self, model: CycleGAN, saved: dict[str, Any]) -> None:
        try:
            checkpoint.check_resumable(saved, self.config, self.data)
            saved = saved | _state_of_this_process(saved)
            self.step = checkpoint.checked_step(saved["step"])
            self.template = checkpoint.checked_template(saved.get("template"))
            self.strength = checkpoint.checked_strength(saved.get("strength")) or None
            self.best_score = checkpoint.checked_score(saved.get("best_score"))
            model.load_state_dict(saved)
            checkpoint.restore_random_state(saved["random"])
        except (UserError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # the entries can be anything that a file may hold
            is_known = isinstance(error, UnusableFileError)
            reason = str(error) if is_known else f"is not one of this program: {reason_of(error)}"
            raise UserError(
                f"the newest whole checkpoint in {printable(self.folder / 'checkpoints')} {reason}\n"
                "delete it to resume from the one before, or start afresh with another --run-name"
            ) from error

    # --- Saving

    def save(self, model: CycleGAN) -> None:
        """Write a checkpoint and delete those that are no longer needed: all processes call it, the first writes."""
        state = self.state_dict(model)
        states = distributed.gather_to_first({name: state[name] for name in PER_PROCESS_ENTRIES})
        if states is None:
            return
        folder = self.folder / "checkpoints"
        checkpoint.save_checkpoint(folder, state | {"others": states[1:]})
        keep_every_steps = self.config.keep_every_epochs * self.steps_per_epoch
        checkpoint.prune_checkpoints(folder, self.step, self.config.keep_checkpoints, keep_every_steps)

    def save_if_best(self, model: CycleGAN, score: float) -> None:
        """Keep the model in the folder best/ if no earlier score was as high."""
        if self.best_score is None or score > self.best_score:
            self.best_score = score
            checkpoint.save_best(self.folder, self.state_dict(model))

    def save_config(self) -> None:
        """Write the configuration to config.json."""
        with atomic_write(self.folder / "config.json") as file:
            file.write_text(json.dumps(to_dict(self.config), indent=2) + "\n", encoding="utf-8")

    def state_dict(self, model: CycleGAN) -> dict[str, Any]:
        """A checkpoint's entries, without those of other processes."""
        own = {
            "step": self.step,
            "epoch": self.epoch,
            "random": checkpoint.random_state(),
            "config": to_dict(self.config),
            "data": self.data,
            "template": self.template,
            "best_score": self.best_score,
            "strength": self.strength,
        }
        return own | model.state_dict()


def _state_of_this_process(saved: dict[str, Any]) -> dict[str, Any]:
    """The entries of a checkpoint that belong to this process; UserError where the number of processes has changed."""
    states = [{name: saved[name] for name in PER_PROCESS_ENTRIES}, *saved.get("others", [])]
    if len(states) != distributed.count():
        raise UserError(
            f"this run was trained by {len(states)} processes, and now there are {distributed.count()}:\n"
            "each has images and random numbers of its own\n"
            f"resume with torchrun --nproc-per-node={len(states)}, or start afresh with --run-name"
        )
    return dict(states[distributed.rank()])


# --- Around a run


def open_device(config: Config) -> torch.device:
    """The device to train on, made ready for steps that are all of one size."""
    if distributed.count() > 1 and re.fullmatch(r"cuda:\d+", config.device):
        raise UserError(f"--device {config.device} is one GPU for {distributed.count()} processes: use --device cuda")
    device = pick_device(config.device, distributed.gpu_number())
    if device.type == "cuda":
        torch.cuda.set_device(device)  # pinned memory and the check for bfloat16 use the current device
        torch.backends.cudnn.benchmark = True  # find the fastest convolutions once
        torch.set_float32_matmul_precision("high")  # TF32, which convolutions use anyway
    return device


@contextmanager
def stop_requests(second_ends: bool = True) -> Iterator[list[int]]:
    """A list that SIGINT and SIGTERM append their number to, instead of ending the process.

    A second signal ends the process once half-written files are removed, and a third one at once, unless `second_ends`
    is false: a supervisor such as torchrun repeats signals, and kills processes that do not stop.
    """
    requests: list[int] = []

    def on_signal(number: int, frame: FrameType | None) -> None:
        if requests and second_ends:
            signal.signal(number, signal.SIG_DFL)
            raise SystemExit(128 + number)
        requests.append(number)

    previous = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield requests
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def asked_to_stop(requests: Sequence[int], *, step: int, images: Tensor, device: torch.device) -> bool:
    """Whether to stop before a step, because this or another process was asked to. All processes get the same answer.

    The question delays GPUs' short steps, so several processes answer no without asking in most of them. Steps on a CPU
    can take seconds, and torchrun kills processes that have not stopped after 30 seconds, so there all are asked.

    Args:
        requests: the signals that this process has received.
        step: how many steps are finished, so that a resumed run asks at the same steps.
        images: the next batch; it is empty where this process was asked to stop while none came.
        device: where the processes train.

    Raises:
        UserError: this process has no images for a step that the others have begun.
    """
    if distributed.count() == 1:
        return bool(requests)
    if step % STOP_INTERVAL.get(device.type, 1) == 0:
        return distributed.any_process(bool(requests))
    if not len(images):
        raise UserError(
            "asked to stop while no images came for the next step; to resume from the newest checkpoint, run the same\n"
            "command again; if this repeats, check the disk of --data-dir, or lower --num-workers"
        )
    return False


@contextmanager
def explained_failures() -> Iterator[None]:
    """UserError in place of the failures that a user can do something about: memory, workers, other processes."""
    try:
        with memory_advice("try --recompute, or lower --batch-size or --image-size"):
            yield
    except RuntimeError as error:
        if distributed.is_peer_failure(error):
            raise UserError(
                f"another process has ended or cannot be reached: {str(error).splitlines()[0]}\n"
                "the newest checkpoint is whole: fix that and run the same command again"
            ) from error
        if "can't allocate memory" in str(error):
            raise UserError("the memory is full: try --recompute, or lower --batch-size or --image-size") from error
        if "DataLoader worker" in str(error):
            raise UserError(f"{error}\nis the memory full? lower --num-workers or --batch-size") from error
        raise
