"""Several processes train like one with a larger batch, and they stop, save, resume and end together."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, SMALL, Tiny, make_folders, make_image, run_train, train_here
from test_train import CPU, assert_identical, difference, networks_of

import train
import translate
from config import Config
from dataset import EpochBatches, count_steps_per_epoch
from training import checkpoint, distributed
from training.model import CycleGAN
from training.run import asked_to_stop
from utils import UserError


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def environment_of(rank: int, count: int, port: int) -> dict[str, str]:
    """The environment variables that torchrun sets for one of its processes."""
    return {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port)}  # fmt: skip


def torchrun(*flags: str, cwd: Path) -> subprocess.Popen[str]:
    """Start two processes of train.py through torchrun."""
    return subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={free_port()}",
         str(ROOT / "train.py"), *SMALL, "--num-workers", "0", "--checkpoint-every-steps", "2", *flags],
        cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def newest(folder: Path) -> dict[str, Any]:
    state, broken = checkpoint.newest_checkpoint(folder)
    assert state is not None
    assert not broken
    return state


@pytest.mark.parametrize(("num_items", "batch_size", "count"), [(12, 1, 2), (13, 2, 2), (11, 2, 3), (7, 1, 4)])
def test_the_pairs_of_an_epoch_are_shared_without_overlap(num_items: int, batch_size: int, count: int) -> None:
    steps = 2 * count_steps_per_epoch(num_items, batch_size, count)
    shares = [list(EpochBatches(num_items, batch_size, 3, 0, steps, rank, count)) for rank in range(count)]
    whole = list(EpochBatches(num_items - num_items % count, batch_size * count, 3, 0, steps))
    assert len({tuple(map(len, share)) for share in shares}) == 1  # all processes take equally many in every step
    for epoch in range(2):
        drawn = [pair for share in shares for batch in share for pair in batch if pair[0] == epoch]
        assert len(drawn) == len(set(drawn)) == num_items - num_items % count
    if num_items % count == 0:  # one process with the larger batch takes the same pairs in each step
        for batch, *parts in zip(whole, *shares, strict=True):
            assert sorted(batch) == sorted(pair for part in parts for pair in part)


def test_too_few_images_for_the_processes_are_an_error() -> None:
    with pytest.raises(UserError, match="3 images are too few for 4 processes"):
        count_steps_per_epoch(3, 1, 4)


def images_of(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(step)
    real_a, real_b = (torch.rand(2, 3, 32, 32, dtype=torch.float64) * 2 - 1 for _ in "ab")
    return real_a, real_b


def train_some_steps(config: Config, rows: slice, path: Path | None = None) -> CycleGAN:
    torch.manual_seed(0)
    model = CycleGAN(config, CPU)
    for network in networks_of(model).values():
        network.double()
    for step in range(3):
        real_a, real_b = images_of(step)
        train.train_step(model, real_a[rows], real_b[rows], config=config)
    if path:
        gradients = {name: [p.grad for p in net.parameters()] for name, net in networks_of(model).items()}
        torch.save({"model": model.state_dict(), "gradients": gradients}, path)
    return model


def train_as_rank(rank: int, port: int, config: Config, folder: Path) -> None:
    os.environ |= environment_of(rank, 2, port)
    with distributed.process_group(CPU):
        model = train_some_steps(config, slice(rank, rank + 1), folder / f"{rank}.pt")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(distributed, "begin_average", average_at_once)
            assert_identical(model.state_dict(), train_some_steps(config, slice(rank, rank + 1)).state_dict())
        assert distributed.all_equal(3)
        assert not distributed.all_equal(rank)
    assert not [name for name in names_of_threads() if "gloo" in name]  # they might abort the process when Python exits


def average_at_once(tensors: Sequence[torch.Tensor]) -> Callable[[], None]:
    """Average tensors one by one, and only then let other work go on."""
    for tensor in tensors:
        total = tensor.clone()
        torch.distributed.all_reduce(total)
        tensor.copy_(total / 2)
    return lambda: None


def names_of_threads() -> list[str]:
    return [path.read_text() for path in Path("/proc/self/task").glob("*/comm")]


def test_two_processes_equal_each_other_and_one_with_twice_the_batch(tiny: Tiny, tmp_path: Path) -> None:
    """The image pools are off, because every process has its own."""
    config, port, context = tiny(pool_size=0, lambda_identity=0.5), free_port(), multiprocessing.get_context("spawn")
    ranks = [context.Process(target=train_as_rank, args=(rank, port, config, tmp_path)) for rank in range(2)]
    for rank in ranks:
        rank.start()
    one = train_some_steps(config, slice(0, 2))
    for rank in ranks:
        rank.join()
        assert rank.exitcode == 0
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    for name in ("gen_ab", "gen_ba", "disc_a", "disc_b", "opt_gen", "opt_disc"):
        assert_identical(first["model"][name], second["model"][name], name)
    for name, network in networks_of(load_saved(config, first)).items():
        assert difference(network, networks_of(one)[name], 1e-10) < 1e-10


def load_saved(config: Config, saved: dict[str, Any]) -> CycleGAN:
    """A model with the weights and gradients that a process saved."""
    model = CycleGAN(config, CPU)
    for name, network in networks_of(model).items():
        network.double().load_state_dict(saved["model"][name])
        for weights, gradient in zip(network.parameters(), saved["gradients"][name], strict=True):
            weights.grad = gradient
    return model


@pytest.mark.parametrize("disc_first", [False, True])
def test_the_generators_gradients_travel_while_the_discriminators_learn(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, disc_first: bool
) -> None:
    """Where the discriminators come first, the generators must meet the new ones."""
    config, events = tiny(disc_first=disc_first), list[str]()
    model, real = CycleGAN(config, CPU), torch.rand(1, 3, 32, 32)

    def begin(tensors: Sequence[torch.Tensor]) -> Callable[[], None]:
        of_generator = model.gen_ab.last[-1].weight.grad
        name = "gen" if any(tensor is of_generator for tensor in tensors) else "disc"
        events.append(f"begin {name}")
        return partial(events.append, f"end {name}")

    monkeypatch.setattr(distributed, "begin_average", begin)
    train.train_step(model, real, real, config=config)
    overlapping = ["begin gen", "begin disc", "end gen", "end disc"]
    assert events == (["begin disc", "end disc", "begin gen", "end gen"] if disc_first else overlapping)


def answer(step: int, asked: list[int], flag: bool) -> bool:
    asked.append(step)
    return flag


@pytest.mark.parametrize("resumed_at", [0, 7, 20])
def test_processes_on_gpus_ask_in_each_tenth_step_whether_to_stop_also_after_a_resume(
    monkeypatch: pytest.MonkeyPatch, resumed_at: int
) -> None:
    asked = list[int]()
    images, no_images = torch.zeros(1, 3, 8, 8), torch.empty(0)
    monkeypatch.setenv("WORLD_SIZE", "2")
    for step in range(resumed_at, 41):
        monkeypatch.setattr(distributed, "any_process", partial(answer, step, asked))
        stops = asked_to_stop([signal.SIGTERM], step=step, images=images, device=torch.device("cuda"))
        assert stops == (step % 10 == 0)
        if not stops:
            with pytest.raises(UserError, match="no images came"):
                asked_to_stop([signal.SIGTERM], step=step, images=no_images, device=torch.device("cuda"))
    assert asked == [step for step in range(resumed_at, 41) if step % 10 == 0]
    assert asked_to_stop([signal.SIGTERM], step=41, images=no_images, device=CPU)


@pytest.mark.parametrize(
    ("num_gpus", "by_torchrun", "expected"), [(8, True, 3), (8, False, 3), (1, True, 3), (1, False, 0)]
)
def test_a_task_that_sees_only_its_own_gpu_uses_that(
    monkeypatch: pytest.MonkeyPatch, num_gpus: int, by_torchrun: bool, expected: int
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: num_gpus)
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    if by_torchrun:  # it gives its processes one name, and all GPUs
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert distributed.gpu_number() == expected


@pytest.mark.slow
def test_a_resumed_run_of_two_processes_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    make_folders(tmp_path / "data")
    flags = ("--data-dir", "data", "--diff-augment", "all", "--pool-size", "2", "--scale-learning-rate", "--amp", "off")
    outputs = []
    for name, steps in (("whole", 6), ("parts", 3), ("parts", 6)):
        process = torchrun(*flags, "--run-name", name, "--max-steps", str(steps), cwd=tmp_path)
        outputs.append(process.communicate()[0])
        assert process.returncode == 0, outputs[-1]
    assert outputs[0].count("on cpu, the first of 2 processes") == outputs[0].count("finished 6 steps") == 1
    whole, parts = (newest(tmp_path / "runs" / name / "checkpoints") for name in ("whole", "parts"))
    assert len(whole["others"]) == 1
    assert whole["opt_gen"]["param_groups"][0]["lr"] == 2 * Config().learning_rate
    assert not torch.equal(whole["random"]["torch"], whole["others"][0]["random"]["torch"])
    for state in (whole, parts):
        del state["config"], state["template"]
    assert_identical(whole, parts)
    alone = run_train(*SMALL, *flags, "--run-name", "parts", cwd=tmp_path)
    assert alone.returncode == 1
    assert "this run was trained by 2 processes, and now there are 1" in alone.stderr


@pytest.mark.slow
@pytest.mark.parametrize("killed", [True, False])
def test_all_end_with_a_whole_checkpoint_when_one_is_killed_or_all_are_asked_to_stop(
    tmp_path: Path, killed: bool
) -> None:
    make_folders(tmp_path / "data")
    process = torchrun("--data-dir", "data", "--num-epochs", "100000", "--log-every-steps", "2", cwd=tmp_path)
    assert process.stdout is not None
    printed = ""
    while "step 6/" not in printed:
        printed += process.stdout.readline()
        assert process.poll() is None, printed
    if killed:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(children[-1]), signal.SIGKILL)
    else:
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGTERM)
    printed += process.communicate(timeout=60)[0]
    assert process.returncode != 0
    saved = newest(tmp_path / "runs" / "default" / "checkpoints")
    assert saved["step"] >= 4
    if not killed:
        (step,) = re.findall(r"SIG(?:INT|TERM): saved after step (\d+)", printed)
        assert saved["step"] == int(step)
        assert 'train.py", line' not in printed  # any traceback is torchrun's own


def test_one_gpu_for_several_processes_is_an_error(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in environment_of(1, 2, 0).items():
        monkeypatch.setenv(name, value)
    assert train_here(tiny(device="cuda:0")) == 1
    assert "--device cuda:0 is one GPU for 2 processes" in capsys.readouterr().err


def test_the_processes_divide_the_photographs_among_themselves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_folders(tmp_path / "data")
    run = run_train(*SMALL, "--data-dir", "data", "--max-steps", "1", "--num-workers", "0", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    (tmp_path / "photos").mkdir()
    for number in range(5):
        make_image(number, (64, 64)).save(tmp_path / "photos" / f"{number}.png")
    made = []
    for rank in range(2):
        for name, value in environment_of(rank, 2, 0).items():
            monkeypatch.setenv(name, value)
        out = tmp_path / f"out{rank}"
        photos, weights = str(tmp_path / "photos"), str(tmp_path / "runs" / "default")
        assert translate.main([photos, "--weights", weights, "--crops", "--out", str(out)]) == 0
        made.append({path.name for path in out.iterdir()})
    assert made[0] | made[1] == {f"{number}.png" for number in range(5)}
    assert not made[0] & made[1]
