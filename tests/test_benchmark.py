"""The benchmark's measures are right, and its command line reports mistakes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import SMALL, Tiny, make_folders
from torch.utils.flop_counter import FlopCounterMode

import benchmark
from benchmark import main
from training.memory_meter import saved_activations
from training.model import CycleGAN
from training.textbook_step import plain_networks

CPU = torch.device("cpu")


def test_the_meter_counts_each_saved_tensor_once_until_it_is_freed() -> None:
    weights = torch.nn.Parameter(torch.ones(1000))
    x = torch.ones(1000, requires_grad=True)
    with saved_activations() as meter:
        y = (x * weights).exp()  # saves x and the result of exp; the parameter does not count
        z = y.square()  # saves y, which is saved already
        assert meter.current == 2 * 4000
        z.sum().backward()  # type: ignore[no-untyped-call]
        assert meter.current == 0
    assert meter.peak == 2 * 4000


def test_the_plain_networks_compute_the_same_as_ours(tiny: Tiny) -> None:
    torch.manual_seed(0)
    ours = CycleGAN(tiny(global_skip=False), CPU)
    torch.manual_seed(0)
    theirs = CycleGAN(tiny(global_skip=False), CPU)
    nets = plain_networks({name: getattr(theirs, name) for name in ("gen_ab", "gen_ba", "disc_a", "disc_b")})
    assert not [layer for net in nets.values() for layer in net.modules() if type(layer).__name__ == "InstanceNorm"]
    x = torch.rand(2, 3, 32, 32) * 2 - 1
    for name, net in nets.items():
        torch.testing.assert_close(net(x), getattr(ours, name)(x), rtol=1e-4, atol=1e-5)


def test_the_command_measures_all_parts_and_prints_json_on_the_last_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark, "SECONDS", 0.01)
    monkeypatch.setattr(benchmark, "MATMUL_SIDE", {"cpu": 64})
    make_folders(tmp_path)
    flags = f"--compare plain --steps 3 --json --lambda-identity 0 --amp off --data-dir {tmp_path}".split()
    assert main([*SMALL, *flags]) == 0
    out = capsys.readouterr().out
    measures = json.loads(out.splitlines()[-1])
    assert f"| {tmp_path}, 2 workers |" in out
    # Our step keeps one cycle's activations at a time, the plain step both cycles'.
    assert 0.4 < measures["against plain"]["share of the memory"] < 0.6
    assert measures["train"]["images/s"] == pytest.approx(2 / measures["train"]["s per step"])
    assert measures["train"]["TFLOP/s"] == pytest.approx(
        measures["train"]["TFLOP per step"] / measures["train"]["s per step"]
    )
    assert set(measures["translate"]) == {"batch 1", "batch 8", "batch 32"}


def test_the_number_of_operations_equals_a_count_by_hand(tiny: Tiny) -> None:
    disc = CycleGAN(tiny(disc_global=False), CPU).disc_a
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        disc(torch.zeros(1, 3, 32, 32))
    # Each layer's input channels, output channels, and output side in px.
    layers = [(3, 4, 16), (4, 8, 8), (8, 16, 4), (16, 32, 3), (32, 1, 2)]
    assert counter.get_total_flops() == sum(2 * i * o * 16 * side**2 for i, o, side in layers)


def test_a_data_folder_without_images_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--parts", "data", *SMALL, "--data-dir", str(tmp_path)]) == 1
    assert "no usable images" in capsys.readouterr().err


def test_comparing_a_run_with_augmentation_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmark.main(["--compare", "plain", "--diff-augment", "all"]) == 1
    assert "does not support --diff-augment" in capsys.readouterr().err


def test_the_number_of_steps_must_be_at_least_one(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["--steps", "0"])
    assert "--steps must be at least 1" in capsys.readouterr().err
