"""A run's logs are complete and consistent, also after an interruption."""

from __future__ import annotations

import csv
import errno
import itertools
import threading
from pathlib import Path

import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer.record_writer import RecordWriter

from config import Config
from training.run import Run
from training.run_log import RunLog

NAMES = ["loss/gan_ab", "loss/gan_ba", "loss/cycle_a", "loss/cycle_b", "loss/disc_a", "loss/disc_b"]


def log_steps(run_dir: Path, first: int, last: int, every: int = 2) -> None:
    """Log steps `first` to `last` of a run, each with its number as the value of every loss."""
    run = Run(run_dir, Config(batch_size=2, max_steps=100), {}, steps_per_epoch=10, step=first - 1)
    with RunLog(run) as log:
        for step in range(first, last + 1):
            log.collect({name: torch.tensor(float(step)) for name in NAMES})
            if step % every == 0:
                log.write(step, learning_rate=0.5)


def rows(run_dir: Path) -> list[dict[str, str]]:
    with open(run_dir / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_a_row_holds_the_means_since_the_previous_row(tmp_path: Path) -> None:
    log_steps(tmp_path, 1, 6, every=3)
    assert [(row["step"], row["loss/gan_ab"]) for row in rows(tmp_path)] == [("3", "2.0"), ("6", "5.0")]
    assert rows(tmp_path)[0]["learning_rate"] == "0.5"


@pytest.mark.parametrize("num_processes", [1, 4])
def test_the_speed_counts_the_images_of_all_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_processes: int
) -> None:
    seconds = itertools.count()
    # The clock advances by one second at each call.
    monkeypatch.setattr("training.run_log.time.perf_counter", lambda: next(seconds))
    monkeypatch.setenv("WORLD_SIZE", str(num_processes))
    log_steps(tmp_path, 1, 6, every=3)  # a batch holds two images of each domain
    assert [float(row["images_per_second"]) for row in rows(tmp_path)] == [3 * 2 * 2 * num_processes] * 2


def test_tensorboard_and_metrics_csv_hold_the_same_values(tmp_path: Path) -> None:
    log_steps(tmp_path, 1, 6)
    events = EventAccumulator(str(tmp_path)).Reload()
    assert {*NAMES, "learning_rate", "images_per_second"} == set(events.Tags()["scalars"])
    for name in NAMES:
        assert [(event.step, event.value) for event in events.Scalars(name)] == [
            (int(row["step"]), float(row[name])) for row in rows(tmp_path)
        ]
    assert "config/text_summary" in events.Tags()["tensors"]


def test_a_resumed_run_logs_no_step_twice(tmp_path: Path) -> None:
    log_steps(tmp_path, 1, 8)
    with open(tmp_path / "metrics.csv", "a") as file:
        file.write("\nnote: from here on with more light\n10,0.1")  # a user's note, and a row that a kill cut short
    log_steps(tmp_path, 6, 10)  # resumes from a checkpoint of step 5
    assert [row["step"] for row in rows(tmp_path)] == ["2", "4", "6", "8", "10"]
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [event.step for event in events.Scalars("loss/gan_ab")] == [2, 4, 6, 8, 10]


def test_a_file_that_a_spreadsheet_has_saved_is_kept_and_the_run_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "metrics.csv").write_text("step;loss\n50;1,5\n")
    log_steps(tmp_path, 51, 52)
    assert f"it is kept as {tmp_path / 'metrics_kept_1.csv'}\n" in capsys.readouterr().out
    assert [row["step"] for row in rows(tmp_path)] == ["52"]


@pytest.mark.parametrize("room", [0, 12])
def test_a_full_disk_ends_tensorboards_file_with_one_line_and_not_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], room: int
) -> None:
    """TensorBoard's own thread meets the error, and would print a traceback."""
    records = itertools.count()

    def fail(*_: object) -> None:
        if next(records) >= room:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(RecordWriter, "write", fail)
    hook = threading.excepthook
    log_steps(tmp_path, 1, 6)
    printed = capsys.readouterr()
    assert printed.out.count("TensorBoard's file cannot be written ([Errno 28] No space left on device)") == 1
    assert printed.err == ""
    assert len(rows(tmp_path)) == 3
    assert threading.excepthook is hook


def test_a_sample_is_a_file_and_an_image_in_tensorboard(tmp_path: Path) -> None:
    with RunLog(Run(tmp_path, Config(max_steps=10), {}, steps_per_epoch=10)) as log:
        path = log.sample(7, [torch.zeros(2, 3, 32, 32)] * 6)
    assert path == tmp_path / "samples" / "step_00000007.png"
    with Image.open(path) as image:
        assert image.size == (6 * 34 + 2, 2 * 34 + 2)  # two rows of six, with borders of 2 px
    assert EventAccumulator(str(tmp_path)).Reload().Tags()["images"] == ["samples"]


def test_without_a_terminal_progress_is_printed_in_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log_steps(tmp_path, 12, 12)
    printed = capsys.readouterr()
    assert printed.out.startswith("step 12/100  epoch 2  gan 12.000  cycle 12.000  disc 12.000  ")
    assert printed.out.rstrip().endswith("left")
    assert printed.err == ""
