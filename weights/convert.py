"""Other projects' generators as ours: which layout a file has, and its weights by the names of our parameters.

Three layouts are recognised by the names of their layers: the original European-to-Asian project's, that of the paper's
reference implementation in PyTorch (from 6 residual blocks up), and the widespread tutorial's. Discriminators are
ignored: translation does not need them. A file does not record how its images were scaled: [-1, 1] is assumed, as in
the reference implementation and the tutorial; some scripts of the original project scaled by the mean and standard
deviation of its data set instead.
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
from utils import printable
from weights.foreign_pickle import ForeignFileError, read_file, tensors_of
from weights.load import Direction

GENERATORS_IN_ONE: dict[str, Direction] = {"gen_asian": "ab", "gen_european": "ba"}
RUNNING_STATISTICS = re.compile(r"model\.\d+\.(conv_block\.\d+\.)?(running_mean|running_var|num_batches_tracked)")


@dataclass(frozen=True)
class Layout:
    """A published generator: how to know it, and what its weights do not say."""

    title: str
    block: str  # pattern of a residual block's number in the layers' names
    preset: Literal["origin", "paper"]
    padding: Padding
    norm_first: bool


ORIGIN = Layout("the original project", r"residual_blocks\.(\d+)\.", "origin", "zero", norm_first=False)
REFERENCE = Layout("the reference implementation", r"model\.(\d+)\.conv_block\.", "paper", "reflect", norm_first=True)
TUTORIAL = Layout("the tutorial", r"res_blocks\.(\d+)\.", "paper", "reflect-all", norm_first=True)


class Network(NamedTuple):
    """A generator in our format."""

    layout: Layout
    config: Config
    weights: dict[str, Tensor]  # float32, by the names of our parameters

    def __str__(self) -> str:
        config = self.config
        return f"{self.layout.title}, {config.num_residuals} residual blocks, {config.base_channels} channels"


def generators_in(path: Path, told: Direction | None, given: Direction | None) -> dict[Direction, dict[str, Tensor]]:
    """The tensors of a file's generators by direction, which its content tells, or else its name (`told`)."""
    content = read_file(path)
    found: dict[Direction, object]
    if isinstance(content, dict) and isinstance(content.get("models"), dict):
        if given:
            raise ForeignFileError("itself says which generator is which: leave out --direction")
        models = {str(name).lower(): model for name, model in content["models"].items()}
        found = {d: models[name] for name, d in GENERATORS_IN_ONE.items() if name in models}
        if not found:
            raise ForeignFileError(f"holds neither gen_Asian nor gen_European, but {shortened(models)}")
    elif told is None:
        raise ForeignFileError(
            "does not tell by its name which way it translates\n"
            "give --direction ab if it turns domain a into b (european into asian), else --direction ba"
        )
    else:
        found = {told: content["state_dict"] if isinstance(content, dict) and "state_dict" in content else content}
    return {d: tensors_of(network, path.stat().st_size) for d, network in found.items()}


def convert(tensors: dict[str, Tensor], image_size: int | None, norm_first: bool) -> Network:
    """A generator in our format, from the tensors of a foreign one; ForeignFileError where it is no known one."""
    layout, num_residuals, layers = recognise(tensors)
    if not norm_first and layout is not TUTORIAL:
        raise ForeignFileError(f"is from {layout.title}: --no-norm-first is for files of the tutorial")
    if layout is REFERENCE:  # as its own loader does
        tensors = {key: tensor for key, tensor in tensors.items() if not RUNNING_STATISTICS.fullmatch(key)}
    theirs = [f"{layer}.{part}" for layer in layers for part in ("weight", "bias")]
    check_names(tensors, theirs)
    first = tensors[theirs[0]]
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
        raise ForeignFileError(f"does not fit this program: {error}") from error
    with torch.device("meta"):  # names and shapes without memory
        ours = Generator(**config.generator).state_dict()
    weights = {key: checked(tensors[name], shape.shape, name)
               for (key, shape), name in zip(ours.items(), theirs, strict=True)}  # fmt: skip
    return Network(layout, config, weights)


def recognise(tensors: Mapping[str, Tensor]) -> tuple[Layout, int, list[str]]:
    """The layout, the number of residual blocks and the names of the layers, from the input to the output."""
    for layout in (ORIGIN, REFERENCE, TUTORIAL):
        n = len({match[1] for key in tensors if (match := re.match(layout.block, key))})
        if n and layout is REFERENCE:
            second = 6 if "model.10.conv_block.6.weight" in tensors else 5  # 6 where a dropout layer stands between
            blocks = [f"model.{10 + i}.conv_block.{j}" for i in range(n) for j in (1, second)]
            ends = [f"model.{10 + n}", f"model.{13 + n}", f"model.{17 + n}"]
            return layout, n, ["model.1", "model.4", "model.7", *blocks, *ends]
        if n:
            name = "residual_blocks" if layout is ORIGIN else "res_blocks"
            blocks = [f"{name}.{i}.block.{j}.conv.0" for i in range(n) for j in (0, 1)]
            down, up = ([f"{part}_blocks.{i}.conv.0" for i in (0, 1)] for part in ("down", "up"))
            return layout, n, ["initial.0", *down, *blocks, *up, "last"]
    if any(key.startswith("model.model.") for key in tensors):
        raise ForeignFileError("holds a U-Net; only generators of residual blocks (resnet_*) can be imported")
    raise ForeignFileError(
        f"holds no generator of a known CycleGAN; its layers are {shortened(tensors)}\n"
        "known are the original project's, the reference implementation's and the tutorial's generators"
    )


def check_names(tensors: Mapping[str, Tensor], expected: Sequence[str]) -> None:
    """ForeignFileError unless there are exactly these tensors."""
    unknown, missing = ({*tensors} - {*expected}), ({*expected} - {*tensors})
    if any(tensors[key].ndim == 1 and key.endswith(".weight") for key in unknown):
        raise ForeignFileError(
            f"was trained with batch norm or another norm that has weights: {shortened(unknown)}\n"
            "only instance norm without weights can be imported (the reference's default, --norm instance)"
        )
    if unknown or missing:
        raise ForeignFileError(
            "holds a generator with other layers than the published one\n"
            f"missing: {shortened(missing) or 'none'}; unknown: {shortened(unknown) or 'none'}"
        )


def checked(tensor: Tensor, shape: torch.Size, name: str) -> Tensor:
    """A float32 copy of a tensor; ForeignFileError unless it holds finite real numbers and has this shape."""
    if tensor.shape != shape:
        raise ForeignFileError(
            f"holds another network: {name} is {tuple(tensor.shape)}, expected {tuple(shape)}\n"
            "only generators from RGB images to RGB images (3 channels), as published, can be imported"
        )
    if not tensor.is_floating_point():
        raise ForeignFileError(f"holds {name} as {tensor.dtype}, expected floating-point numbers")
    copy = tensor.detach().to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    if not torch.isfinite(copy).all():
        raise ForeignFileError(
            f"holds numbers that are not finite in {name}: its training went wrong; take another file"
        )
    return copy


def shortened(names: Iterable[str]) -> str:
    """The first few names, as text for one line."""
    first = [printable(name[:60]) for name in sorted(names)[:4]]
    return ", ".join([*first[:3], "..."] if len(first) == 4 else first)
