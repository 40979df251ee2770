"""Convert generators of other projects: recognise a file's layout, and rename its weights to our parameters' names.

Three layouts are recognised by the names of their layers: those of the original European-to-Asian project, of the
paper's reference implementation in PyTorch (resnet_6blocks and resnet_9blocks), and of the widespread tutorial.
Discriminators are ignored, because translation does not need them. A file does not record how its training images were
scaled. We assume [-1, 1], as in the reference implementation and the tutorial; some scripts of the original project
used the mean and standard deviation of its data set instead.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from config import PRESETS, Config
from generator_model import Generator, Padding
from training.torch_file import UnusableFileError
from utils import printable
from weights.foreign_pickle import read_file, tensors_of
from weights.load import Direction

# The generators in a checkpoint of the original project that holds both, by name in lower case.
GENERATORS_IN_ONE: dict[str, Direction] = {"gen_asian": "ab", "gen_european": "ba"}
# Instance norms saved these entries before PyTorch 0.4. The generators do not use them.
RUNNING_STATISTICS = re.compile(r"model\.\d+\.(conv_block\.\d+\.)?(running_mean|running_var|num_batches_tracked)")


@dataclass(frozen=True)
class Layout:
    """A published generator: how to recognise it, and the settings that its weights do not record."""

    title: str
    block: str  # This regular expression finds the number of a residual block in a layer's name.
    preset: Literal["origin", "paper"]
    padding: Padding
    norm_first: bool


ORIGIN = Layout("the original project", r"residual_blocks\.(\d+)\.", "origin", "zero", norm_first=False)
REFERENCE = Layout("the reference implementation", r"model\.(\d+)\.conv_block\.", "paper", "reflect", norm_first=True)
TUTORIAL = Layout("the tutorial", r"res_blocks\.(\d+)\.", "paper", "reflect-all", norm_first=True)


class Network(NamedTuple):
    """A generator in our format.

    Attributes:
        layout: the layout that it was converted from.
        config: the configuration that describes it.
        weights: contiguous float32 tensors on the CPU, by the names of our parameters.
    """

    layout: Layout
    config: Config
    weights: dict[str, Tensor]

    def __str__(self) -> str:
        config = self.config
        return f"{self.layout.title}, {config.num_residuals} residual blocks, {config.base_channels} channels"


def generators_in(
    path: Path, direction: Direction | None, *, given_by_user: bool
) -> dict[Direction, dict[str, Tensor]]:
    """Read the tensors of one generator, or of both, from a file.

    Args:
        path: a PyTorch file of another project.
        direction: what a single generator in it translates; None if that is not known.
        given_by_user: whether `direction` comes from --direction, which a file that names both generators rules out.

    Returns:
        Tensors by the names of their layers, for each direction that the file holds.

    Raises:
        UnusableFileError: the file is damaged or malicious, does not hold a generator, or needs a direction.
    """
    content = read_file(path)
    found: dict[Direction, object]
    if isinstance(content, dict) and isinstance(content.get("models"), dict):
        if given_by_user:
            raise UnusableFileError("records which generator is which; leave out --direction")
        models = {str(name).lower(): model for name, model in content["models"].items()}
        found = {way: models[name] for name, way in GENERATORS_IN_ONE.items() if name in models}
        if not found:
            raise UnusableFileError(f"holds neither gen_Asian nor gen_European, only {shortened(models)}")
    elif direction is None:
        raise UnusableFileError(
            "has a name that does not say which way it translates\n"
            "add --direction ab if it turns domain a into b (european into asian), otherwise --direction ba"
        )
    elif isinstance(content, dict) and "state_dict" in content:
        found = {direction: content["state_dict"]}
    else:
        found = {direction: content}
    return {way: tensors_of(network) for way, network in found.items()}


def convert(tensors: dict[str, Tensor], *, image_size: int | None, norm_first: bool) -> Network:
    """Convert a generator to our format.

    Args:
        tensors: floating-point tensors on the CPU, by the names of their layers.
        image_size: side of the training images, px; None for 256 above six residual blocks, and 128 otherwise.
        norm_first: False for the tutorial's early version, which has no norm after the first layer.

    Raises:
        UnusableFileError: the generator is not a supported one, or its weights are not finite.
    """
    layout, num_residuals, layers = recognise(tensors)
    if not norm_first and layout is not TUTORIAL:
        raise UnusableFileError(f"comes from {layout.title}; --no-norm-first is only for files of the tutorial")
    if layout is REFERENCE:  # the reference implementation's own loader drops these entries, too
        tensors = {key: tensor for key, tensor in tensors.items() if not RUNNING_STATISTICS.fullmatch(key)}
    names = [f"{layer}.{part}" for layer in layers for part in ("weight", "bias")]
    check_names(tensors, names)
    first = tensors[names[0]]
    if image_size is None:
        image_size = 256 if num_residuals > 6 else 128
    try:
        config = replace(
            PRESETS[layout.preset],
            num_residuals=num_residuals,
            base_channels=first.shape[0] if first.ndim else 0,
            image_size=image_size,
            padding=layout.padding,
            norm_first=layout.norm_first and norm_first,
        )
    except ValueError as error:
        raise UnusableFileError(f"cannot be converted: {error}") from error
    with torch.device("meta"):  # tensors on this device have shapes but take no memory
        ours = Generator(**config.generator).state_dict()
    weights = {key: checked_copy(tensors[name], parameter.shape, name=name)
               for (key, parameter), name in zip(ours.items(), names, strict=True)}  # fmt: skip
    return Network(layout, config, weights)


def recognise(tensors: Mapping[str, Tensor]) -> tuple[Layout, int, list[str]]:
    """Recognise a generator by the names of its tensors.

    Returns:
        The layout, the number of residual blocks, and the names of the layers from the input to the output.

    Raises:
        UnusableFileError: the names do not belong to a supported generator.
    """
    for layout in (ORIGIN, REFERENCE, TUTORIAL):
        n = len({match[1] for key in tensors if (match := re.match(layout.block, key))})
        if n and layout is REFERENCE:
            second = 6 if "model.10.conv_block.6.weight" in tensors else 5  # a dropout layer moves it to 6
            blocks = [f"model.{10 + i}.conv_block.{j}" for i in range(n) for j in (1, second)]
            ends = [f"model.{10 + n}", f"model.{13 + n}", f"model.{17 + n}"]
            return layout, n, ["model.1", "model.4", "model.7", *blocks, *ends]
        if n:
            name = "residual_blocks" if layout is ORIGIN else "res_blocks"
            blocks = [f"{name}.{i}.block.{j}.conv.0" for i in range(n) for j in (0, 1)]
            down, up = ([f"{part}_blocks.{i}.conv.0" for i in (0, 1)] for part in ("down", "up"))
            return layout, n, ["initial.0", *down, *blocks, *up, "last"]
    if any(key.startswith("model.model.") for key in tensors):
        raise UnusableFileError("holds a U-Net; only ResNet generators (resnet_*) can be imported")
    raise UnusableFileError(
        f"does not hold a supported CycleGAN generator; its layers are {shortened(tensors)}\n"
        "generators of the original project, the reference implementation and the tutorial can be imported"
    )


def check_names(tensors: Mapping[str, Tensor], expected: Sequence[str]) -> None:
    """Raise UnusableFileError unless the tensors have exactly the expected names."""
    unknown, missing = ({*tensors} - {*expected}), ({*expected} - {*tensors})
    if any(tensors[key].ndim == 1 and key.endswith(".weight") for key in unknown):
        raise UnusableFileError(
            f"was trained with batch norm or another norm that has weights: {shortened(unknown)}\n"
            "only instance norm without weights can be imported (the reference implementation's --norm instance)"
        )
    if unknown or missing:
        raise UnusableFileError(
            "holds a generator whose layers differ from those of the published one\n"
            f"missing: {shortened(missing) or 'none'}; unknown: {shortened(unknown) or 'none'}"
        )


def checked_copy(tensor: Tensor, shape: torch.Size, *, name: str) -> Tensor:
    """A contiguous float32 copy of a tensor; UnusableFileError unless it has this shape and finite real values."""
    if tensor.shape != shape:
        raise UnusableFileError(
            f"differs from the published network: {name} has shape {tuple(tensor.shape)}, expected {tuple(shape)}\n"
            "only generators that turn RGB images (3 channels) into RGB images can be imported"
        )
    if not tensor.is_floating_point():
        raise UnusableFileError(f"stores {name} as {tensor.dtype}, expected floating-point numbers")
    copy = tensor.detach().to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    if not torch.isfinite(copy).all():
        raise UnusableFileError(
            f"has values in {name} that are not finite: its training diverged; import another checkpoint"
        )
    return copy


def shortened(names: Iterable[str]) -> str:
    """The first three names in alphabetical order, then "..." if there are more, as text for one line."""
    ordered = sorted(names)
    shown = [printable(name[:60]) for name in ordered[:3]]
    return ", ".join([*shown, "..."] if len(ordered) > 3 else shown)
