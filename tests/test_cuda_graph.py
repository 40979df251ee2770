"""What a CUDA graph would record, run without a GPU: it equals the ordinary step, and reads nothing on the host."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import product
from typing import Any

import pytest
import torch
from conftest import Tiny, train_here
from test_train import CPU, assert_identical
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import train
from config import PRESETS, Config
from training import cuda_graph
from training.cuda_graph import GraphedStep, StaticStep, fastest_step
from training.draws import Tape, drawn
from training.model import CycleGAN

Images = tuple[Tensor, Tensor]
AUGMENTED: dict[str, Any] = {"diff_augment": "all", "spectral_norm": True, "lambda_identity": 0.5,
                             "lambda_pair": 1.0}  # fmt: skip
KNOBS = {name: replace(config, image_size=32, base_channels=4, num_residuals=1) for name, config in PRESETS.items()}
KNOBS["augmented"] = replace(KNOBS["default"], **AUGMENTED)
HOST_READS = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "equal", "lift_fresh")
RANDOM = ("rand", "randint", "randn", "randperm", "bernoulli", "uniform", "normal", "multinomial")
METHODS = ("item", "tolist", "numpy", "cpu", "__bool__", "__int__", "__float__", "__index__")


def small(name: str) -> Config:
    config = KNOBS[name]
    return replace(config, pool_size=min(3, config.pool_size), device="cpu")


def images_of(step: int, *, batch_size: int) -> Images:
    """Bytes, as the loader delivers them."""
    numbers = torch.Generator().manual_seed(step)
    real_a, real_b = torch.randint(0, 256, (2, batch_size, 3, 32, 32), dtype=torch.uint8, generator=numbers)
    return real_a, real_b


def weights_of(step: int, config: Config) -> dict[str, float]:
    """Each fourth step has the gradient penalty."""
    return {"identity_share": 1.0, "r1_gamma": config.r1_gamma if step % 4 == 0 else 0.0}


def step_of(model: CycleGAN, config: Config) -> Callable[..., dict[str, Tensor]]:
    return partial(train.step_on_pixels, model, config=config)


class StaticSteps:
    """The steps of a model as a GPU would repeat them: each kind is recorded once."""

    def __init__(self, step: Callable[..., dict[str, Tensor]]) -> None:
        self.step = step
        self.kinds: dict[float, StaticStep] = {}

    def __call__(self, *images: Tensor, identity_share: float, r1_gamma: float) -> dict[str, Tensor]:
        if r1_gamma in self.kinds:
            self.kinds[r1_gamma].fill((images[0], images[1]))
        else:
            step = partial(self.step, identity_share=identity_share, r1_gamma=r1_gamma)
            self.kinds[r1_gamma] = StaticStep(step, (images[0], images[1]), CPU)
        return self.kinds[r1_gamma].run()


def nine_steps(config: Config, batch_size: int, *, is_static: bool) -> tuple[dict[str, Any], list[dict[str, Tensor]]]:
    """The state after nine steps, with saving and loading in between, and what each step reported."""
    torch.manual_seed(0)
    reported, saved = list[dict[str, Tensor]](), dict[str, Any]()
    for steps in (range(5), range(5, 9)):
        random_state = torch.get_rng_state()
        model = CycleGAN(config, CPU)
        torch.set_rng_state(random_state)
        if saved:
            model.load_state_dict(copy.deepcopy(saved))
        step = StaticSteps(step_of(model, config)) if is_static else step_of(model, config)
        for number in steps:
            model.set_learning_rate(1e-3 / (1 + number))
            reported.append(step(*images_of(number, batch_size=batch_size), **weights_of(number, config)))
        saved = model.state_dict()
    return saved | {"random": torch.get_rng_state()}, reported


@pytest.mark.parametrize(("name", "batch_size"), [*product(PRESETS, (1, 3, 4)), ("augmented", 3)])
def test_the_static_step_equals_the_ordinary_step_bit_for_bit(name: str, batch_size: int) -> None:
    expected, actual = (nine_steps(small(name), batch_size, is_static=is_static) for is_static in (False, True))
    assert_identical(expected, actual)


class NoHostReads(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """An error for each operation that waits for the device, draws random numbers or copies from the host."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__.rstrip("_")
        has_mask = name in ("index", "index_put") and any(x is not None and x.dtype == torch.bool for x in args[1])
        if name in (*HOST_READS, *RANDOM) or has_mask:
            raise AssertionError(f"the step calls {func}")
        return func(*args, **(kwargs or {}))


class NoHostMethods(TorchFunctionMode):
    """The same for methods of tensors that need no operation on a CPU."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert getattr(func, "__name__", "") not in METHODS, f"the step calls {func}"
        return func(*args, **(kwargs or {}))


@contextmanager
def no_host() -> Iterator[None]:
    with NoHostReads(), NoHostMethods():  # type: ignore[no-untyped-call]
        yield


@pytest.mark.parametrize("name", KNOBS)
def test_the_static_step_reads_nothing_on_the_host_and_draws_nothing(name: str) -> None:
    config = small(name)
    model = CycleGAN(config, CPU)
    for r1_gamma in {0.0, config.r1_gamma}:
        step = partial(step_of(model, config), identity_share=1.0, r1_gamma=r1_gamma)
        static = StaticStep(step, images_of(0, batch_size=3), CPU)
        static.run()
        static.fill(images_of(1, batch_size=3))
        before = copy.deepcopy(model.gen_ab.state_dict())
        with no_host():
            static.run()
        assert any(not torch.equal(weights, before[key]) for key, weights in model.gen_ab.state_dict().items())


@pytest.mark.parametrize(
    "read",
    [lambda x: x.item(), lambda x: bool(x > 0), lambda x: x.tolist(), lambda x: x[x > 0], lambda x: torch.rand(1),
     lambda x: x + torch.tensor([1.0])],
)  # fmt: skip
def test_the_modes_notice_what_a_graph_cannot_hold(read: Callable[[Tensor], object]) -> None:
    ones = torch.ones(1)
    with pytest.raises(AssertionError, match="the step calls"), no_host():
        read(ones)


def test_every_run_uses_the_images_and_random_numbers_of_its_own() -> None:
    config = replace(small("augmented"), pool_size=1)
    model = CycleGAN(config, CPU)
    static = StaticStep(partial(step_of(model, config), **weights_of(1, config)), images_of(0, batch_size=1), CPU)
    static.run()
    start = copy.deepcopy(model.state_dict())
    results = []
    for seed, images in ((0, 1), (0, 1), (1, 1), (0, 2)):
        model.load_state_dict(copy.deepcopy(start))
        torch.manual_seed(seed)
        static.fill(images_of(images, batch_size=1))
        results.append(static.run()["loss/disc"])
    assert results[0] == results[1]
    assert len(set(map(float, results))) == 3


def test_a_tape_refuses_a_step_that_draws_more_or_less_than_the_recorded_one() -> None:
    tape = Tape(CPU)
    with tape.run():
        first = drawn(lambda: torch.rand(2))
    with tape.run():
        assert drawn(lambda: torch.zeros(2)) is first
    with pytest.raises(RuntimeError, match="more random tensors"), tape.run():
        torch.stack([drawn(lambda: torch.rand(2)) for _ in range(2)])
    with pytest.raises(RuntimeError, match="drew 0 random tensors, and 1 when recorded"), tape.run():
        pass
    assert drawn(lambda: torch.zeros(1)).item() == 0  # outside of the blocks there is no tape


# --- When there is a graph


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> list[StaticStep]:
    """Without a GPU: static steps in place of the captured ones, which the fixture lists."""
    captured = list[StaticStep]()

    class Replay:
        def __init__(self, static: StaticStep, optimizers: object, pool: object) -> None:
            captured.append(static)
            self.replay = static.run

    monkeypatch.setattr(cuda_graph, "CapturedStep", Replay)
    monkeypatch.setattr(cuda_graph, "in_side_stream", lambda step: step())
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    return captured


def run_of_steps(config: Config, *, is_graphed: bool, sizes: list[int]) -> tuple[dict[str, Any], list[str]]:
    """The state after steps with batches of these sizes, and what was said."""
    torch.manual_seed(0)
    said = list[str]()
    model = CycleGAN(config, CPU)
    step = step_of(model, config)
    graphed: Callable[..., object] = GraphedStep(step, model, 2, say=said.append) if is_graphed else step
    for number, size in enumerate(sizes):
        graphed(*images_of(number, batch_size=size), **weights_of(number, config))
    return model.state_dict() | {"random": torch.get_rng_state()}, said


def test_each_kind_of_step_is_captured_once_and_a_short_batch_runs_as_it_is(stand_in: list[StaticStep]) -> None:
    sizes = [2, 2, 1] * 4
    expected, _ = run_of_steps(small("default"), is_graphed=False, sizes=sizes)
    actual, said = run_of_steps(small("default"), is_graphed=True, sizes=sizes)
    assert_identical(expected, actual)
    assert said == ["some steps run without the CUDA graph: the last batch of an epoch is smaller"]
    assert len(stand_in) == 1  # of the steps with the penalty only two were of full size
    run_of_steps(small("default"), is_graphed=True, sizes=[2] * 13)
    assert len(stand_in) == 3


def test_after_a_failed_capture_the_same_steps_go_on_without_a_graph(
    stand_in: list[StaticStep], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    monkeypatch.setattr(cuda_graph, "CapturedStep", fail)
    expected, _ = run_of_steps(small("augmented"), is_graphed=False, sizes=[2] * 9)
    actual, said = run_of_steps(small("augmented"), is_graphed=True, sizes=[2] * 9)
    assert_identical(expected, actual)
    (line,) = said
    assert line.endswith("without a CUDA graph, which failed: operation not permitted when stream is capturing")


def test_a_fading_identity_loss_runs_without_a_graph_until_it_is_gone(stand_in: list[StaticStep]) -> None:
    config = small("paper")
    model, said = CycleGAN(config, CPU), list[str]()
    step = GraphedStep(step_of(model, config), model, 1, say=said.append)
    for number in range(10):
        step(*images_of(number, batch_size=1), identity_share=max(0.0, 1 - number / 5), r1_gamma=0.0)
    assert said == ["some steps run without the CUDA graph: the weight of the identity loss changes"]
    assert len(stand_in) == 1


@pytest.mark.parametrize("cuda_graph", ["auto", "off", "on"])
def test_on_a_cpu_and_among_several_processes_the_step_stays_as_it_is(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, cuda_graph: Any
) -> None:
    config, said = tiny(cuda_graph=cuda_graph), list[str]()
    model = CycleGAN(config, CPU)
    step = step_of(model, config)
    assert fastest_step(step, model, config, say=said.append) is step
    model.device = torch.device("cuda")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert fastest_step(step, model, config, say=said.append) is step
    reasons = ["the step runs on a CPU or on another GPU than NVIDIA's", "several processes train together"]
    assert said == [f"without a CUDA graph: {reason}" for reason in reasons if cuda_graph == "on"]


@pytest.mark.parametrize(
    ("knobs", "is_graphed"),
    [({}, True), ({"cuda_graph": "off"}, False), ({"compile": True}, False),
     ({"cuda_graph": "on", "compile": True}, True)],
)  # fmt: skip
def test_one_gpu_repeats_the_step_unless_told_otherwise_or_compiled(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, knobs: dict[str, Any], is_graphed: bool
) -> None:
    model = CycleGAN(tiny(), CPU)
    model.device = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    step = fastest_step(step_of(model, tiny()), model, tiny(**knobs), say=print)
    assert isinstance(step, GraphedStep) == is_graphed


def test_a_run_that_asks_for_a_graph_says_once_why_there_is_none(
    tiny: Tiny, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train_here(tiny(cuda_graph="on", max_steps=2)) == 0
    assert capsys.readouterr().out.count("without a CUDA graph: the step runs on a CPU") == 1
