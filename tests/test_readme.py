"""The README in both languages and the pages in docs/: every command runs, every link leads somewhere."""

from __future__ import annotations

import importlib
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
from typing import Any

import numpy as np
import pytest
from conftest import ROOT, SMALL, make_folders, make_image
from foreign_networks import save_origin
from PIL import Image
from test_export import write_evaluation

import benchmark
import download_files
from config import Config
from photos.crops import measure_template
from training.command_line import StartFlags
from weights.load import load_weights

PAGES = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
         for path in (ROOT / "README.md", ROOT / "README.ru.md", *sorted((ROOT / "docs").glob("*.md")))}  # fmt: skip
README, RUSSIAN = PAGES["README.md"], PAGES["README.ru.md"]
SHORT = [*SMALL, "--max-steps", "2", "--num-workers", "0"]
EXTRA = {  # flags that keep the tests short
    "train.py": SHORT,
    "evaluate.py": ["--inception-weights", "nowhere.pth"],
    "benchmark.py": [*SMALL, "--steps", "1"],
}
EXPECTED = {  # what a program prints when it has done its work
    "train.py": "finished 2 steps; samples in runs/",
    "check_data.py": "train/asian",
    "translate.py": "translated ",
    "evaluate.py": "written to evaluated",
    "benchmark.py": "|---|",
    "import_weights.py": "wrote my_weights.safetensors",
    "download_files.py": "data set: ",
    "export.py": "wrote ",
}
OTHER_FLAGS = {
    "build-arg",
    "gpus",
    "logdir",
    "nproc-per-node",
    "nnodes",
    "node-rank",
    "master-addr",
    "index-url",
    "prefix",
    "directory",
}  # of other programs
OTHER_COMMANDS = ("python app.py", "python3 -m venv .venv", ". .venv/bin/activate", "pip install -r requirements.txt",
                  "pip install -r requirements-extra.txt", "python -m pytest -n 2", "tensorboard --logdir runs",
                  "torchrun --nproc-per-node=4 train.py", "torchrun --nproc-per-node=4 translate.py")  # fmt: skip


def commands_in(page: str) -> list[str]:
    """The commands of a page's shell blocks."""
    blocks = re.findall(r"```sh\n(.*?)```", page, re.DOTALL)
    return [command.strip() for block in blocks for line in block.splitlines() for command in line.split("&&")]


COMMANDS = sorted({command for page in PAGES.values() for command in commands_in(page)})
PROGRAMS = [command for command in COMMANDS if re.match(r"python (?!app)\w+\.py", command)]  # See test_app.py.


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds my_faces/ and a finished run of it."""
    folder = tmp_path_factory.mktemp("finished")
    make_folders(folder / "my_faces")
    run("train.py", "--data-dir", "my_faces", "--run-name", "my_faces", *SHORT, cwd=folder)
    return folder


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with the folders and files that the pages mention."""
    make_folders(tmp_path / "my_faces")
    animals = make_folders(tmp_path / "my_animals")
    for split in ("train", "test"):
        (animals / split / "european").rename(animals / split / "Horse")
        (animals / split / "asian").rename(animals / split / "zebra")
    (tmp_path / "my_photos").mkdir()
    for name in ("photo.jpg", "my_photos/other.png"):
        make_image(1, (300, 260)).save(tmp_path / name)
    shutil.copytree(ROOT / "assets" / "photos", tmp_path / "assets" / "photos")
    save_origin(tmp_path / "my_weights", n=1)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str, cwd: Path) -> str:
    """Run Python with one of our programs or other arguments; what it prints."""
    program = [str(ROOT / arguments[0])] if arguments[0].endswith(".py") else [arguments[0]]
    done = subprocess.run(
        [sys.executable, *program, *arguments[1:]],
        cwd=cwd,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_command_is_known_to_these_tests() -> None:
    known = (*(f"python {program}" for program in EXPECTED), *OTHER_COMMANDS)
    assert [command for command in COMMANDS if not command.startswith(known)] == []
    assert [start for start in known if not any(command.startswith(start) for command in COMMANDS)] == []


def test_ci_does_the_set_up_and_ends_with_the_test_command() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    assert re.search(r"python3 -m venv .*\n\. .*/bin/activate\npip install -q -r requirements.txt", script)
    assert script.rstrip().endswith("python -m pytest -n 2")


@pytest.mark.parametrize("command", [pytest.param(command, marks=[pytest.mark.slow] * ("--onnx" in command))
                                     for command in PROGRAMS])  # fmt: skip
def test_the_commands_of_our_programs_run(
    command: str,
    workspace: Path,
    finished_run: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    _, program, *arguments = command.split()
    monkeypatch.setattr(benchmark, "SECONDS", 0.1)
    monkeypatch.setattr(download_files, "HERE", workspace / "here")
    for name, source in download_files.SOURCES.items():
        folder = "my_weights" if name == "weights" else "my_faces"
        monkeypatch.setitem(download_files.SOURCES, name, replace(source, url=str(workspace / folder)))
    if program in ("translate.py", "evaluate.py", "export.py") or {"--init-from", "--config"} & {*arguments}:
        shutil.copytree(finished_run / "runs", workspace / "runs")
    if "--evaluation" in arguments:
        write_evaluation(workspace / "evaluated", Path("runs/my_faces"), step=2)
    if "my_weights.safetensors" in arguments and program == "translate.py":
        run("import_weights.py", "my_weights", "my_weights.safetensors", cwd=workspace)
    main = importlib.import_module(program.removesuffix(".py")).main
    assert main([*arguments, *EXTRA.get(program, [])]) == 0
    printed = capsys.readouterr().out
    assert EXPECTED[program] in printed
    if program == "train.py":
        picture = re.search(r"samples in (.*)", printed)
        assert picture
        assert Path(picture[1]).exists()
        assert ("on 64 held-out pairs" in printed) == ("demo" in command)


def test_download_brings_all_three(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(download_files, "HERE", workspace / "here")
    for name, source in download_files.SOURCES.items():
        folder = "my_weights" if name == "weights" else "my_faces"
        monkeypatch.setitem(download_files.SOURCES, name, replace(source, url=str(workspace / folder)))
    assert download_files.main([]) == 0
    assert sorted(path.name for path in (workspace / "here").iterdir()) == ["checkpoints", "dataset", "test_images"]


def test_the_python_examples_export_and_translate(workspace: Path, finished_run: Path) -> None:
    examples = re.findall(r"```python\n(.*?)```", PAGES["docs/translating.md"], re.DOTALL)
    shutil.copytree(finished_run / "runs", workspace / "runs")
    for lines in examples:
        run("-c", lines, cwd=workspace)
    assert load_weights(workspace / "my_faces.safetensors").strength("ab") == 1.5
    assert (workspace / "translated.png").exists()


def test_the_python_example_aligns_the_faces_of_photographs(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", PAGES["docs/own_data.md"], re.DOTALL)
    folder = Path("my_photos", "test", "asian")
    shutil.copytree(ROOT / "assets" / "photos", folder)
    names: dict[str, Any] = {}
    exec(example, names)
    crops = sorted(Path("my_faces", "test", "asian").glob("*.jpg.png"))
    assert [crop.stem for crop in crops] == sorted(photo.name for photo in folder.iterdir())
    template = measure_template(np.asarray(Image.open(crop)) for crop in crops)
    wanted = (*names["EYES"], names["NOSE"], *names["MOUTH"])
    assert np.allclose(np.array(template), np.array(wanted), atol=0.05)  # a twentieth of the side
    assert capsys.readouterr().out == "my_photos/other.png: 0 faces\n"


@pytest.mark.slow
@pytest.mark.parametrize("command", [command for command in COMMANDS if command.startswith("torchrun")])
def test_the_torchrun_commands_run(command: str, workspace: Path, finished_run: Path) -> None:
    """With two processes instead of four."""
    _, _, program, *arguments = command.split()
    if program == "translate.py":
        shutil.copytree(finished_run / "runs", workspace / "runs")
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node=2", str(ROOT / program)]
    assert EXPECTED[program] in run(*launcher, *arguments, *EXTRA.get(program, []), cwd=workspace)


def test_the_test_command_finds_the_tests() -> None:
    assert " tests collected" in run("-m", "pytest", "--collect-only", "-q", cwd=ROOT)


def test_tensorboard_serves_the_runs(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    program = Path(sys.executable).parent / "tensorboard"
    server = subprocess.Popen(
        [program, "--logdir", "runs", "--host", "127.0.0.1", "--port", str(port)],
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


@pytest.mark.parametrize("page", PAGES)
def test_every_flag_exists(page: str) -> None:
    knobs = {field.name.replace("_", "-") for field in (*fields(Config), *fields(StartFlags))}
    ours = {flag for file in ROOT.glob("*.py") for flag in re.findall(r'"--([a-z0-9-]+)"', file.read_text())}
    ours |= {name.replace("_", "-") for name in download_files.SOURCES}
    mentioned = set(re.findall(r"(?<![\w-])--([a-z][a-z0-9-]+)", PAGES[page]))
    unknown = mentioned - ours - OTHER_FLAGS - {"help"}
    assert {flag for flag in unknown if flag.removeprefix("no-") not in knobs} == set()


@pytest.mark.parametrize("page", [README, RUSSIAN], ids=["English", "Russian"])
def test_the_readme_lists_every_program_and_package(page: str) -> None:
    names = {path.name for path in ROOT.glob("*.py")} | {f"{path.parent.name}/" for path in ROOT.glob("*/__init__.py")}
    assert {name for name in names if f"`{name}`" not in page} == set()


@pytest.mark.parametrize("page", PAGES)
def test_links_to_files_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", PAGES[page]):
        if not target.startswith("https://"):
            file, _, anchor = target.partition("#")
            path = (ROOT / page).parent / file if file else ROOT / page
            assert path.exists(), target
            titles = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE) if anchor else []
            anchors = [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles]
            assert not anchor or anchor in anchors, target


def test_the_readmes_tell_the_same() -> None:
    assert len(README) <= 9500
    assert commands_in(RUSSIAN) == commands_in(README)
    assert re.findall(r"^#+ ", RUSSIAN, re.MULTILINE) == re.findall(r"^#+ ", README, re.MULTILINE)


@pytest.mark.parametrize("page", [README, RUSSIAN], ids=["English", "Russian"])
def test_the_table_of_dials_gives_the_true_defaults(page: str) -> None:
    rows = re.findall(r"^\| `--([a-z-]+)` \| `?([\w.]+)`? \|", page, re.MULTILINE)
    assert len(rows) == 8
    for flag, shown in rows:
        value = getattr(Config(), flag.replace("-", "_"))
        assert (float(shown) if isinstance(value, (int, float)) else shown) == value, flag
