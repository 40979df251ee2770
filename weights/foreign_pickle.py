"""Read tensors from PyTorch files of other programs without running any code in them.

Files are read with `weights_only`. Some hold whole pickled networks. A stand-in, which keeps the pickled state and does
nothing, replaces the classes that such networks need; a file that needs any other class is refused.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

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


class ForeignFileError(ValueError):
    """A file from which no weights can be read. The message is the rest of a sentence that starts with its name."""


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
        ForeignFileError: the file is missing, damaged, or refers to anything but tensors and the listed classes.
    """
    classes = [f"{file}.{name}" for file in PROJECT_FILES for name in PROJECT_CLASSES]
    classes += ["builtins.dict", *(f"torch.{name}" for name in TORCH_CLASSES)]
    stand_ins: list[Any] = [(Pickled, name) for name in classes] + [(plain_dict, "collections.defaultdict")]
    try:
        _check_archive(path)
        with torch.serialization.safe_globals(stand_ins):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a malicious or damaged file can make the unpickler raise anything
        unknown = re.search(r"GLOBAL (\S+)", str(error))
        if unknown:
            raise ForeignFileError(
                f"refers to {unknown[1][:80]!a}, which is not part of a CycleGAN; nothing was run\n"
                "if you trust the file, open it in its own project and save the generators' state_dict()"
            ) from error
        reason = ascii((str(error) or repr(error)).splitlines()[0][:200])
        if "weights_only" in reason:  # torch advises the user to run the code in the file
            reason = "it holds more than tensors and plain values, or another program wrote it"
        raise ForeignFileError(f"is damaged or not a PyTorch file: {reason}") from error


def _check_archive(path: Path) -> None:
    """Raise an error, of any kind, if a zip archive is damaged or would unpack to more bytes than the file has."""
    with path.open("rb") as file:
        if file.read(4) != b"PK\3\4":  # PyTorch before 1.6 did not write zip archives
            return
    with zipfile.ZipFile(path) as archive:
        if sum(entry.file_size for entry in archive.infolist()) > path.stat().st_size:
            raise ValueError("its archive claims to unpack to more bytes than the file has")
        damaged = archive.testzip()  # torch.load does not verify the checksums
    if damaged:
        raise ValueError(f"wrong checksum in {damaged}")


def tensors_of(network: object, max_bytes: int) -> dict[str, Tensor]:
    """The tensors, by name, of a state dict or of a network that was pickled whole.

    Args:
        network: a part of what `read_file` returned.
        max_bytes: all tensors together may take this many bytes: a small file can claim tensors larger than itself.

    Returns:
        Tensors of any shape and dtype on the CPU, without the prefix that DataParallel puts before their names.

    Raises:
        ForeignFileError: the object is not a network, or its tensors are too large or not plain CPU tensors.
    """
    entries = _unpack_module(network) if isinstance(network, Pickled) else network
    if not isinstance(entries, dict) or not entries:
        raise ForeignFileError(f"does not hold a network: found {type(entries).__name__}, expected tensors by name")
    for key, tensor in entries.items():
        if not isinstance(key, str) or type(tensor) not in (Tensor, nn.Parameter):
            raise ForeignFileError(f"does not hold a network: its entry {ascii(key)[:80]} is not a tensor")
        if tensor.layout != torch.strided or tensor.device.type != "cpu":
            raise ForeignFileError(
                f"does not hold a plain tensor as {ascii(key)[:80]}: found {tensor.layout} on {tensor.device}"
            )
    if sum(tensor.numel() * tensor.element_size() for tensor in entries.values()) > max_bytes:
        raise ForeignFileError("claims to hold more numbers than it has room for: it is damaged or malicious")
    wrapped = all(key.startswith("module.") for key in entries)  # DataParallel adds this prefix
    return {key.removeprefix("module.") if wrapped else key: tensor for key, tensor in entries.items()}


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
            raise ForeignFileError(f"does not hold a network: {ascii(prefix)[:80]} is not a pickled module")
        for key, value in (*parameters.items(), *buffers.items()):
            if value is not None:
                entries[f"{prefix}{key}"] = value
        for key, child in children.items():
            if id(child) not in seen and child is not None:
                seen.add(id(child))
                to_visit.append((f"{prefix}{key}.", child))
        if len(seen) > MAX_MODULES:
            raise ForeignFileError(f"does not hold a CycleGAN: its network has more than {MAX_MODULES} modules")
    return entries
