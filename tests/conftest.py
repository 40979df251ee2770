"""Small folders of images, small configurations, and one thread: what most tests need."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from multiprocessing.context import ForkServerContext
from pathlib import Path

import numpy as np
import pytest
import torch
from loopback import Handler, Server, Web
from PIL import Image

import train
from config import Config
from downloads import fetch
from utils import command

ROOT = Path(__file__).parent.parent
Tiny = Callable[..., Config]
SMALL = ["--image-size", "32", "--base-channels", "4", "--num-residuals", "1", "--device", "cpu"]  # trains in seconds
torch.set_num_threads(1)


def make_image(seed: int, size: tuple[int, int] = (40, 40)) -> Image.Image:
    """A smooth random RGB image, width x height."""
    pixels = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)


def make_folders(root: Path, num_a: int = 6, num_b: int = 4) -> Path:
    """train/ and test/ folders of both domains; every image differs."""
    for split, offset in (("train", 0), ("test", 1000)):
        for domain, count, first in (("european", num_a, 0), ("asian", num_b, 500)):
            folder = root / split / domain
            folder.mkdir(parents=True)
            for i in range(count):
                make_image(offset + first + i).save(folder / f"{i:04d}.png")
    return root


@pytest.fixture(autouse=True)
def quick_classifier(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few steps suffice where the domain classifier is not what is tested."""
    monkeypatch.setattr("evaluation.classifier.NUM_STEPS", 20)


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return make_folders(tmp_path / "data")


@pytest.fixture
def tiny(data_dir: Path, tmp_path: Path) -> Tiny:
    """A configuration of a run that takes a second: `tiny(num_epochs=2)`."""

    def build(**knobs: object) -> Config:
        base = Config(
            data_dir=str(data_dir), runs_dir=str(tmp_path / "runs"), run_name="tiny", image_size=32, base_channels=4,
            num_residuals=1, num_epochs=1, num_decay_epochs=1, num_workers=0, num_samples=2, pool_size=3,
            log_every_steps=2, sample_every_steps=100, checkpoint_every_steps=3, device="cpu",
        )  # fmt: skip
        return replace(base, **knobs)  # type: ignore[arg-type]

    return build


def start_train(*arguments: str, cwd: Path) -> subprocess.Popen[str]:
    """`python train.py` with one thread, in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *arguments],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def run_train(*arguments: str, cwd: Path, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    """Run `python train.py` to its end."""
    process = start_train(*arguments, cwd=cwd)
    out, err = process.communicate(timeout=timeout)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def fresh_processes() -> ForkServerContext:
    """Starts processes soon that have not used autograd, whose threads a fork of this process would not survive."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "train"])
    return context


def train_here(config: Config) -> int:
    """`python train.py` with this configuration, in this process; its exit status."""
    return command(lambda argv: train.start(config))()


@pytest.fixture
def limit_files() -> Iterator[Callable[[int], None]]:
    """`limit_files(n)` makes every write beyond a file's first n bytes fail, as it does on a full disk."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (before[0] if size < 0 else size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    monkeypatch.setattr(fetch, "RETRY_WAITS", (0.0,) * 5)
    server = Server(("127.0.0.1", 0), Handler)
    server.ranges, server.content = [], b""
    server.answer = lambda request, count: request.send_whole()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    web = Web(server)
    yield web
    web.released.set()
    server.shutdown()
    server.server_close()
