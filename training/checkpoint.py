"""A run's state on disk: written atomically, verified when read, exactly resumable.

A checkpoint is a plain dict of state dicts and JSON values that `torch.load(weights_only=True)` accepts.
"""

from __future__ import annotations

import os
import random
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from filelock import FileLock, Timeout

from config import Config, as_flag, from_dict, to_dict
from console import reason_of
from utils import UserError, atomic_write, printable


class Entry(NamedTuple):
    """What kind of entry of a checkpoint this is."""

    of_model: bool = False  # a state dict of the CycleGAN's attribute of this name
    per_process: bool = False  # differs between the processes of one run; those of the others are in "others"
    required: bool = True  # files of earlier versions lack those that are not


ENTRIES = {
    "gen_ab": Entry(of_model=True),
    "gen_ba": Entry(of_model=True),
    "ema_gen_ab": Entry(of_model=True),
    "ema_gen_ba": Entry(of_model=True),
    "disc_a": Entry(of_model=True),
    "disc_b": Entry(of_model=True),
    "opt_gen": Entry(of_model=True),
    "opt_disc": Entry(of_model=True),
    "pool_a": Entry(of_model=True, per_process=True),
    "pool_b": Entry(of_model=True, per_process=True),
    "random": Entry(per_process=True),  # the state of all global random generators
    "step": Entry(),  # finished steps
    "epoch": Entry(),  # finished epochs, for people who look into the file
    "config": Entry(),  # the configuration as JSON values
    "data": Entry(),  # fingerprints of the training images of "a" and "b"
    "template": Entry(required=False),  # where faces' landmarks lie in the training images; None without faces
    "best_score": Entry(required=False),  # of the evaluations so far; None without any
    "strength": Entry(required=False),  # the best strength of each direction, "ab" and "ba"; None where not measured
    "others": Entry(required=False),  # the per-process entries of all processes but the first
}
MODEL_ENTRIES = [name for name, entry in ENTRIES.items() if entry.of_model]
PER_PROCESS_ENTRIES = [name for name, entry in ENTRIES.items() if entry.per_process]

# Knobs that may change when a run is resumed, and knobs that may only grow.
MAY_DIFFER = {"preset", "runs_dir", "run_name", "num_workers", "log_every_steps", "sample_every_steps", "num_samples",
              "checkpoint_every_steps", "keep_checkpoints", "keep_every_epochs", "evaluate_every_epochs",
              "max_steps", "recompute", "init_from"}  # fmt: skip
MAY_GROW = {"num_epochs", "num_decay_epochs"}
_STEP = re.compile(r"step_(\d+)\.pt")


class CheckpointError(UserError):
    """A file that cannot be used as a checkpoint, and why."""


@contextmanager
def lock_run(run_dir: Path) -> Iterator[None]:
    """Create the run's folder and lock it; UserError that names the process which is already training in it."""
    run_dir.mkdir(parents=True, exist_ok=True)
    lock, holder = FileLock(run_dir / ".lock"), run_dir / ".lock.pid"
    try:
        lock.acquire(timeout=0)
    except Timeout:
        pid = holder.read_text() if holder.exists() else "unknown"
        raise UserError(
            f"process {pid} is already training in {printable(run_dir)}\n"
            "wait for it, stop it, or choose another folder with --run-name"
        ) from None
    try:
        holder.write_text(str(os.getpid()))
        yield
    finally:
        lock.release()


# --- Saving


def save_checkpoint(folder: Path, state: dict[str, Any]) -> Path:
    """Write `state` to folder/step_NNNNNNNN.pt; an interruption never leaves an incomplete file of that name."""
    path = folder / f"step_{state['step']:08d}.pt"
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        torch.save(state, file)
    return path


def save_best(run_dir: Path, state: dict[str, Any]) -> Path:
    """Write `state` to run_dir/best/step_NNNNNNNN.pt, then delete the one that was best before."""
    path = save_checkpoint(run_dir / "best", state)
    for older in list_checkpoints(path.parent):
        if older != path:
            older.unlink()
    return path


def prune_checkpoints(folder: Path, step: int, keep: int, keep_every_steps: int) -> None:
    """Delete checkpoints up to `step`, except the newest `keep` and those at multiples of `keep_every_steps` (0: none).

    Checkpoints beyond `step` stay: a resumed run found them damaged and will overwrite them.
    """
    kept = [path for path in list_checkpoints(folder) if checkpoint_step(path) <= step]
    for path in kept[:-keep]:
        if not keep_every_steps or checkpoint_step(path) % keep_every_steps:
            path.unlink()


def remove_leftovers(folder: Path) -> None:
    """Delete the temporary files of `atomic_write` in a run's folder during which the process was killed."""
    for path in folder.glob(".*.tmp"):
        if re.fullmatch(r"\..+\.\d+\.tmp", path.name):
            path.unlink()


# --- Loading


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoint files in a folder, by step."""
    files = (path for path in folder.glob("step_*.pt") if _STEP.fullmatch(path.name) and path.is_file())
    return sorted(files, key=checkpoint_step)


def checkpoint_step(path: Path) -> int:
    """The number of finished steps in a checkpoint's name."""
    match = _STEP.fullmatch(path.name)
    assert match, path
    return int(match[1])


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The verified content of a checkpoint file, on the CPU.

    Nothing in the file is executed: `weights_only` refuses any pickle that holds more than tensors and plain values.

    Raises:
        CheckpointError: the file is missing, damaged, or not a checkpoint of this program.
    """
    if not path.is_file():
        raise CheckpointError(f"there is no file {printable(path)}")
    try:
        with zipfile.ZipFile(path) as archive:  # torch.load does not verify the checksums
            damaged = archive.testzip()
        state = None if damaged else torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a hostile or broken file can make the unpickler raise anything
        reason = "it holds more than tensors and plain values" if "weights_only" in str(error) else reason_of(error)
        raise CheckpointError(f"{printable(path)} is not a checkpoint: {reason}") from error
    if damaged:
        raise CheckpointError(f"{printable(path)} is damaged: wrong checksum in {damaged}")
    required = {name for name, entry in ENTRIES.items() if entry.required}
    if not isinstance(state, dict) or not state.keys() >= required:
        raise CheckpointError(f"{printable(path)} is not a checkpoint of this program (try import_weights.py)")
    return state


def newest_checkpoint(folder: Path) -> tuple[dict[str, Any] | None, list[CheckpointError]]:
    """The newest whole checkpoint in a folder, or None, and what is wrong with the newer ones."""
    broken: list[CheckpointError] = []
    for path in reversed(list_checkpoints(folder)):
        try:
            return read_checkpoint(path), broken
        except CheckpointError as error:
            broken.append(error)
    return None, broken


def check_resumable(saved: dict[str, Any], config: Config, data: dict[str, str]) -> None:
    """UserError that names every difference, unless a run with these values may resume from the checkpoint `saved`."""
    old, new = to_dict(saved_config(saved)), to_dict(config)
    free = MAY_DIFFER | {name for name in MAY_GROW if new[name] >= old[name]}
    changes = [(name, old[name], new[name]) for name in old if name not in free and old[name] != new[name]]
    changes += [(f"images of {x}", saved["data"][x], data[x]) for x in data if saved["data"][x] != data[x]]
    if changes:
        listed = ", ".join(f"{name} {before!r} -> {now!r}" for name, before, now in changes)
        newer = " ".join(as_flag(name, before) for name, before, _ in changes if name not in saved["config"])
        remedy = f", and add what an earlier version had: {newer}" if newer else ""
        raise UserError(
            f"this run was started with other settings: {listed}\n"
            f"to resume it repeat the command that started it{remedy}\n"
            "to start afresh choose another --run-name"
        )


def saved_config(saved: dict[str, Any]) -> Config:
    """The configuration in a checkpoint; CheckpointError where this version of the program cannot use it."""
    try:
        return from_dict(saved["config"])
    except (ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"this version cannot use the checkpoint's configuration: {error}") from error


def random_state() -> dict[str, Any]:
    """The state of all global random generators, in types that `torch.load(weights_only=True)` accepts."""
    name, keys, *rest = np.random.get_state(legacy=True)
    uses_gpus = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]  # asking for the state would start CUDA
    return {
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if uses_gpus else [],
    }


def restore_random_state(state: dict[str, Any]) -> None:
    """Set all global generators back to `state`; states of GPUs that are no longer available are ignored."""
    name, keys, *rest = state["numpy"]
    random.setstate(state["python"])
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    for index, cuda_state in enumerate(state["cuda"][: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(cuda_state, index)
