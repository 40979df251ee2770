"""A run's logs are complete and consistent, also after an interruption."""

from __future__ import annotations

import csv
import errno
import itertools
import re
import shutil
import subprocess
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Tiny, make_image, train_here
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.summary.writer.record_writer import RecordWriter

from config import Config
from training import health_page, source_commit
from training.run import Run
from training.run_log import RunLog
from training.sample_sheet import LINE_HEIGHT, heading_height, names_to_draw, titled_grid
from utils import image_to_tensor, tensor_to_image

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


def test_a_sample_is_a_file_of_both_directions_and_a_titled_picture_of_each_in_tensorboard(tmp_path: Path) -> None:
    real = torch.linspace(-1, 1, 2 * 3 * 32 * 32).reshape(2, 3, 32, 32)
    with RunLog(Run(tmp_path, Config(max_steps=10), {}, steps_per_epoch=10)) as log:
        path = log.sample(7, [real, *[torch.zeros(2, 3, 32, 32)] * 5])
    assert path == tmp_path / "samples" / "step_00000007.png"
    heading, cell = heading_height(), 4 * 34  # images of 32 px are enlarged four times, with their borders of 2 px
    with Image.open(path) as image:
        assert image.size == (6 * cell + 8, heading + 2 * cell + 8)
        pixels = np.asarray(image)
    first = np.asarray(tensor_to_image(real[0])).repeat(4, axis=0).repeat(4, axis=1)
    assert np.array_equal(pixels[heading + 8 : heading + 8 + 128, 8 : 8 + 128], first)
    for column in range(6):
        assert pixels[LINE_HEIGHT:heading, column * cell : (column + 1) * cell].min() < 100  # a title in black
    events = EventAccumulator(str(tmp_path)).Reload()
    assert events.Tags()["images"] == ["samples/ab", "samples/ba"]
    assert events.Images("samples/ab")[0].width == 3 * cell + 8


@pytest.mark.parametrize(
    ("domains", "drawn"), [(("Männer", "café"), ("Männer", "café")), (("cat", "собака"), ("a", "b"))]
)
def test_titles_use_the_domains_letters_where_the_font_lacks_their_names(
    domains: tuple[str, str], drawn: tuple[str, str]
) -> None:
    assert names_to_draw(domains) == drawn


def test_a_title_that_is_too_long_stays_in_its_column() -> None:
    columns = [torch.ones(1, 3, 128, 128)] * 2
    sheet = np.asarray(titled_grid(columns, ["a very long name of a domain indeed", ""], "a caption"))
    titles = sheet[LINE_HEIGHT : heading_height()]
    assert titles[:, :130].min() < 100
    assert titles[:, 130:].min() == 255


def health_texts(run_dir: Path) -> dict[int, str]:
    """What the page "Is it healthy?" says, by step."""
    tensors = EventAccumulator(str(run_dir)).Reload().Tensors("Is_it_healthy/text_summary")
    assert len({event.step for event in tensors}) == len(tensors)
    return {event.step: event.tensor_proto.string_val[0].decode() for event in tensors}


def test_the_page_says_what_is_healthy_what_was_wrong_and_what_runs(tmp_path: Path) -> None:
    images = make_stripes()
    with RunLog(Run(tmp_path, Config(max_steps=10), {}, steps_per_epoch=10), device="cuda:0 (a GPU)") as log:
        log.sample(0, [images[0]] * 6)
        log.sample(8, [*images, images[0], *images, images[0]])
    texts = health_texts(tmp_path)
    assert set(texts) == {0, 8}
    assert "## Warnings up to step 0\n\nnone\n" in texts[0]
    assert "- warning: translations european to asian have stripes" in texts[8]
    assert texts[8].count("(step 8)\n") == 2  # one for each direction
    for words in ("between 0 and 0.87", "- command: `python ", "- commit: ", "- device: cuda:0 (a GPU)"):
        assert words in texts[8]


def test_the_commit_is_that_of_the_checkout_or_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git = shutil.which("git") or pytest.skip("git is not installed")
    monkeypatch.setattr(source_commit, "ROOT", tmp_path)
    assert health_page.commit() == "unknown, since the program does not lie in a git checkout"
    subprocess.run([git, "init", "-q", str(tmp_path)], check=True)
    assert health_page.commit().startswith("unknown, since git ends with status")  # there is no commit yet
    (tmp_path / "file").write_text("first")
    author = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for arguments in (["add", "file"], [*author, "commit", "-q", "-m", "first"]):
        subprocess.run([git, "-C", str(tmp_path), *arguments], check=True)
    assert re.fullmatch("[0-9a-f]{40}", health_page.commit())
    (tmp_path / "file").write_text("second")
    assert re.fullmatch("[0-9a-f]{40}, with changes that are not committed", health_page.commit())


def make_stripes() -> tuple[torch.Tensor, torch.Tensor]:
    """Smooth images, (4, 3, 32, 32), and the same with stripes that repeat every 2 px."""
    smooth = torch.stack([image_to_tensor(make_image(seed, (32, 32))) for seed in range(4)]) * 0.7
    stripes = 0.1 * torch.cos(torch.pi * torch.arange(32.0))[:, None]
    return smooth, smooth * 0.8 + 0.1 + stripes


def test_a_resumed_run_remembers_the_warnings_up_to_its_checkpoint(tmp_path: Path) -> None:
    images = make_stripes()
    with RunLog(Run(tmp_path, Config(max_steps=20), {}, steps_per_epoch=10)) as log:
        log.sample(4, [*images, images[0], *[images[0]] * 3])
        log.sample(8, [*[images[0]] * 3, *images, images[0]])
    assert len((tmp_path / "warnings.txt").read_text().splitlines()) == 2
    with RunLog(Run(tmp_path, Config(max_steps=20), {}, steps_per_epoch=10, step=6)):
        pass
    assert "european to asian have stripes" in health_texts(tmp_path)[6]
    assert "asian to european have stripes" not in health_texts(tmp_path)[6]


def test_the_page_draws_charts_of_scalars_that_a_run_logs(tiny: Tiny) -> None:
    assert train_here(tiny(max_steps=2)) == 0
    run_dir = Path(tiny().runs_dir, "tiny")
    events = EventAccumulator(str(run_dir)).Reload()
    (event,) = events.Tensors("custom_scalars__config__")
    (category,) = Layout.FromString(event.tensor_proto.string_val[0]).category
    drawn = [list(chart.multiline.tag) for chart in category.chart]
    assert category.title == "Is it healthy?"
    assert drawn[:2] == [["score/real_a", "score/fake_a"], ["score/real_b", "score/fake_b"]]
    assert {tag for tags in drawn for tag in tags} <= set(events.Tags()["scalars"])


def test_without_a_terminal_progress_is_printed_in_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log_steps(tmp_path, 12, 12)
    printed = capsys.readouterr()
    assert printed.out.startswith("step 12/100  epoch 2  gan 12.000  cycle 12.000  disc 12.000  ")
    assert printed.out.rstrip().endswith("left")
    assert printed.err == ""
