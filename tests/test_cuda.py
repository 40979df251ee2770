"""A GPU computes the same as a CPU; these tests are skipped where there is no GPU."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from conftest import Tiny, make_image, train_here
from test_train import CPU, assert_identical, difference, final_state, networks_of

import train
from config import Config
from generator_model import Generator
from photos.translator import Translator
from training.cuda_graph import GraphedStep, Losses, Step
from training.model import CycleGAN

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
GPU = torch.device("cuda")


def test_steps_on_a_gpu_equal_steps_on_a_cpu(tiny: Tiny) -> None:
    """The comparison is in float64, which keeps rounding errors far below the tolerance."""
    # With the global skip the L1 losses would start at 0, where their gradient jumps.
    config = tiny(lambda_identity=0.5, recompute=True, global_skip=False)
    on_gpu, on_cpu = CycleGAN(config, GPU), CycleGAN(replace(config, recompute=False), CPU)
    for own, other in zip(networks_of(on_gpu).values(), networks_of(on_cpu).values(), strict=True):
        own.double().load_state_dict(other.double().state_dict())
    for step in range(3):
        real_a, real_b = torch.rand(2, 1, 3, 32, 32, dtype=torch.float64) * 2 - 1
        for model, device in ((on_gpu, GPU), (on_cpu, CPU)):
            torch.manual_seed(step)  # draws the same blur for both
            train.train_step(model, real_a.to(device), real_b.to(device), config=config, r1_gamma=1.0)
    for own, other in zip(networks_of(on_gpu).values(), networks_of(on_cpu).values(), strict=True):
        assert difference(own.to(CPU), other, 1e-8) < 1e-8


@pytest.mark.parametrize("amp", ["bf16", "off"])
def test_a_run_on_a_gpu_stops_and_resumes(tiny: Tiny, amp: str) -> None:
    assert train_here(tiny(device="cuda", amp=amp, max_steps=3, num_workers=1)) == 0
    assert train_here(tiny(device="cuda", amp=amp, max_steps=5, num_workers=1)) == 0
    state = final_state(tiny())
    assert state["step"] == 5
    assert len(state["random"]["cuda"]) == torch.cuda.device_count()
    assert all(torch.isfinite(weights).all() for weights in state["gen_ab"].values())


def test_a_loss_that_is_not_finite_does_not_change_the_weights_on_a_gpu(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, config = CycleGAN(tiny(), GPU, amp=True), tiny()
    real = torch.rand(1, 3, 32, 32, device=GPU) * 2 - 1
    train.train_step(model, real, real, config=config)
    before = {name: weights.clone() for name, weights in model.gen_ab.state_dict().items()}
    monkeypatch.setattr(train, "cycle_loss", lambda image, target: (image - target).mean() * float("nan"))
    reported = train.train_step(model, real, real, config=config)
    assert not torch.isfinite(reported["loss/gen"])
    assert_identical(before, dict(model.gen_ab.state_dict()))


def test_a_translation_on_a_gpu_is_close_to_one_on_a_cpu() -> None:
    torch.manual_seed(0)
    generator, photo = Generator(num_residuals=1, base_channels=8), make_image(0, (64, 64))
    on_cpu, on_gpu = (np.array(Translator(generator, 64, device=device)(photo), dtype=float) for device in (CPU, GPU))
    assert np.abs(on_cpu - on_gpu).mean() < 0.01 * 127.5


def forty_steps(config: Config, *, is_graphed: bool, reads: bool = False) -> tuple[list[Losses], list[str]]:
    """What forty steps in float64 report, each eighth with the gradient penalty; if `reads`, each waits for the GPU."""
    torch.manual_seed(0)
    model, said = CycleGAN(config, GPU), list[str]()
    for network in networks_of(model).values():
        network.double()

    def step(*images: torch.Tensor, identity_share: float, r1_gamma: float) -> Losses:
        losses = train.train_step(model, *images, config=config, identity_share=identity_share, r1_gamma=r1_gamma)
        return losses | {"loss/gen": losses["loss/gen"] * float(losses["loss/gen"].item() > 0)} if reads else losses

    taken: Step = GraphedStep(step, model, 2, say=said.append) if is_graphed else step
    reported = []
    for number in range(40):
        real_a, real_b = torch.rand(2, 2 if number % 10 else 1, 3, 32, 32, dtype=torch.float64) * 2 - 1
        model.set_learning_rate(2**-12 / (1 + number // 8))  # a number that the graph's float32 holds, or nearly
        r1_gamma = 0.0 if number % 8 else 1.0
        reported.append(taken(real_a.to(GPU), real_b.to(GPU), identity_share=1.0, r1_gamma=r1_gamma))
    return reported, said


@pytest.mark.parametrize("policy", ["none", "all"])
def test_steps_of_a_cuda_graph_equal_ordinary_ones_and_a_short_batch_fits_between_them(tiny: Tiny, policy: str) -> None:
    config = tiny(global_skip=False, lambda_identity=0.5, diff_augment=policy)
    expected, _ = forty_steps(config, is_graphed=False)
    actual, said = forty_steps(config, is_graphed=True)
    assert said == ["some steps run without the CUDA graph: the last batch of an epoch is smaller"]
    for own, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-5, atol=1e-6)


def test_a_step_that_waits_for_the_gpu_goes_on_without_a_graph(tiny: Tiny) -> None:
    config = tiny(global_skip=False)
    expected, _ = forty_steps(config, is_graphed=False)
    actual, said = forty_steps(config, is_graphed=True, reads=True)
    assert "training goes on without a CUDA graph, which failed: " in said[-1]
    for own, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("amp", ["bf16", "off"])
def test_a_run_with_a_cuda_graph_stops_and_resumes(tiny: Tiny, amp: str, capsys: pytest.CaptureFixture[str]) -> None:
    config = partial(tiny, device="cuda", amp=amp, cuda_graph="on", num_epochs=9, num_workers=1, log_every_steps=1)
    assert train_here(config(max_steps=30)) == 0
    assert train_here(config(max_steps=50)) == 0
    assert train_here(config(max_steps=55, cuda_graph="off")) == 0
    state = final_state(tiny())
    assert state["step"] == 55
    assert type(state["opt_gen"]["param_groups"][0]["lr"]) is float
    assert all(torch.isfinite(weights).all() for weights in state["gen_ab"].values())
    assert "without a CUDA graph" not in capsys.readouterr().out
