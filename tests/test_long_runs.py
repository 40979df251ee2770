"""Long runs: thousands of steps leak nothing, and interruptions at any moment cost nothing."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import sys
import time
from contextlib import suppress
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import pytest
from conftest import Tiny, fresh_processes, train_here
from PIL import Image
from test_train import assert_identical, final_state

import train
from config import Config, from_dict
from training import checkpoint
from utils import command

pytestmark = pytest.mark.slow

# --- Memory


def in_use() -> tuple[int, int, int]:
    """This process's resident memory in bytes, and how many open files and threads it has."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE"), len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="only Linux says what a process uses")
def test_long_training_takes_no_more_memory_files_or_threads(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a warm-up, with logs, samples, checkpoints and evaluations: less than one image a step may stay."""
    warm_up, num_steps = 200, 400
    found: dict[int, tuple[int, int, int]] = {}
    original = train.train_step

    def step(*arguments: Any, **knobs: Any) -> Any:
        found[len(found) + 1] = in_use()
        return original(*arguments, **knobs)

    monkeypatch.setattr(train, "train_step", step)
    config = tiny(num_epochs=100, max_steps=num_steps, log_every_steps=5, sample_every_steps=20,
                  checkpoint_every_steps=20, evaluate_every_epochs=25)  # fmt: skip
    assert train_here(config) == 0
    (before, *others), (after, *others_after) = found[warm_up], found[num_steps]
    image = 3 * config.image_size**2 * 4  # bytes of float32
    assert after - before < (num_steps - warm_up) * image
    assert others_after == others


# --- Interruptions


def train_alone(config: Config, output: Path, starts: Event) -> None:
    """Train in a process group of its own, as a program does that a terminal has started, and exit with its status."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # until the program is ready, as Python itself is then
    os.setsid()
    multiprocessing.set_start_method(None, force=True)  # the program's own: this process has that of its parent
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the tests may have been told to ignore it
    file = output.open("w", encoding="utf-8", buffering=1)
    for number in (1, 2):
        os.dup2(file.fileno(), number)
    sys.stdout = sys.stderr = file
    starts.set()

    def start(argv: object) -> int:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        return train.start(config)

    os._exit(command(start)())


def train_and_interrupt(config: Config, moment: float, output: Path) -> int | None:
    """Train, and press Ctrl-C once after so many seconds; the exit status."""
    context = fresh_processes()
    starts = context.Event()
    process = context.Process(target=train_alone, args=(config, output, starts))
    process.start()
    assert starts.wait(120)
    process.join(moment)
    with suppress(ProcessLookupError):  # It has ended.
        os.killpg(process.pid or 0, signal.SIGINT)
    process.join(120)
    return process.exitcode


def assert_whole_files(folder: Path) -> None:
    """Every file of a run is whole, and none is left that an interrupted write has begun."""
    assert not list(folder.rglob("*.tmp"))
    for path in folder.glob("*/step_*.pt"):
        checkpoint.read_checkpoint(path)
    for path in folder.glob("samples/*.png"):
        with Image.open(path) as image:
            image.load()
    for path in folder.glob("config.json"):
        from_dict(json.loads(path.read_text()))
    for path in folder.glob("metrics.csv"):
        assert path.read_text().endswith("\n")


def test_a_storm_of_interruptions_ends_on_the_weights_of_an_undisturbed_run(tiny: Tiny, tmp_path: Path) -> None:
    """Each at another moment. Set STORM_INTERRUPTIONS to have as many, at moments that are new in each run."""
    asked = int(os.environ.get("STORM_INTERRUPTIONS", "0"))
    wanted, moments = asked or 10, random.Random() if asked else random.Random(0)
    knobs: dict[str, Any] = {"num_epochs": 1000, "max_steps": 40 * wanted, "num_workers": 1,
                             "checkpoint_every_steps": 2, "sample_every_steps": 3}  # fmt: skip
    start = time.perf_counter()
    assert train_here(tiny(run_name="whole", **knobs)) == 0
    share = (time.perf_counter() - start) / wanted
    output, config = tmp_path / "output", tiny(run_name="stormy", **knobs)
    num_interrupted, status = 0, None
    while status != 0:
        longest = 0.5 if num_interrupted % 3 == 0 else 2 * share  # also while it starts
        status = train_and_interrupt(config, moments.uniform(0, longest) if num_interrupted < wanted else 600, output)
        shown = output.read_text(encoding="utf-8") if output.exists() else ""
        assert status in (0, 128 + signal.SIGINT), shown
        assert "Traceback" not in shown
        assert_whole_files(Path(config.runs_dir, config.run_name))
        num_interrupted += status != 0
    assert num_interrupted >= 2  # It is done before the others where the first run was slowed by other programs.
    assert_identical(final_state(tiny(run_name="whole")), final_state(config))
