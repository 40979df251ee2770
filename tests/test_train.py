"""The training step against an independent one; the loop: exact resume, signals, failures, what it writes."""

from __future__ import annotations

import copy
import csv
import json
import multiprocessing
import os
import random
import re
import shlex
import shutil
import signal
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import SMALL, Tiny, fresh_processes, make_folders, run_train, start_train, train_here
from PIL import Image
from torch import Tensor

import train
import translate
from benchmark import textbook_terms
from config import BEFORE_THE_KNOB, PRESETS, Config, from_dict
from training import checkpoint, losses
from training.model import CycleGAN, backward, begin_step, ignores_found_inf
from training.run import Run
from training.sample_sheet import heading_height
from training.textbook_step import Textbook, textbook_step
from weights.load import export_weights, load_generator

CPU = torch.device("cpu")


def final_state(config: Config) -> dict[str, Any]:
    """The newest checkpoint of a run, without the configuration, which a resumed run may extend."""
    state, broken = checkpoint.newest_checkpoint(Path(config.runs_dir, config.run_name, "checkpoints"))
    assert state is not None
    assert not broken
    del state["config"]
    return state


def assert_identical(first: Any, second: Any, path: str = "state") -> None:
    """Bit by bit, through dicts, lists and tuples."""
    if isinstance(first, Tensor):
        assert torch.equal(first, second), path
    elif isinstance(first, dict):
        assert first.keys() == second.keys(), path
        for key in first:
            assert_identical(first[key], second[key], f"{path}.{key}")
    elif isinstance(first, (list, tuple)):
        assert len(first) == len(second), path
        for index, pair in enumerate(zip(first, second, strict=True)):
            assert_identical(*pair, f"{path}[{index}]")
    else:
        assert first == second, path


# --- The step


OLD: dict[str, Any] = BEFORE_THE_KNOB
TEXTBOOK = {**OLD, "padding": "reflect", "global_skip": False, "lambda_cycle": 10.0, "lambda_identity": 0.5}


def networks_of(model: CycleGAN) -> dict[str, torch.nn.Module]:
    return {name: getattr(model, name) for name in ("gen_ab", "gen_ba", "disc_a", "disc_b")}


def plain_adam(*networks: torch.nn.Module) -> torch.optim.Adam:
    """One of the paper's optimisers in torch's plainest variant."""
    weights = [weights for network in networks for weights in network.parameters()]
    return torch.optim.Adam(weights, 2e-4, (0.5, 0.999), foreach=False)


def plain_textbook(model: CycleGAN) -> Textbook:
    """A model's networks and pools with optimisers of torch's plainest variant, for the textbook step."""
    opt_gen, opt_disc = plain_adam(model.gen_ab, model.gen_ba), plain_adam(model.disc_a, model.disc_b)
    return Textbook(networks_of(model), opt_gen, opt_disc, {"a": model.pool_a, "b": model.pool_b})


def gradient_of(weights: torch.nn.Parameter) -> torch.Tensor:
    """Zero for biases that are not computed, since instance norm would subtract them."""
    return torch.zeros_like(weights) if weights.grad is None else weights.grad


def difference(ours: torch.nn.Module, theirs: torch.nn.Module, tolerance: float) -> float:
    """The largest difference of gradients, as a share of the largest gradient, or of weights after the step.

    Weights whose gradient is rounding noise are passed over: Adam enlarges it.
    """
    weights = list(zip(ours.parameters(), theirs.parameters(), strict=True))
    grads = [(gradient_of(mine), gradient_of(other)) for mine, other in weights]
    largest = max(float(other.abs().max()) for _, other in grads)
    found = 0.0
    for (mine, other), (grad, reference) in zip(weights, grads, strict=True):
        known = reference.abs() > largest * tolerance * 1e3
        found = max(found, float((grad - reference).abs().max()) / largest)
        found = max(found, float(((mine - other).detach().abs() * known).max()))
    return found


@pytest.mark.parametrize("batch_size", [1, 2])
@pytest.mark.parametrize(
    "knobs",
    [
        {},
        OLD,
        TEXTBOOK,
        {**OLD, "recompute": True},
        {**OLD, "recompute": True, "lambda_identity": 0.5, "disc_first": True},
        {**OLD, "disc_first": True, "gan_sigmoid": True, "lambda_identity": 0.0, "lambda_cycle": 3.0},
        {**OLD, "r1_gamma": 1.0},
        {**OLD, "source_negatives": True, "disc_blur": 1.0},
        {**OLD, "gan_loss": "logistic", "disc_global": True},
        {"lambda_pair": 30.0},
        {**OLD, "disc_first": True, "global_skip": False, "lambda_pair": 30.0},
    ],
)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_step_equals_the_reference_step(
    tiny: Tiny,
    knobs: dict[str, Any],
    batch_size: int,
    dtype: torch.dtype,
    tolerance: float,
    layout: torch.memory_format,
) -> None:
    """Losses, gradients and new weights, from the same weights, images and pools."""
    config = tiny(**knobs)
    torch.manual_seed(0)
    ours, theirs = CycleGAN(config, CPU), CycleGAN(replace(config, recompute=False), CPU)
    for network in networks_of(ours).values():
        network.to(dtype).to(memory_format=layout)  # type: ignore[call-overload]
    nets = networks_of(theirs)
    for network in nets.values():
        network.to(dtype)
    textbook = plain_textbook(theirs)
    errors = []
    for _ in range(5):  # more steps than the pools hold images
        real_a, real_b = (torch.rand(batch_size, 3, 32, 32, dtype=dtype) * 2 - 1 for _ in "ab")
        for own, other in zip(networks_of(ours).values(), nets.values(), strict=True):
            other.load_state_dict(own.state_dict())  # float32 drifts apart by chaos: each step starts together
        random_state = torch.get_rng_state()  # of the blur
        actual = train.train_step(ours, real_a, real_b, config=config, r1_gamma=config.r1_gamma)
        torch.set_rng_state(random_state)
        expected = textbook_step(textbook, real_a, real_b, terms=textbook_terms(config, r1_gamma=config.r1_gamma))
        for name, value in expected.items():
            torch.testing.assert_close(actual[f"loss/{name}"], value, rtol=tolerance, atol=tolerance)
        compared = [name for name in nets if not (config.disc_first and name.startswith("disc"))]
        errors.append(max(difference(networks_of(ours)[name], nets[name], tolerance) for name in compared))
    # in float32 a rounding error now and then turns the sign of an L1 loss or a ReLU, and with it one step's gradient
    assert (max if dtype == torch.float64 else statistics.median)(errors) < tolerance


def test_a_run_goes_on_in_another_memory_layout(tiny: Tiny) -> None:
    """As when it is resumed on another machine, whose hardware prefers that layout."""
    config = tiny()
    torch.manual_seed(0)
    saved, *models = (CycleGAN(config, CPU) for _ in range(3))
    for network in networks_of(models[1]).values():
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    real_a, real_b = torch.rand(2, 1, 3, 32, 32)
    train.train_step(saved, real_a, real_b, config=config)
    for model in models:
        model.load_state_dict(copy.deepcopy(saved.state_dict()))
        torch.manual_seed(0)  # draws a blur, and the same one for both
        train.train_step(model, real_a, real_b, config=config, r1_gamma=1.0)
    for own, other in zip(*(networks_of(model).values() for model in models), strict=True):
        assert difference(own, other, 1e-5) < 1e-5


def compare_compiled_step(config: Config) -> None:
    torch.manual_seed(0)
    ours, theirs = CycleGAN(config, CPU), CycleGAN(replace(config, compile=False), CPU)
    nets = networks_of(theirs)
    for own, other in zip(networks_of(ours).values(), nets.values(), strict=True):
        other.double().load_state_dict(own.double().state_dict())
    textbook = plain_textbook(theirs)
    for _ in range(2):
        real_a, real_b = (torch.rand(1, 3, 32, 32, dtype=torch.float64) * 2 - 1 for _ in "ab")
        random_state = torch.get_rng_state()  # of the blur
        train.train_step(ours, real_a, real_b, config=config, r1_gamma=config.r1_gamma)
        torch.set_rng_state(random_state)
        textbook_step(textbook, real_a, real_b, terms=textbook_terms(config, r1_gamma=config.r1_gamma))
        assert max(difference(networks_of(ours)[name], nets[name], 1e-9) for name in nets) < 1e-9
    assert ours.state_dict()["gen_ab"].keys() == theirs.state_dict()["gen_ab"].keys()  # no trace in what is saved


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize("knobs", [{}, OLD])
def test_the_compiled_step_equals_the_reference_step(tiny: Tiny, knobs: dict[str, Any]) -> None:
    """In float64, where it rounds differently but no more."""
    config = tiny(**knobs, compile=True, global_skip=False)  # with it the L1 losses begin at 0, their kink
    process = multiprocessing.get_context("spawn").Process(target=compare_compiled_step, args=(config,))
    process.start()  # on its own: the compiler leaves threads that later tests' forks would not survive
    process.join()
    assert process.exitcode == 0


def test_the_step_reports_scores_and_gradient_norms(tiny: Tiny) -> None:
    config = tiny()
    model = CycleGAN(config, CPU)
    real = torch.rand(1, 3, 32, 32) * 2 - 1
    scores = {name: disc(real).mean() for name, disc in (("a", model.disc_a), ("b", model.disc_b))}
    reported = train.train_step(model, real, real, config=config)
    for name, score in scores.items():
        torch.testing.assert_close(reported[f"score/real_{name}"], score)
    norm = torch.cat([gradient_of(p).flatten() for p in model.opt_gen.param_groups[0]["params"]]).norm()
    torch.testing.assert_close(reported["grad_norm/gen"], norm)
    assert not any(value.requires_grad for value in reported.values())


@pytest.mark.parametrize(
    ("loss", "named", "networks"),
    [
        ("cycle_loss", {"gen", "cycle_a"}, ("gen_ab", "gen_ba")),
        ("discriminator_loss", {"disc", "disc_a"}, ("disc_a", "disc_b")),
    ],
)
def test_a_loss_that_is_not_finite_changes_no_weight_and_is_reported(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, loss: str, named: set[str], networks: tuple[str, ...]
) -> None:
    model = CycleGAN(tiny(), CPU)
    real = torch.rand(1, 3, 32, 32) * 2 - 1
    train.train_step(model, real, real, config=tiny())  # fills the optimisers' memory, which would move weights
    before = copy.deepcopy(model.state_dict())
    original = getattr(losses, loss)
    monkeypatch.setattr(train, loss, lambda *scores, **knobs: original(*scores, **knobs) * float("nan"))
    reported = train.train_step(model, real, real, config=tiny())
    assert named <= {name.removeprefix("loss/") for name, value in reported.items() if not torch.isfinite(value)}
    after = model.state_dict()
    for name in (*networks, "opt_gen" if "gen_ab" in networks else "opt_disc"):
        assert_identical(before[name], after[name], name)


def test_a_gradient_that_is_not_finite_changes_no_weight_either(tiny: Tiny) -> None:
    weight = torch.zeros(1, requires_grad=True)
    loss = weight.sqrt().sum()  # finite, but of infinite slope
    backward(loss)
    reported = begin_step(torch.optim.Adam([weight], fused=True), loss, name="gen", terms={})()
    assert not torch.isfinite(reported["grad_norm/gen"])
    assert weight.item() == 0


def test_nan_changes_no_weight_where_the_fused_optimiser_ignores_it(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on Apple's GPU."""
    original = torch.optim.Adam.step

    def step(optimizer: Any) -> None:
        del optimizer.found_inf
        original(optimizer)

    monkeypatch.setattr(torch.optim.Adam, "step", step)
    real = torch.rand(1, 3, 32, 32) * 2 - 1
    for is_known in (False, True):
        monkeypatch.setattr("training.model.ignores_found_inf", lambda device, known=is_known: known)
        model = CycleGAN(tiny(), CPU)
        train.train_step(model, real, real, config=tiny())
        before = copy.deepcopy(model.state_dict())
        reported = train.train_step(model, real * float("nan"), real, config=tiny())
        assert not torch.isfinite(reported["loss/gen"])
        is_whole = all(torch.isfinite(weights).all() for weights in model.gen_ab.parameters())
        assert is_whole is is_known  # without the guard this optimiser destroys the weights
    for name in ("gen_ab", "gen_ba", "disc_a", "opt_gen", "opt_disc"):
        assert_identical(before[name], model.state_dict()[name], name)
    assert ignores_found_inf(torch.device("mps"))
    assert not ignores_found_inf(torch.device("cuda"))


def test_the_optimisers_are_those_of_the_paper(tiny: Tiny) -> None:
    model = CycleGAN(tiny(), CPU)
    for optimizer in (model.opt_gen, model.opt_disc):
        assert optimizer.defaults["betas"] == (0.5, 0.999)
        assert optimizer.defaults["lr"] == 2e-4
        assert not optimizer.defaults["weight_decay"]


def test_the_average_follows_the_weights_and_without_decay_is_the_weights(tiny: Tiny) -> None:
    model = CycleGAN(tiny(), CPU)
    initial = next(model.ema_gen_ab.parameters()).clone()
    with torch.no_grad():
        trained = next(model.gen_ab.parameters()).add_(1.0)
    model.update_averages(step=10**6, decay=0.75)
    torch.testing.assert_close(next(model.ema_gen_ab.parameters()), initial + 0.25)
    model.update_averages(step=0, decay=0.999)  # early on the average moves faster
    torch.testing.assert_close(next(model.ema_gen_ab.parameters()), initial + 0.25 + 0.75 * 0.75)
    model.update_averages(step=10**6, decay=0.0)
    assert torch.equal(next(model.ema_gen_ab.parameters()), trained)


def run_at(step: int, config: Config) -> Run:
    """A run with ten steps an epoch."""
    return Run(Path(), config, {}, steps_per_epoch=10, step=step)


def test_the_rate_is_constant_and_then_falls_linearly_to_zero(tiny: Tiny) -> None:
    config = tiny(num_epochs=2, num_decay_epochs=3, learning_rate=1e-3)
    rates = [run_at(step, config).learning_rate for step in range(50)]
    assert rates[:21] == [1e-3] * 21
    falls = [before - after for before, after in zip(rates[20:], [*rates[21:], 0.0], strict=True)]
    assert falls == pytest.approx([1e-3 / 30] * 30)
    assert run_at(19, tiny(num_epochs=2, num_decay_epochs=0, learning_rate=1e-3)).learning_rate == 1e-3


def test_the_rate_grows_with_the_processes_where_asked_to(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert run_at(0, tiny(learning_rate=1e-3)).learning_rate == 1e-3
    assert run_at(0, tiny(learning_rate=1e-3, scale_learning_rate=True)).learning_rate == pytest.approx(4e-3)


def test_the_gradient_penalty_comes_in_each_eighth_step_and_counts_for_all(tiny: Tiny) -> None:
    weights = [run_at(step, tiny(r1_gamma=0.5, image_size=64)).r1_gamma for step in range(32)]
    assert weights == [4.0, *[0.0] * 7] * 4
    assert sum(weights) / 32 == 0.5


def test_the_gradient_penalty_grows_with_the_number_of_pixels(tiny: Tiny) -> None:
    weights = [run_at(0, tiny(r1_gamma=0.5, image_size=size)).r1_gamma for size in (32, 64, 128, 256)]
    assert weights == [1.0, 4.0, 16.0, 64.0]


def test_the_discriminators_rate_stays_in_proportion(tiny: Tiny) -> None:
    for own, expected in ((3e-4, 1.5e-4), (0.0, 1e-4)):  # 0 stands for that of the generators
        model = CycleGAN(tiny(learning_rate=2e-4, disc_learning_rate=own), CPU)
        model.set_learning_rate(1e-4)
        assert model.opt_gen.param_groups[0]["lr"] == 1e-4
        assert model.opt_disc.param_groups[0]["lr"] == pytest.approx(expected)


def test_all_that_discriminators_see_in_a_step_is_blurred_alike(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    kernels: list[Tensor | None] = []

    def note(images: Tensor, kernel: Tensor | None) -> Tensor:
        kernels.append(kernel)
        return images

    monkeypatch.setattr("training.diff_augment.blur", note)
    model, real = CycleGAN(tiny(), CPU), torch.rand(1, 3, 32, 32) * 2 - 1
    for _ in range(2):
        train.train_step(model, real, real, config=tiny(), r1_gamma=1.0)
    first, second = kernels[:6], kernels[6:]  # by two generators, two discriminators and two gradient penalties
    assert len(second) == 6
    assert all(kernel is first[0] for kernel in first)
    assert all(kernel is second[0] for kernel in second)
    assert first[0] is not second[0]


# --- Resume


def crash_in_step(monkeypatch: pytest.MonkeyPatch, fatal: int) -> None:
    """Let the run die in its `fatal`-th step from now on."""
    steps, original = [0], train.train_step

    def step(*arguments: Any, **knobs: Any) -> Any:
        steps[0] += 1
        if steps[0] == fatal:
            raise KeyboardInterrupt
        return original(*arguments, **knobs)

    monkeypatch.setattr(train, "train_step", step)


def test_a_crashed_run_resumed_mid_epoch_with_other_workers_equals_an_uninterrupted_one(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    knobs: dict[str, Any] = {"iso_noise_prob": 0.5, "rotate_degrees": 5.0, "batch_size": 2}
    assert train_here(tiny(run_name="whole", **knobs)) == 0
    with monkeypatch.context() as patch:
        crash_in_step(patch, fatal=5)
        assert train_here(tiny(run_name="crashed", **knobs)) == 130
    assert final_state(tiny(run_name="crashed"))["step"] == 3
    assert train_here(tiny(run_name="crashed", num_workers=2, **knobs)) == 0
    assert final_state(tiny(run_name="whole"))["step"] == 6
    assert_identical(final_state(tiny(run_name="whole")), final_state(tiny(run_name="crashed")))


def test_a_run_stopped_after_every_few_steps_equals_an_uninterrupted_one(tiny: Tiny) -> None:
    assert train_here(tiny(run_name="whole")) == 0
    for limit in (1, 4, 5, 9, 0):
        assert train_here(tiny(run_name="parts", max_steps=limit)) == 0
    assert_identical(final_state(tiny(run_name="whole")), final_state(tiny(run_name="parts")))


@pytest.mark.parametrize("kind", ["run", "checkpoint", "safetensors"])
def test_a_run_starts_from_trained_networks(
    tiny: Tiny, tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train_here(tiny(run_name="first", max_steps=3)) == 0
    first, folder = final_state(tiny(run_name="first")), Path(tiny().runs_dir, "first")
    export_weights(folder, tmp_path / "weights.safetensors")
    source = {
        "run": folder,
        "checkpoint": folder / "checkpoints" / "step_00000003.pt",
        "safetensors": tmp_path / "weights.safetensors",
    }[kind]
    config = tiny(run_name="second", init_from=str(source), max_steps=3)
    model = CycleGAN(config, CPU)
    fresh = copy.deepcopy(model.disc_a.state_dict())
    train.start_from_trained(model, config)
    for name in ("gen_ab", "gen_ba"):
        for network in (getattr(model, name), getattr(model, f"ema_{name}")):
            assert_identical(dict(network.state_dict()), dict(first[f"ema_{name}"]))
    assert_identical(dict(model.disc_a.state_dict()), dict(fresh if kind == "safetensors" else first["disc_a"]))
    capsys.readouterr()
    assert train_here(config) == 0
    taken = "generators only" if kind == "safetensors" else "generators and discriminators"
    assert f"starting from {source}: {taken}" in capsys.readouterr().out


def test_a_resumed_run_has_networks_of_its_own(tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    assert train_here(tiny(run_name="first", max_steps=3)) == 0
    source = Path(tiny().runs_dir, "first")
    config = tiny(run_name="second", init_from=str(source), max_steps=3)
    assert train_here(config) == 0
    shutil.rmtree(source)
    capsys.readouterr()
    assert train_here(replace(config, max_steps=6)) == 0
    assert "starting from" not in capsys.readouterr().out
    assert train_here(replace(config, init_from="", max_steps=9)) == 0


def test_discriminators_that_do_not_fit_or_are_not_finite_are_refused(
    tiny: Tiny, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train_here(tiny(run_name="first", max_steps=1)) == 0
    (path,) = checkpoint.list_checkpoints(Path(tiny().runs_dir, "first", "checkpoints"))
    state = checkpoint.read_checkpoint(path)
    for change, words in (
        ({"disc_a": state["gen_ab"]}, "holds a disc_a that does not fit its configuration"),
        (with_nan(state, "disc_b"), "holds numbers in disc_b that are not finite"),
    ):
        torch.save(state | change, path)
        assert train_here(tiny(run_name="second", max_steps=1, init_from=str(path))) == 1
        assert f"error: the file of --init-from {words}" in capsys.readouterr().err


def test_discriminators_of_another_kind_start_afresh(tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    old = OLD | {"appearance_flow": True, "upsampling": "resize", "disc_global": True}  # generators as today's
    assert train_here(tiny(run_name="first", max_steps=1, **old)) == 0
    source = str(Path(tiny().runs_dir, "first"))
    assert train_here(tiny(run_name="second", max_steps=1, init_from=source)) == 0
    assert f"starting from {source}: generators only" in capsys.readouterr().out


def test_generators_of_another_kind_are_refused_with_the_flags_that_fit(
    tiny: Tiny, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train_here(tiny(run_name="first", max_steps=1)) == 0
    source = str(Path(tiny().runs_dir, "first"))
    assert train_here(tiny(run_name="second", base_channels=8, global_skip=False, init_from=source)) == 1
    assert "to start from them, add\n--base-channels 4 --global-skip\n" in capsys.readouterr().err
    assert train_here(tiny(run_name="third", init_from="nowhere")) == 1
    assert "nowhere" in capsys.readouterr().err


def test_a_damaged_newest_checkpoint_is_named_and_skipped(tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    assert train_here(tiny(run_name="whole")) == 0
    assert train_here(tiny(run_name="hurt", max_steps=9)) == 0
    newest = Path(tiny().runs_dir, "hurt", "checkpoints", "step_00000009.pt")
    newest.write_bytes(newest.read_bytes()[:-1000])
    assert train_here(tiny(run_name="hurt")) == 0
    assert f"skipped: {newest} is" in capsys.readouterr().out
    assert_identical(final_state(tiny(run_name="whole")), final_state(tiny(run_name="hurt")))


def with_nan(state: dict[str, Any], *names: Any) -> dict[str, Any]:
    """The entry of these names, one within the other, of a checkpoint, whose first tensor holds NaN."""
    entry: Any = copy.deepcopy(state[names[0]])
    inner = entry
    for name in names[1:]:
        inner = inner[name]
    next(iter(inner.values())).fill_(torch.nan)
    return {names[0]: entry}


SENSELESS: dict[str, tuple[Callable[[dict[str, Any]], dict[str, Any]], str]] = {
    "a word for the step": (lambda state: {"step": "x"}, "invalid number of steps: x"),
    "a negative step": (lambda state: {"step": -5}, "invalid number of steps: -5"),
    "a score of NaN": (lambda state: {"best_score": float("nan")}, "invalid best_score: nan"),
    "an absurd strength": (lambda state: {"strength": {"ab": 1e9}}, "invalid strength"),
    "a template of one point": (lambda state: {"template": [[0.5, 0.5]]}, "invalid face template"),
    "no random state": (lambda state: {"random": {}}, "is not one of this program: it has no entry"),
    "data that are a list": (lambda state: {"data": []}, "is not one of this program: "),
    "an average of NaN": (lambda state: with_nan(state, "ema_gen_ab"), "numbers in ema_gen_ab that are not finite"),
    "a moment of NaN": (lambda state: with_nan(state, "opt_gen", "state", 0), "numbers in opt_gen that are not finite"),
    "moments of no weight": (lambda state: {"opt_disc": {"state": {99: state["opt_disc"]["state"][0]}}}, "do not fit"),
    "a network of another": (lambda state: {"gen_ab": state["disc_a"]}, "holds a gen_ab that does not fit"),
    "large images in the pool": (
        lambda state: {"pool_a": {"images": [torch.ones(3, 64, 64)], "random": state["pool_a"]["random"]}},
        "holds other images in pool_a",
    ),
}  # fmt: skip


def test_a_checkpoint_with_a_senseless_entry_is_refused(tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    assert train_here(tiny(max_steps=3)) == 0
    (path,) = checkpoint.list_checkpoints(Path(tiny().runs_dir, "tiny", "checkpoints"))
    state = checkpoint.read_checkpoint(path)
    for change, words in SENSELESS.values():
        torch.save(state | change(state), path)
        assert train_here(tiny()) == 1
        error = capsys.readouterr().err
        assert words in error
        assert error.endswith("delete it to resume from the one before, or start afresh with another --run-name\n")


def test_a_run_without_any_whole_checkpoint_is_not_begun_again(tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    assert train_here(tiny(max_steps=3)) == 0
    for path in Path(tiny().runs_dir, "tiny", "checkpoints").iterdir():
        path.write_bytes(b"")
    assert train_here(tiny()) == 1
    assert "no whole checkpoint is left" in capsys.readouterr().err


def test_other_settings_or_other_images_are_refused(
    tiny: Tiny, data_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train_here(tiny(max_steps=3)) == 0
    assert train_here(tiny(seed=1, lambda_cycle=2.0)) == 1
    assert "lambda_cycle 5.0 -> 2.0, seed 0 -> 1" in capsys.readouterr().err
    (data_dir / "train" / "asian" / "0000.png").unlink()
    assert train_here(tiny()) == 1
    error = capsys.readouterr().err
    assert "images of b '4 images" in error
    assert "put back the images with which it started" in error


def test_a_run_goes_on_where_the_same_images_have_another_name_and_on_another_device(
    tiny: Tiny, data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(data_dir, tmp_path / "moved")
    (tmp_path / "moved" / "train" / "european").rename(tmp_path / "moved" / "train" / "Faces of Europe")
    assert train_here(tiny(run_name="whole", max_steps=6)) == 0
    places: list[dict[str, Any]] = [
        {}, {"data_dir": "data/"}, {"data_dir": "./data"}, {"data_dir": "moved", "domain_a": "faces of europe"},
        {"runs_dir": "./runs/"}, {"device": "auto"},
    ]  # fmt: skip
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for step, place in enumerate(places, 1):
        assert train_here(tiny(run_name="wanders", max_steps=step, **place)) == 0
    assert_identical(final_state(tiny(run_name="whole")), final_state(tiny(run_name="wanders")))


def test_other_pictures_under_the_same_names_are_refused(
    tiny: Tiny, data_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train_here(tiny(max_steps=1)) == 0
    folder = data_dir / "train" / "asian"
    (folder / "0000.png").rename(folder / "x")
    (folder / "0001.png").rename(folder / "0000.png")
    (folder / "x").rename(folder / "0001.png")
    assert train_here(tiny(max_steps=2)) == 1
    assert "images of b '4 images, names " in capsys.readouterr().err


def test_a_finished_run_says_so_and_more_epochs_go_on(tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    assert train_here(tiny()) == 0
    capsys.readouterr()
    assert train_here(tiny()) == 0
    assert "is finished: 12 steps" in capsys.readouterr().out
    assert train_here(tiny(num_epochs=2)) == 0
    assert final_state(tiny())["step"] == 18


# --- Signals and failures


def test_an_image_that_vanishes_ends_the_run_with_its_name(tmp_path: Path) -> None:
    """Also with workers, which are deaf to signals."""
    make_folders(tmp_path / "dataset", num_a=2, num_b=2)
    process = start_train(*SMALL, "--num-workers", "2", "--num-epochs", "9999", "--log-every-steps", "1", cwd=tmp_path)
    assert process.stdout is not None
    assert process.stdout.readline()
    (tmp_path / "dataset" / "train" / "asian" / "0001.png").unlink()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert err.startswith("error: ")
    assert "0001.png" in err
    assert err.count("\n") == 1


def test_the_demo_faces_are_unpacked_only_to_their_own_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert train_here(replace(PRESETS["demo"], data_dir="my_facse")) == 1
    assert "--data-dir my_facse does not exist" in capsys.readouterr().err
    assert not (tmp_path / "my_facse").exists()


@pytest.mark.parametrize(("number", "to_group"), [(signal.SIGINT, True), (signal.SIGTERM, False)])
def test_a_signal_saves_and_leaves_no_worker_behind(tmp_path: Path, number: signal.Signals, to_group: bool) -> None:
    make_folders(tmp_path / "dataset")
    process = start_train(*SMALL, "--num-workers", "2", "--num-epochs", "9999", "--log-every-steps", "1", cwd=tmp_path)
    assert process.stdout is not None
    while not process.stdout.readline().startswith("step 2/"):
        assert process.poll() is None, process.communicate()
    start = time.perf_counter()
    if to_group:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert time.perf_counter() - start < 10
    assert process.returncode == 128 + number
    assert f"{number.name}: saved after step" in out, err
    assert "Traceback" not in err
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)  # nobody of the group is left
    saved = checkpoint.list_checkpoints(tmp_path / "runs" / "default" / "checkpoints")
    assert f"saved after step {checkpoint.checkpoint_step(saved[-1])};" in out


def test_a_loss_that_is_not_finite_stops_the_run_with_good_weights(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls, original = [0], losses.cycle_loss

    def cycle_loss(rec: Tensor, real: Tensor) -> Tensor:
        calls[0] += 1
        return original(rec, real) * (float("nan") if calls[0] == 9 else 1)  # two calls a step: the fifth's cycle_a

    monkeypatch.setattr(train, "cycle_loss", cycle_loss)
    assert train_here(tiny()) == 1
    error = capsys.readouterr().err
    assert "stopped after step 6, because these values became infinite or NaN: loss/gen, loss/cycle_a" in error
    state = final_state(tiny())
    assert state["step"] == 3
    assert all(torch.isfinite(weights).all() for weights in state["gen_ab"].values())


def test_without_data_train_says_in_five_lines_what_to_do(tmp_path: Path) -> None:
    done = run_train(cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("error: no usable images in dataset/train/european")
    assert "python train.py --preset demo" in done.stderr
    assert done.stderr.count("\n") <= 5
    assert done.stdout == ""


# --- What a run writes


def test_a_run_writes_what_the_readme_promises(tiny: Tiny) -> None:
    assert train_here(tiny(sample_every_steps=6, keep_every_epochs=1, num_epochs=3)) == 0
    run = Path(tiny().runs_dir, "tiny")
    assert from_dict(json.loads((run / "config.json").read_text())) == tiny(
        sample_every_steps=6, keep_every_epochs=1, num_epochs=3
    )
    steps = [checkpoint.checkpoint_step(path) for path in checkpoint.list_checkpoints(run / "checkpoints")]
    assert steps == [6, 12, 18, 21, 24]  # every epoch of six steps for good, and the newest three
    assert sorted(path.name for path in (run / "samples").iterdir()) == [f"step_{s:08d}.png" for s in range(0, 25, 6)]
    with Image.open(run / "samples" / "step_00000024.png") as grid:
        assert grid.size == (4 * (6 * 34 + 2), heading_height() + 4 * (2 * 34 + 2))  # enlarged, below its titles
    with open(run / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == list(range(2, 25, 2))
    names = {f"loss/{name}" for name in ("gen", "gan_ab", "gan_ba", "cycle_a", "cycle_b", "pair_a", "pair_b",
                                         "identity_a", "identity_b", "disc", "disc_a", "disc_b")}  # fmt: skip
    names |= {f"score/{name}" for name in ("real_a", "fake_a", "real_b", "fake_b")}
    names |= {"grad_norm/gen", "grad_norm/disc", "learning_rate", "images_per_second", "step"}
    assert rows[0].keys() == names


def test_a_finished_run_makes_a_film_and_says_what_to_do_next(tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("av")
    assert train_here(tiny(max_steps=1, run_name="to see")) == 0
    for limit in (4, 4):  # a resumed run, and one that has nothing left to do
        (Path(tiny().runs_dir) / "to see" / "samples.mp4").unlink()
        capsys.readouterr()
        assert train_here(tiny(max_steps=limit, run_name="to see")) == 0
        *_, film, translate_with_it, look_at_it = capsys.readouterr().out.splitlines()
        assert film == f"the samples as a film: {Path(tiny().runs_dir) / 'to see' / 'samples.mp4'}"
        words = shlex.split(translate_with_it.split(": ")[1])
        assert words[:2] == ["python", "translate.py"]
        assert translate.main([*words[2:], "--out", str(Path(tiny().runs_dir, "out"))]) == 0
        assert look_at_it.startswith(f"to look at it: tensorboard --logdir {tiny().runs_dir} and open http://localhost")


def test_the_first_sample_of_a_generator_with_skip_is_its_input(tiny: Tiny) -> None:
    assert train_here(tiny(max_steps=1)) == 0
    with Image.open(Path(tiny().runs_dir, "tiny", "samples", "step_00000000.png")) as grid:
        left, top, side = 8, heading_height() + 8, 128  # 32 px and borders of 2 px, enlarged four times
        cells = [grid.crop((x, top, x + side, top + side)).tobytes() for x in range(left, 6 * 136, 136)]
    assert cells[0] == cells[1] == cells[2]
    assert cells[3] == cells[4] == cells[5]
    assert cells[0] != cells[3]


def test_files_that_are_left_out_are_listed_and_the_run_goes_on(
    tiny: Tiny, data_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for i in range(12):
        (data_dir / "train" / "european" / f"bad {i}.jpg").write_bytes(b"")
    assert train_here(tiny(max_steps=1)) == 0
    shown = capsys.readouterr().out
    assert f"left out 12 of 18 images in {data_dir / 'train' / 'european'}:" in shown
    assert shown.count("empty file") == 10
    assert (Path(tiny().runs_dir) / "tiny" / "left_out.txt").read_text().count("empty file") == 12


def test_true_pairs_are_measured_against_doing_nothing(
    tiny: Tiny, data_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for i in (4, 5):
        (data_dir / "test" / "european" / f"{i:04d}.png").unlink()
    assert train_here(tiny(max_steps=1, learning_rate=1e-9, paired_test=True)) == 0
    shown = capsys.readouterr().out
    assert "on 4 held-out pairs" in shown
    assert shown.count(", 1.00 times the error of doing nothing") == 2
    (data_dir / "test" / "european" / "0000.png").unlink()
    assert train_here(tiny(run_name="other", paired_test=True)) == 1
    assert "equal names" in capsys.readouterr().err
    (data_dir / "test").rename(data_dir / "elsewhere")  # without a test split nothing is held out
    assert train_here(tiny(run_name="other", paired_test=True)) == 1


def test_training_on_pairs_needs_images_of_equal_names(
    tiny: Tiny, data_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train_here(tiny(max_steps=1, lambda_pair=1.0)) == 1
    assert "equal names in both domains; 0004.png is in one of them only" in capsys.readouterr().err
    for i in (4, 5):
        (data_dir / "train" / "european" / f"{i:04d}.png").unlink()
    assert train_here(tiny(max_steps=1, lambda_pair=1.0)) == 0


def test_without_test_images_the_samples_show_training_images(tiny: Tiny, data_dir: Path) -> None:
    (data_dir / "test").rename(data_dir / "elsewhere")
    assert train_here(tiny(max_steps=1)) == 0


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_trains(preset: str, tiny: Tiny) -> None:
    small = tiny(run_name=preset)
    knobs = {name: getattr(small, name) for name in ("data_dir", "runs_dir", "image_size", "base_channels")}
    config = replace(PRESETS[preset], max_steps=2, paired_test=False, num_workers=0, **knobs)
    assert train_here(config) == 0


@pytest.mark.parametrize(("amp", "inside"), [(True, torch.bfloat16), (False, torch.float32)])
def test_mixed_precision_computes_in_bfloat16_and_keeps_weights_in_float32(
    tiny: Tiny, amp: bool, inside: torch.dtype
) -> None:
    model = CycleGAN(tiny(), CPU, amp=amp)
    seen = set()
    for network in (model.gen_ab.down, model.gen_ba.down, model.disc_a.patches, model.disc_b.patches):
        network[0].register_forward_hook(lambda _, __, output: seen.add(output.dtype))
    real = torch.rand(1, 3, 32, 32) * 2 - 1
    reported = train.train_step(model, real, real, config=tiny())
    assert seen == {inside}
    assert {value.dtype for value in reported.values()} == {torch.float32}
    assert {p.dtype for p in (*model.gen_ab.parameters(), *model.disc_a.parameters())} == {torch.float32}


def test_the_best_checkpoint_of_an_evaluated_run_is_kept(tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    config = tiny(num_epochs=4, num_decay_epochs=0, evaluate_every_epochs=1)
    assert train_here(config) == 0
    shown = re.findall(r"evaluation after step (\d+): .* score ([0-9.]+)", capsys.readouterr().out)
    assert [int(step) for step, _ in shown] == [6, 12, 18, 24]
    best = max(shown, key=lambda pair: float(pair[1]))
    (path,) = (Path(config.runs_dir, config.run_name) / "best").iterdir()
    assert float(dict(shown)[str(checkpoint.checkpoint_step(path))]) == float(best[1])
    load_generator(path, "ab")


@pytest.mark.slow
def test_evaluations_do_not_change_what_is_learned_and_survive_a_resume(tiny: Tiny) -> None:
    knobs: dict[str, Any] = {"num_epochs": 3, "num_decay_epochs": 0}
    assert train_here(tiny(run_name="plain", **knobs)) == 0
    assert train_here(tiny(run_name="examined", evaluate_every_epochs=1, max_steps=7, **knobs)) == 0
    assert train_here(tiny(run_name="examined", evaluate_every_epochs=1, **knobs)) == 0
    plain, examined = final_state(tiny(run_name="plain")), final_state(tiny(run_name="examined"))
    assert plain.pop("best_score") is None
    assert examined.pop("best_score") > 0
    assert_identical(plain, examined)


def test_the_identity_loss_stays_or_falls_to_zero(tiny: Tiny) -> None:
    assert [run_at(step, tiny()).identity_share for step in (0, 500)] == [1, 1]
    falling = tiny(identity_epochs=2)
    assert [run_at(step, falling).identity_share for step in (0, 5, 20, 30)] == [1, 0.75, 0, 0]


# --- Long checks


def run_until_killed(config: Config, save_call: int) -> None:
    """Train; die in the `save_call`-th replacement of a file, where that is not 0."""
    calls, original = [0], os.replace

    def replace_or_die(*arguments: Any) -> None:
        calls[0] += 1
        if calls[0] == save_call:
            os.kill(os.getpid(), signal.SIGKILL)
        original(*arguments)

    os.replace = replace_or_die  # type: ignore[assignment]
    os._exit(train_here(config))


@pytest.mark.slow
def test_thirty_kills_at_random_moments_end_on_the_weights_of_an_undisturbed_run(tiny: Tiny) -> None:
    knobs: dict[str, Any] = {"num_epochs": 100, "num_decay_epochs": 10, "num_workers": 1, "checkpoint_every_steps": 2}
    assert train_here(tiny(run_name="whole", **knobs)) == 0
    moments, context = random.Random(0), fresh_processes()
    kills = 0
    for attempt in range(400):
        in_save = moments.randrange(2, 4) if attempt % 3 == 0 else 0
        config = tiny(run_name="killed", **knobs)
        process = context.Process(target=run_until_killed, args=(config, in_save))
        process.start()
        process.join(moments.uniform(0.3, 0.9) if not in_save and kills < 30 else 120)
        process.kill()
        process.join()
        kills += process.exitcode == -signal.SIGKILL
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
    assert kills >= 30
    assert_identical(final_state(tiny(run_name="whole")), final_state(tiny(run_name="killed")))


@pytest.mark.slow
def test_a_short_demo_run_moves_held_out_faces_towards_the_truth(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By more than the spread of three seeds, in both directions, measured on true pairs that training never saw."""
    monkeypatch.chdir(tmp_path)
    shares: dict[str, list[float]] = {"european to asian": [], "asian to european": []}
    for seed in range(3):
        config = replace(
            PRESETS["demo"], run_name=f"seed{seed}", seed=seed, max_steps=500, sample_every_steps=1000,
            checkpoint_every_steps=1000, device="cpu",
        )  # fmt: skip
        assert train_here(config) == 0
        shown = capsys.readouterr().out
        assert "warning: " not in shown
        for direction in shares:
            line = next(line for line in shown.splitlines() if line.strip().startswith(direction))
            shares[direction].append(float(line.split(", ")[1].split()[0]))
    for direction, values in shares.items():
        assert 1 - sum(values) / 3 > max(values) - min(values), (direction, values)
        assert max(values) < 1, (direction, values)
