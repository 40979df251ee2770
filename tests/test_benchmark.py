"""The benchmark measures what it says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import SMALL, Tiny, make_folders
from torch.utils.flop_counter import FlopCounterMode

import benchmark
from benchmark import activations, main, plain_networks
from training.model import CycleGAN

CPU = torch.device("cpu")


def test_the_meter_counts_what_autograd_keeps_once_and_until_it_is_freed() -> None:
    weights = torch.nn.Parameter(torch.ones(1000))
    x = torch.ones(1000, requires_grad=True)
    with activations() as meter:
        y = (x * weights).exp()  # keeps x beside the parameter, and its own result
        z = y.square()  # keeps y, which is kept already
        assert meter.kept == 2 * 4000
        z.sum().backward()  # type: ignore[no-untyped-call]
        assert meter.kept == 0
    assert meter.peak == 2 * 4000


def test_the_plain_networks_compute_what_ours_compute(tiny: Tiny) -> None:
    torch.manual_seed(0)
    ours = CycleGAN(tiny(global_skip=False), CPU)
    torch.manual_seed(0)
    nets = plain_networks(CycleGAN(tiny(global_skip=False), CPU))
    assert not [layer for net in nets.values() for layer in net.modules() if type(layer).__name__ == "InstanceNorm"]
    x = torch.rand(2, 3, 32, 32) * 2 - 1
    for name, net in nets.items():
        torch.testing.assert_close(net(x), getattr(ours, name)(x), rtol=1e-4, atol=1e-5)


def test_the_command_measures_everything_and_ends_with_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark, "SECONDS", 0.01)
    monkeypatch.setattr(benchmark, "MATMUL_SIDE", {"cpu": 64})
    make_folders(tmp_path)
    flags = f"--compare plain --steps 3 --json --lambda-identity 0 --amp off --data-dir {tmp_path}".split()
    assert main([*SMALL, *flags]) == 0
    out = capsys.readouterr().out
    figures = json.loads(out.splitlines()[-1])
    assert f"| {tmp_path}, 2 workers |" in out
    assert 0.4 < figures["against plain"]["share of the memory"] < 0.6  # one cycle at a time instead of both
    assert figures["train"]["images/s"] == pytest.approx(2 / figures["train"]["s per step"])
    assert figures["train"]["TFLOP/s"] == pytest.approx(
        figures["train"]["TFLOP per step"] / figures["train"]["s per step"]
    )
    assert set(figures["translate"]) == {"batch 1", "batch 8", "batch 32"}


def test_the_count_of_operations_is_that_of_the_layer_list(tiny: Tiny) -> None:
    disc = CycleGAN(tiny(), CPU).disc_a
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        disc(torch.zeros(1, 3, 32, 32))
    layers = [(3, 4, 16), (4, 8, 8), (8, 16, 4), (16, 32, 3), (32, 1, 2)]  # channels in and out, side of the result
    assert counter.get_total_flops() == sum(2 * i * o * 16 * side**2 for i, o, side in layers)


def test_a_data_folder_without_images_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--parts", "data", *SMALL, "--data-dir", str(tmp_path)]) == 1
    assert "no usable images" in capsys.readouterr().err


def test_a_textbook_step_does_not_augment(capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmark.main(["--compare", "plain", "--diff-augment", "all"]) == 1
    assert "does not support --diff-augment" in capsys.readouterr().err


def test_no_steps_cannot_be_timed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["--steps", "0"])
    assert "--steps must be at least 1" in capsys.readouterr().err
