"""Read tensors from PyTorch files of other programs without running any code in them.

Files are read with `weights_only`. Some hold whole pickled networks. A stand-in, which keeps the pickled state and does
nothing, replaces the classes that such networks need; a file that needs any other class is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from training.torch_file import UnusableFileError, plain_tensors, read_torch_file

MAX_MODULES = 10_000  # A pickled network may have this many modules; one with 9 residual blocks has about a hundred.

# A pickled CycleGAN refers to these classes. They are never imported: `Pickled` replaces every one of them.
PROJECT_FILES = ("generator", "generator_model", "discriminator", "discriminator_model")
PROJECT_CLASSES = ("Generator", "Discriminator", "ConvBlock", "ConvBlockDown", "ConvBlockUp", "ConvolutionalBlock",
                   "ResidualBlock", "Block", "ConvInstanceNormLeakyReLUBlock")  # fmt: skip
TORCH_CLASSES = (
    "nn.modules.container.Sequential", "nn.modules.container.ModuleList", "nn.modules.conv.Conv2d",
    "nn.modules.conv.ConvTranspose2d", "nn.modules.instancenorm.InstanceNorm2d", "nn.modules.batchnorm.BatchNorm2d",
    "nn.modules.activation.ReLU", "nn.modules.activation.LeakyReLU", "nn.modules.activation.Tanh",
    "nn.modules.activation.Sigmoid", "nn.modules.padding.ReflectionPad2d", "nn.modules.padding.ZeroPad2d",
    "nn.modules.linear.Identity", "nn.modules.dropout.Dropout", "nn.parallel.data_parallel.DataParallel",
    "optim.adam.Adam",
)  # fmt: skip

ForeignFileError = UnusableFileError  # what `read_file` raises


class Pickled:
    """Replaces an object of a listed class: it keeps the state that was pickled, and does nothing."""

    __slots__ = ("state",)

    def __new__(cls, *arguments: object) -> Pickled:
        return super().__new__(cls)

    def __setstate__(self, state: object) -> None:
        self.state = state


def plain_dict(*arguments: object) -> dict[Any, Any]:
    """Replaces `defaultdict`, in which a pickled optimiser keeps its state."""
    return {}


def read_file(path: Path) -> Any:
    """Read a PyTorch file of another program.

    Returns:
        What was saved, with tensors on the CPU and `Pickled` in place of every object of a listed class.

    Raises:
        UnusableFileError: the file is missing, damaged, or refers to anything but tensors and the listed classes.
    """
    classes = [f"{file}.{name}" for file in PROJECT_FILES for name in PROJECT_CLASSES]
    classes += ["builtins.dict", *(f"torch.{name}" for name in TORCH_CLASSES)]
    stand_ins: list[Any] = [(Pickled, name) for name in classes] + [(plain_dict, "collections.defaultdict")]
    return read_torch_file(path, stand_ins)


def tensors_of(network: object) -> dict[str, Tensor]:
    """The tensors, by name, of a state dict or of a network that was pickled whole, see `plain_tensors`.

    Args:
        network: a part of what `read_file` returned.

    Raises:
        UnusableFileError: the object is not a network, or its tensors are too large or not plain CPU tensors.
    """
    return plain_tensors(_unpack_module(network) if isinstance(network, Pickled) else network)


def _unpack_module(network: Pickled) -> dict[str, Any]:
    """The entries of a pickled module's state dict. A module that appears again, even inside itself, is skipped."""
    entries: dict[str, Any] = {}
    to_visit: list[tuple[str, Any]] = [("", network)]
    seen = {id(network)}
    while to_visit:
        prefix, module = to_visit.pop()
        state = getattr(module, "state", None)
        state = state if isinstance(state, Mapping) else {}
        parameters, buffers, children = (state.get(part) for part in ("_parameters", "_buffers", "_modules"))
        if not (isinstance(parameters, dict) and isinstance(buffers, dict) and isinstance(children, dict)):
            raise UnusableFileError(f"does not hold a network: {ascii(prefix)[:80]} is not a pickled module")
        for key, value in (*parameters.items(), *buffers.items()):
            if value is not None:
                entries[f"{prefix}{key}"] = value
        for key, child in children.items():
            if id(child) not in seen and child is not None:
                seen.add(id(child))
                to_visit.append((f"{prefix}{key}.", child))
        if len(seen) > MAX_MODULES:
            raise UnusableFileError(f"does not hold a CycleGAN: its network has more than {MAX_MODULES} modules")
    return entries
