"""How long OpenMP's threads wait for one another before they sleep, and what Ctrl-C does while a program starts."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import startup

import pytest
from conftest import ROOT
from test_architecture import ENTRY_POINTS

PROGRAMS = sorted(set(ENTRY_POINTS) - {"hubconf"})
STEPS = """
import startup, statistics, time
import torch
from config import Config
from training.model import CycleGAN
from train import train_step
config = Config(image_size=64, base_channels=16, num_residuals=2, amp="off")
model = CycleGAN(config, torch.device("cpu"))
reals = torch.rand(2, 1, 3, 64, 64) * 2 - 1
times = []
for _ in range(7):
    start = time.perf_counter()
    train_step(model, *reals, config=config)
    times.append(time.perf_counter() - start)
print(statistics.median(times[2:]))
"""


@pytest.fixture
def no_choice(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment in which the user has set nothing."""
    for name in startup.USERS_CHOICES:
        monkeypatch.setenv(name, "")  # so that the test ends with what was there before
        monkeypatch.delenv(name)
    return monkeypatch


def test_threads_go_to_sleep_soon(no_choice: pytest.MonkeyPatch) -> None:
    importlib.reload(startup)
    assert os.environ["GOMP_SPINCOUNT"] == str(startup.SPIN_COUNT)


@pytest.mark.parametrize("name", startup.USERS_CHOICES)
def test_what_the_user_has_set_stays(no_choice: pytest.MonkeyPatch, name: str) -> None:
    no_choice.setenv(name, "7")
    importlib.reload(startup)
    assert {key: os.environ.get(key) for key in startup.USERS_CHOICES} == dict.fromkeys(startup.USERS_CHOICES) | {
        name: "7"
    }


@pytest.mark.parametrize("program", PROGRAMS)
def test_ctrl_c_ends_a_program_without_a_traceback_while_it_starts(tmp_path: Path, program: str) -> None:
    (tmp_path / "torch.py").write_text("import signal\nsignal.raise_signal(signal.SIGINT)\nsignal.pause()\n")
    flags = ["--preset", "demo"] if program == "train" else []
    done = subprocess.run(
        [sys.executable, f"{program}.py", *flags],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        cwd=ROOT,
        capture_output=True,
        timeout=60,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell may have told us to ignore it
    )
    assert (done.returncode, done.stderr) == (-signal.SIGINT, b"")


def test_ctrl_c_is_left_to_other_programs_that_import_ours(tmp_path: Path) -> None:
    assert startup.is_ours(str(ROOT / "train.py"))
    assert not startup.is_ours(str(tmp_path / "notebook.py"))
    assert not startup.is_ours(None)


def seconds_per_step(**environment: str) -> float:
    """Median time of a training step in a process of its own."""
    inherited = {key: value for key, value in os.environ.items() if key not in startup.USERS_CHOICES}
    output = subprocess.run(
        [sys.executable, "-c", STEPS], env=inherited | environment, cwd=ROOT, check=True, capture_output=True
    )
    return float(output.stdout)


@pytest.mark.slow
def test_training_does_not_collapse_beside_two_busy_programs() -> None:
    """The threads that PyTorch chooses hardly take longer than one, since no step waits for a thread that waits."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count() or 1)]
    try:
        one_thread, all_threads = seconds_per_step(OMP_NUM_THREADS="1"), seconds_per_step()
    finally:
        for process in busy:
            process.kill()
            process.wait()
    assert all_threads < 4 * one_thread
