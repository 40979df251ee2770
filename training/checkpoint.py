"""A run's state on disk: written atomically, verified when read, exactly resumable.

A checkpoint is a plain dict of state dicts and JSON values that `torch.load(weights_only=True)` accepts.
"""

from __future__ import annotations

import os
import random
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any, NamedTuple

import numpy as np
import torch
from filelock import FileLock, Timeout

from config import NO_LIMIT, Config, OnResume, as_flag, from_dict, knobs_that, to_dict
from generator_model import MAX_STRENGTH
from training.torch_file import UnusableFileError, read_torch_file
from utils import Template, UserError, atomic_write, printable


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

MAX_POSITION = 10  # Landmarks of a template are closer to its corner than this many sides of the image.
MAX_SCORE = 2.0  # Scores lie between -1 and 1, apart from rounding.
MT_WORDS = 624  # The state of NumPy's global generator has this many words.
_STEP = re.compile(r"step_(\d+)\.pt")


class CheckpointError(UserError):
    """A file that cannot be used as a checkpoint, and why."""


@contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """CheckpointError that starts with the file's name, in place of an UnusableFileError inside the block."""
    try:
        yield
    except UnusableFileError as error:
        raise CheckpointError(f"{printable(path)} {error}") from error


@contextmanager
def lock_run(run_dir: Path) -> Iterator[None]:
    """Create the run's folder and lock it.

    Raises:
        UserError: another process, which the message names, trains in it already; or nothing can be written there.
    """
    lock, holder = FileLock(run_dir / ".lock"), run_dir / ".lock.pid"
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
        for folder in (run_dir / "checkpoints", run_dir / "samples"):
            folder.mkdir(exist_ok=True)
            NamedTemporaryFile(dir=folder, suffix=".tmp").close()  # An error at the first save would cost the steps.
    except Timeout:
        pid = holder.read_text() if holder.exists() else "unknown"
        raise UserError(
            f"process {pid} is already training in {printable(run_dir)}\n"
            "wait for it, stop it, or choose another folder with --run-name"
        ) from None
    except OSError as error:
        lock.release()
        raise UserError(
            f"cannot write in the run's folder {printable(run_dir)}: {error}\n"
            "check what is there and its permissions, or copy the run to another place, and name that with --runs-dir"
        ) from error
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
    """The verified content of a checkpoint file, on the CPU; nothing in the file is executed.

    Raises:
        CheckpointError: the file is missing, damaged, or not a checkpoint of this program.
    """
    if not path.exists():
        raise CheckpointError(f"there is no file {printable(path)}")
    with naming(path):
        state = read_torch_file(path)
        required = {name for name, entry in ENTRIES.items() if entry.required}
        if not isinstance(state, dict) or not state.keys() >= required:
            raise UnusableFileError("is not a checkpoint of this program (try import_weights.py)")
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
    free = knobs_that(OnResume.MAY_DIFFER) | {name for name in knobs_that(OnResume.MAY_GROW) if new[name] >= old[name]}
    changes = [(name, old[name], new[name]) for name in old if name not in free and old[name] != new[name]]
    images = [
        (f"images of {x}", saved["data"][x], data[x]) for x in data if not is_same_data(saved["data"][x], data[x])
    ]
    if not changes and not images:
        return
    listed = ", ".join(f"{name} {before!r} -> {now!r}" for name, before, now in changes + images)
    newer = " ".join(as_flag(name, before) for name, before, _ in changes if name not in saved["config"])
    remedy = f", and add what an earlier version had: {newer}" if newer else ""
    files = "\nput back the images with which it started, or train on with the new ones from its networks: --init-from"
    raise UserError(
        f"this run was started with other settings: {listed}\n"
        f"to resume it repeat the command that started it{remedy}\n"
        f"to start afresh choose another --run-name{files if images else ''}"
    )


def is_same_data(saved: str, now: str) -> bool:
    """Whether two fingerprints are of the same images. An earlier version's are the start of today's."""
    return saved == now or now.startswith(f"{saved}, ")


def saved_config(saved: dict[str, Any]) -> Config:
    """The configuration in a checkpoint; CheckpointError where this version of the program cannot use it."""
    values = saved["config"]
    if not isinstance(values, dict):
        raise CheckpointError(f"its configuration is not a table of knobs and values: found {type(values).__name__}")
    try:
        return from_dict(values)
    except Exception as error:  # the values can be anything that a pickle may hold
        raise CheckpointError(f"this version cannot use the checkpoint's configuration: {error}") from error


# --- Checking what was read: each raises UnusableFileError


def checked_step(step: Any) -> int:
    """The number of finished steps."""
    if type(step) is not int or not 0 <= step <= NO_LIMIT:
        raise UnusableFileError(f"has an invalid number of steps: {str(step)[:80]}")
    return step


def checked_score(score: Any) -> float | None:
    """The best score so far, or None."""
    if score is not None and not (_is_number(score) and abs(score) <= MAX_SCORE):  # False for NaN, too
        raise UnusableFileError(f"has an invalid best_score: {str(score)[:80]}")
    return score if score is None else float(score)


def checked_template(template: Any) -> Template | None:
    """A template, five different positions in an image, or None."""
    if template is None:
        return None
    try:
        landmarks = tuple((float(x), float(y)) for x, y in template)
    except Exception:  # the template can be anything
        landmarks = ()
    in_reach = all(abs(x) < MAX_POSITION and abs(y) < MAX_POSITION for x, y in landmarks)  # False for NaN, too
    if len(landmarks) != 5 or len(set(landmarks)) != 5 or not in_reach:
        raise UnusableFileError(f"has an invalid face template: {str(template)[:200]}")
    return landmarks


def checked_strength(strength: Any) -> dict[str, float]:
    """Strengths by direction, "ab" and "ba", between 0 and MAX_STRENGTH; none where nobody has measured them."""
    if strength is None:
        return {}
    values = dict(strength) if isinstance(strength, Mapping) else {"": strength}
    for direction, value in values.items():
        if direction not in ("ab", "ba") or not _is_number(value) or not 0 <= value <= MAX_STRENGTH:
            raise UnusableFileError(
                f"has an invalid strength: the strength must be a number between 0 and {MAX_STRENGTH:g} for each of "
                f"ab and ba, got {str(strength)[:200]}"
            )
    return {direction: float(values[direction]) for direction in ("ab", "ba") if direction in values}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


# --- Random generators


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
    name, keys, position, *rest = state["numpy"]
    if not 0 <= position <= MT_WORDS:  # NumPy does not check it
        raise UnusableFileError(f"has an invalid state of NumPy's generator: position {position}")
    random.setstate(state["python"])
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, *rest))
    torch.set_rng_state(state["torch"])
    for index, cuda_state in enumerate(state["cuda"][: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(cuda_state, index)
