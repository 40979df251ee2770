"""Every command and every promise of a file in the README."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import fields, replace
from pathlib import Path

import pytest
from conftest import ROOT, SMALL, make_folders, make_image
from foreign_networks import save_origin

import download_files
from config import Config
from weights.load import load_generator

README = (ROOT / "README.md").read_text()
SET_UP = ["python3 -m venv .venv", ". .venv/bin/activate", "pip install -r requirements.txt",
          "pip install -r requirements-extra.txt"]  # fmt: skip
COMMANDS = [
    command.strip()
    for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
    for command in line.split("&&")
]
DOWNLOAD_FLAGS = ("list", "dataset", "weights", "test-images", "url")
TRANSLATE_FLAGS = ("direction", "crops", "side-by-side", "out", "no-metadata", "like", "all-checkpoints")
BENCHMARK_FLAGS = ("compare",)
TORCHRUN_FLAGS = ("nproc-per-node", "nnodes", "node-rank", "master-addr")
PACKAGES = sorted(path.parent.name for path in ROOT.glob("*/__init__.py"))
SHORT = [*SMALL, "--max-steps", "2", "--num-workers", "0"]


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """The repository without what its users put into it, and the folders that the README speaks of."""
    for pattern in ("*.py", "*.txt", "*.toml", "*.md"):
        for file in ROOT.glob(pattern):
            shutil.copy(file, tmp_path)
    for folder in ("assets", "docs", "tests", ".ci", *PACKAGES):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("venv", "__pycache__"))
    make_folders(tmp_path / "my_faces")
    animals = make_folders(tmp_path / "my_animals")
    for split in ("train", "test"):
        (animals / split / "european").rename(animals / split / "Horse")
        (animals / split / "asian").rename(animals / split / "zebra")
    return tmp_path


def run(arguments: list[str], cwd: Path) -> str:
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_command_is_known_to_these_tests() -> None:
    programs = (
        "train.py",
        "import_weights.py",
        "download_files.py",
        "check_data.py my_faces",
        "translate.py",
        "evaluate.py",
        "benchmark.py",
    )
    kinds = (
        *(f"python {program}" for program in programs),
        "python -m pytest",
        "tensorboard --logdir runs",
        "torchrun --nproc-per-node=4 train.py",
        *SET_UP,
    )
    assert [command for command in COMMANDS if not command.startswith(kinds)] == []
    assert {kind for kind in kinds if any(command.startswith(kind) for command in COMMANDS)} == set(kinds)


def test_ci_does_the_set_up_and_ends_with_the_test_command() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    assert re.search(r"python3 -m venv .*\n\. .*/bin/activate\npip install -q -r requirements.txt", script)
    assert script.rstrip().endswith("python -m pytest")


@pytest.mark.parametrize("command", sorted({command for command in COMMANDS if command.startswith("python train.py")}))
def test_the_training_commands_train(command: str, clone: Path) -> None:
    shown = run([*command.split()[1:], *SHORT], cwd=clone)
    assert "finished 2 steps; samples in runs/" in shown
    if "demo" in command:
        assert "on 64 held-out pairs" in shown
    picture = re.search(r"samples in (.*)", shown)
    assert picture
    assert (clone / picture[1]).exists()


def test_the_download_command_brings_all_three(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_folders(tmp_path / "test_images" / "train", 1, 1)
    for name, source in download_files.SOURCES.items():
        monkeypatch.setitem(download_files.SOURCES, name, replace(source, url=str(tmp_path / "test_images")))
    monkeypatch.setattr(download_files, "HERE", tmp_path / "root")
    (command,) = [command.split() for command in COMMANDS if command.startswith("python download_files.py")]
    assert download_files.main(command[2:]) == 1
    assert "error: weights: " in capsys.readouterr().err  # there are none among these images
    assert sorted(path.name for path in (tmp_path / "root").iterdir()) == ["dataset", "test_images"]


def test_the_data_check_command_shows_a_table(clone: Path) -> None:
    (command,) = [command.split() for command in COMMANDS if command.startswith("python check_data.py")]
    assert "train/asian" in run(command[1:], cwd=clone)
    assert (clone / "data_check.png").exists()


def test_the_test_command_finds_the_tests(clone: Path) -> None:
    command = next(command for command in COMMANDS if command.startswith("python -m pytest"))
    assert " tests collected" in run([*command.split()[1:], "--collect-only", "-q"], cwd=clone)


def test_a_run_is_evaluated(clone: Path) -> None:
    run(["train.py", "--data-dir", "my_faces", "--run-name", "my_faces", *SHORT], cwd=clone)
    (command,) = [command.split() for command in COMMANDS if command.startswith("python evaluate.py")]
    assert "### european to asian" in run([*command[1:], "--inception-weights", "nowhere.pth"], cwd=clone)
    assert (clone / "evaluated" / "evaluation.json").exists()


def test_photographs_are_translated_from_the_command_line_and_in_python(clone: Path) -> None:
    run(["train.py", "--data-dir", "my_faces", "--run-name", "my_faces", *SHORT], cwd=clone)
    (clone / "my_photos").mkdir()
    for name in ("photo.jpg", "my_photos/other.png"):
        make_image(1, (300, 260)).save(clone / name)
    (command,) = [command.split() for command in COMMANDS if command.startswith("python translate.py")]
    assert "translated 2 files" in run(command[1:], cwd=clone)
    assert sorted(path.name for path in (clone / "translated").iterdir()) == ["other.png", "photo.jpg"]
    (lines,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    run(["-c", lines], cwd=clone)
    assert (clone / "translated.png").exists()


def test_the_import_command_imports_what_the_folder_holds(clone: Path) -> None:
    save_origin(clone / "my_weights", n=1)
    command = next(command for command in COMMANDS if command.startswith("python import_weights.py"))
    assert "wrote my_weights.safetensors" in run(command.split()[1:], cwd=clone)
    assert load_generator(clone / "my_weights.safetensors", "ab")


def test_the_torchrun_command_trains(clone: Path) -> None:
    """With two processes instead of four."""
    (command,) = [command.split() for command in COMMANDS if command.startswith("torchrun")]
    shown = run(["-m", "torch.distributed.run", "--nproc-per-node=2", *command[2:], *SHORT], cwd=clone)
    assert "finished 2 steps; samples in runs/" in shown


def test_the_benchmark_command_prints_a_ratio(clone: Path) -> None:
    (command,) = [command.split() for command in COMMANDS if command.startswith("python benchmark.py")]
    assert "| against plain |" in run([*command[1:], *SMALL, "--parts", "train", "--steps", "1"], cwd=clone)


def test_tensorboard_serves_the_runs(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = next(command for command in COMMANDS if command.startswith("tensorboard"))
    program = Path(sys.executable).parent / "tensorboard"
    server = subprocess.Popen(
        [program, *command.split()[1:], "--host", "127.0.0.1", "--port", str(port)],
        cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        for _ in range(300):
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/data/environment", timeout=5) as page:
                    assert page.status == 200
                    return
            except OSError:
                assert server.poll() is None, "tensorboard ended"
                time.sleep(0.1)
        pytest.fail("tensorboard did not answer")
    finally:
        server.kill()
        server.wait()


def test_every_flag_is_a_knob() -> None:
    knobs = {field.name.replace("_", "-") for field in fields(Config)} | {"no-global-skip", "help"}
    others = {"logdir", "json", *DOWNLOAD_FLAGS, *TRANSLATE_FLAGS, *BENCHMARK_FLAGS, *TORCHRUN_FLAGS}
    assert set(re.findall(r"--([a-z][a-z-]+)", README)) - others <= knobs


def test_every_file_in_the_list_is_there_and_every_file_is_in_the_list() -> None:
    table = README.split("## Files")[1].split("##")[0]
    listed = set(re.findall(r"`([^`]+\.(?:py|txt|zip))`|`(\.ci/run|docs/|tests/)`", table))
    names = {first or second for first, second in listed}
    assert all((ROOT / name).exists() for name in names)
    assert {path.name for path in ROOT.glob("*.py")} <= names


def test_links_to_files_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)]+)\)", README):
        assert target.startswith("https://") or (ROOT / target).exists(), target


def test_the_dashboards_table_gives_the_true_defaults() -> None:
    table = README.split("## The dashboard")[1].split("## ")[0]
    rows = re.findall(r"^\| `--([a-z-]+)` \| `?([\w.]+)`? \|", table, re.MULTILINE)
    assert len(rows) >= 7
    for flag, shown in rows:
        value = getattr(Config(), flag.replace("-", "_"))
        assert (float(shown) if isinstance(value, (int, float)) else shown) == value, flag
