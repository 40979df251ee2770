"""Tensors by name out of PyTorch files of other programs, without running anything that is in them.

Files are read with `weights_only`. Where they hold whole pickled networks, a closed list of class names is given a
stand-in that keeps what was pickled and does nothing.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

MAX_MODULES = 10_000  # in a pickled network; 9 residual blocks are about a hundred

# The classes that a pickled file of a CycleGAN names. They are not imported: all stand for `Pickled`.
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


class ForeignFileError(ValueError):
    """Why nothing can be taken from a file: the rest of a sentence that begins with its name."""


class Pickled:
    """Stands for an object of a known class in a file: keeps the state that was pickled, and does nothing."""

    __slots__ = ("state",)

    def __new__(cls, *arguments: object) -> Pickled:
        return super().__new__(cls)

    def __setstate__(self, state: object) -> None:
        self.state = state


def plain_dict(*arguments: object) -> dict[Any, Any]:
    """Stands for `defaultdict`, in which a pickled optimiser keeps its state."""
    return {}


def read_file(path: Path) -> Any:
    """What a PyTorch file holds, on the CPU, with `Pickled` for objects of known classes.

    Raises:
        ForeignFileError: a missing or damaged file, or one that wants anything else than tensors and known classes.
    """
    classes = [f"{file}.{name}" for file in PROJECT_FILES for name in PROJECT_CLASSES]
    classes += ["builtins.dict", *(f"torch.{name}" for name in TORCH_CLASSES)]
    stand_ins: list[Any] = [(Pickled, name) for name in classes] + [(plain_dict, "collections.defaultdict")]
    try:
        _check_archive(path)
        with torch.serialization.safe_globals(stand_ins):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a hostile or broken file can make the unpickler raise anything
        unknown = re.search(r"GLOBAL (\S+)", str(error))
        if unknown:
            raise ForeignFileError(
                f"wants {unknown[1][:80]!a}, which is not part of a CycleGAN; nothing was run\n"
                "if you trust the file, open it in its own project and save the generators' state_dict()"
            ) from error
        reason = ascii((str(error) or repr(error)).splitlines()[0][:200])
        if "weights_only" in reason:  # torch's advice is to run what is in the file
            reason = "it holds more than tensors and plain values, or is of another program"
        raise ForeignFileError(f"is damaged or no PyTorch file: {reason}") from error


def _check_archive(path: Path) -> None:
    """ValueError or another error where a zip archive is damaged or would unpack to more than the file's size."""
    with path.open("rb") as file:
        if file.read(4) != b"PK\3\4":  # a file of PyTorch before 1.6, or none
            return
    with zipfile.ZipFile(path) as archive:
        if sum(entry.file_size for entry in archive.infolist()) > path.stat().st_size:
            raise ValueError("its archive claims to hold more than the file does")
        damaged = archive.testzip()  # torch.load does not look at the checksums
    if damaged:
        raise ValueError(f"wrong checksum in {damaged}")


def tensors_of(network: object, max_bytes: int) -> dict[str, Tensor]:
    """The tensors by name of a state dict, or of a network that was pickled whole.

    Args:
        network: a part of what `read_file` returned.
        max_bytes: of all tensors together, which a file can make larger than itself.

    Raises:
        ForeignFileError: it is something else.
    """
    entries = _unpack_module(network) if isinstance(network, Pickled) else network
    if not isinstance(entries, dict) or not entries:
        raise ForeignFileError(f"holds no network: found {type(entries).__name__}, expected layers by name")
    for key, tensor in entries.items():
        if not isinstance(key, str) or type(tensor) not in (Tensor, nn.Parameter):
            raise ForeignFileError(f"holds no network: its entry {ascii(key)[:80]} is no tensor")
        if tensor.layout != torch.strided or tensor.device.type != "cpu":
            raise ForeignFileError(
                f"holds no plain tensor as {ascii(key)[:80]}, but {tensor.layout} on {tensor.device}"
            )
    if sum(tensor.numel() * tensor.element_size() for tensor in entries.values()) > max_bytes:
        raise ForeignFileError("claims to hold more numbers than it has room for: it is damaged or hostile")
    wrapped = all(key.startswith("module.") for key in entries)  # saved out of DataParallel
    return {key.removeprefix("module.") if wrapped else key: tensor for key, tensor in entries.items()}


def _unpack_module(network: Pickled) -> dict[str, Any]:
    """What the state dict of a pickled module would be. A module met again, or inside itself, is passed over."""
    entries: dict[str, Any] = {}
    waiting: list[tuple[str, Any]] = [("", network)]
    seen = {id(network)}
    while waiting:
        prefix, module = waiting.pop()
        state = getattr(module, "state", None)
        state = state if isinstance(state, Mapping) else {}
        parameters, buffers, children = (state.get(part) for part in ("_parameters", "_buffers", "_modules"))
        if not (isinstance(parameters, dict) and isinstance(buffers, dict) and isinstance(children, dict)):
            raise ForeignFileError(f"holds no network: {ascii(prefix)[:80]} is no pickled module")
        for key, value in (*parameters.items(), *buffers.items()):
            if value is not None:
                entries[f"{prefix}{key}"] = value
        for key, child in children.items():
            if id(child) not in seen and child is not None:
                seen.add(id(child))
                waiting.append((f"{prefix}{key}.", child))
        if len(seen) > MAX_MODULES:
            raise ForeignFileError(f"holds no CycleGAN: a network of more than {MAX_MODULES} modules")
    return entries
