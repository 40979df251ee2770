"""CycleGAN: both generators and discriminators, the generators' averages, the optimisers and the image pools."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from config import Config
from discriminator_model import Discriminator
from generator_model import Generator
from training import distributed
from training.checkpoint import MODEL_ENTRIES, CheckpointError
from training.losses import ImagePool
from training.torch_file import UnusableFileError, check_finite, fitting_tensors, plain_tensors
from utils import fast_layout, uses_bf16

BETA2 = 0.999  # Adam's decay rate of the squared gradient's mean, as in the paper's code.
EMA_WARM_UP = 3  # The decay of the generators' average is at most steps / (steps + EMA_WARM_UP).

Network = TypeVar("Network", bound=nn.Module)
Finish = Callable[[], dict[str, Tensor]]  # It takes the step that was begun, and returns its scalars by name.


class CycleGAN:
    """Everything that a training step changes. Each attribute in MODEL_ENTRIES is an entry of the checkpoint.

    Args:
        config: describes the networks, the optimisers and the pools.
        device: the networks' device.
        amp: compute in bfloat16 where autocast considers it safe.
    """

    def __init__(self, config: Config, device: torch.device, *, amp: bool = False) -> None:
        self.device, self.amp, self.image_side = device, amp, config.image_size
        self.disc_rate = (config.disc_learning_rate or config.learning_rate) / config.learning_rate
        self.gen_ab, self.gen_ba = (self._place(Generator(**config.generator), config) for _ in range(2))
        self.disc_a, self.disc_b = (self._place(Discriminator(**config.discriminator), config) for _ in range(2))
        self.ema_gen_ab = copy.deepcopy(self.gen_ab).requires_grad_(False)
        self.ema_gen_ba = copy.deepcopy(self.gen_ba).requires_grad_(False)
        self.opt_gen = build_adam((self.gen_ab, self.gen_ba), config)
        self.opt_disc = build_adam((self.disc_a, self.disc_b), config)
        seed = 2 * config.seed + (distributed.rank() << 64)  # other processes' seeds lie above all that users can give
        self.pool_a, self.pool_b = ImagePool(config.pool_size, seed), ImagePool(config.pool_size, seed + 1)
        if config.compile:
            for network in (self.gen_ab, self.gen_ba, self.disc_a, self.disc_b):
                network.compile(dynamic=False)  # discriminators see batches of two sizes

    def _place(self, network: Network, config: Config) -> Network:
        """The network on the device, in the memory format in which it is fastest there."""
        layout = fast_layout(self.device, self.amp, config.compile)
        return network.to(self.device).to(memory_format=layout)  # type: ignore[call-overload, no-any-return]

    def autocast(self) -> AbstractContextManager[Any]:
        """Mixed precision inside the block if `amp` asks for it."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.amp)

    def set_learning_rate(self, learning_rate: float) -> None:
        """Set the generators' learning rate, and the discriminators', which stays in proportion to it."""
        for group in self.opt_gen.param_groups:
            group["lr"] = learning_rate
        for group in self.opt_disc.param_groups:
            group["lr"] = learning_rate * self.disc_rate

    @torch.no_grad()
    def update_averages(self, step: int, decay: float) -> None:
        """Move the averaged generators towards the trained ones: ema <- decay ema + (1 - decay) weights.

        Early on the decay is smaller, so that the average covers about the last third of the steps so far.
        """
        decay = min(decay, (1 + step) / (1 + step + EMA_WARM_UP))
        for average, network in ((self.ema_gen_ab, self.gen_ab), (self.ema_gen_ba, self.gen_ba)):
            torch._foreach_lerp_(list(average.parameters()), list(network.parameters()), 1 - decay)

    def start_from(self, networks: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Load trained networks, state dicts by name such as "gen_ab"; the averages start from the generators.

        CheckpointError where one does not fit or is not finite.
        """
        for name, state in networks.items():
            try:
                load_network(getattr(self, name), state, name=name)
            except UnusableFileError as error:
                raise CheckpointError(f"the file of --init-from {error}") from error
        for average, network in ((self.ema_gen_ab, self.gen_ab), (self.ema_gen_ba, self.gen_ba)):
            average.load_state_dict(network.state_dict())

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name).state_dict() for name in MODEL_ENTRIES}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the entries of a checkpoint; an exception, often UnusableFileError, where they cannot be used."""
        for name in MODEL_ENTRIES:
            own = getattr(self, name)
            if isinstance(own, nn.Module):
                load_network(own, state[name], name=name)
            elif isinstance(own, ImagePool):
                load_pool(own, state[name], side=self.image_side, name=name)
            else:
                load_adam(own, state[name], name=name)


def in_bf16(config: Config, device: torch.device) -> bool:
    """Whether this configuration trains in bfloat16 on this device."""
    return uses_bf16(config.amp, device, image_size=config.image_size, base_channels=config.base_channels)


def build_adam(networks: Sequence[nn.Module], config: Config) -> torch.optim.Adam:
    """One optimiser for the parameters of several networks."""
    parameters = [parameter for network in networks for parameter in network.parameters()]
    return torch.optim.Adam(parameters, config.learning_rate, (config.beta1, BETA2), fused=True)


def load_network(network: nn.Module, state: Any, *, name: str) -> None:
    """Load a network's weights; UnusableFileError unless they fit and are finite."""
    tensors = fitting_tensors(network, state, name=name)
    check_finite(tensors, name=name)
    network.load_state_dict(tensors)


def load_adam(optimizer: torch.optim.Adam, saved: dict[str, Any], *, name: str) -> None:
    """Load an optimiser's moments; UnusableFileError unless they fit its weights and are finite.

    Its settings stay those of the configuration. The moments get the memory format of their weights, which a fused
    optimiser assumes.
    """
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    for index, entries in saved["state"].items():
        moments = plain_tensors(entries)
        shape = weights[index].shape if type(index) is int and 0 <= index < len(weights) else None
        if {key: moment.shape for key, moment in moments.items()} != {
            "step": (),
            "exp_avg": shape,
            "exp_avg_sq": shape,
        }:
            raise UnusableFileError(f"holds moments in {name} that do not fit the networks")
        check_finite(moments, name=name)
    settings = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": saved["state"], "param_groups": settings})
    for weight, state in optimizer.state.items():
        for key in ("exp_avg", "exp_avg_sq"):
            state[key] = torch.empty_like(weight).copy_(state[key])


def load_pool(pool: ImagePool, saved: dict[str, Any], *, side: int, name: str) -> None:
    """Load an image pool; UnusableFileError unless it holds at most its size of finite images."""
    images = {str(number): image for number, image in enumerate(saved["images"])}
    if images:
        check_finite(plain_tensors(images), name=name)
    if len(images) > pool.size or any(image.shape != (3, side, side) for image in images.values()):
        raise UnusableFileError(f"holds other images in {name} than its configuration describes")
    pool.load_state_dict(saved)


def backward(loss: Tensor) -> None:
    """Add the loss's gradient to those of the weights, and free the activations it needed."""
    loss.backward()  # type: ignore[no-untyped-call]


def begin_step(optimizer: torch.optim.Adam, loss: Tensor, *, name: str, terms: dict[str, Tensor]) -> Finish:
    """Begin one step along the gradients that the weights hold; all processes take the same one.

    Gradients and losses are averaged over the processes. They travel until the step is finished, so that other work can
    go on meanwhile. Where the loss or its gradient is not finite the step is skipped, by the optimiser itself: checking
    on the host would make the program wait for the GPU in every step.

    Args:
        optimizer: a fused optimiser.
        loss: the minimised loss, a scalar.
        name: its name in the report.
        terms: its terms by name, scalars, to report beside it.

    Returns:
        A function that takes the step. It returns loss and terms as "loss/" + name, detached, and the gradient's norm
        as "grad_norm/" + name.
    """
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    values = torch.stack([loss.detach(), *(term.detach() for term in terms.values())])
    names = [name, *terms]
    finish_average = distributed.begin_average([*gradients, values])

    def finish() -> dict[str, Tensor]:
        finish_average()
        norm = get_total_norm(gradients)
        # A fused optimiser skips the step where this is 1, as it does for torch.amp.GradScaler.
        found_inf = (~torch.isfinite(values[0] + norm)).float()
        optimizer.found_inf = found_inf  # type: ignore[attr-defined]
        if not (ignores_found_inf(found_inf.device) and found_inf.item()):
            optimizer.step()
        reported = {f"loss/{key}": value for key, value in zip(names, values.unbind(), strict=True)}
        return reported | {f"grad_norm/{name}": norm}

    return finish


def ignores_found_inf(device: torch.device) -> bool:
    """Whether fused optimisers take a step along NaN there, as on Apple's GPU (pytorch/pytorch#186360)."""
    return device.type == "mps"
