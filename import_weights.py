"""Other projects' CycleGAN generators into our format: `python import_weights.py SOURCE OUT`.

Three layouts are known, and told apart by the names of their layers:

- the original European-to-Asian project: gen_asian and gen_european, or both in checkpoint_<time>_<epoch>.pth.tar;
- the paper's reference implementation in PyTorch: <epoch>_net_G_A and <epoch>_net_G_B, from 6 blocks up;
- the widespread tutorial: gena and genb, where genb makes images of domain b.

Discriminators are passed over: translation does not need them. A file does not say how its images were scaled: [-1, 1]
is taken for granted, as in the reference and the tutorial; some scripts of the original project scaled by the mean and
spread of its data set instead.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from config import PRESETS, Config, to_dict
from generator_model import Generator, Padding
from utils import UserError, atomic_write, command, printable
from weights.foreign_pickle import ForeignFileError, read_file, tensors_of
from weights.load import OTHER, Direction
from weights.safetensors_file import write_generators

FileSet = dict[Path, Direction | None]  # the directions that the names of files tell, if they do
ENDING = r"\.(?:pth\.tar|pth|pt|tar)"
FILE_NAMES: tuple[tuple[str, dict[str, Direction]], ...] = (  # which files belong together, and their directions
    (r"(gen_)(asian|european)", {"asian": "ab", "european": "ba"}),
    (r"(.*net_g_)([ab])", {"a": "ab", "b": "ba"}),
    (r"(gen_?)([a-z])", {"b": "ab", "a": "ba"}),
)
BOTH_IN_ONE = r"checkpoint_.*"
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


@dataclass(frozen=True)
class Imported:
    """What was imported; as text, what to tell the user."""

    network: str
    files: dict[Direction, Path]
    num_other_sets: int

    def __str__(self) -> str:
        text = ", ".join(f"gen_{d} from {printable(path)}" for d, path in self.files.items())
        if self.num_other_sets:
            text += f", the newest of {self.num_other_sets + 1}"
        if len(self.files) == 1:
            text += "; the other direction is not there"
        return f"{self.network}: {text}"


def import_weights(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    direction: Direction | None = None,
    *,
    swap: bool = False,
    image_size: int | None = None,
    norm_first: bool = True,
) -> Imported:
    """Write another project's generators to a .safetensors file that `checkpoint.load_generator` takes.

    Args:
        source: a folder, of which the newest pair of files is taken, or one file, with its partner beside it if it is
            there. Otherwise the result has one direction only.
        target: the .safetensors file to write. Where anything fails it is left as it was.
        direction: what the file `source` does, if its name does not say so or is wrong; its partner does the other.
        swap: the files are named the other way round.
        image_size: side in px of the training images; None: 256 above six residual blocks, else 128.
        norm_first: False for the tutorial's early version, without a norm after the first layer. Its weights look like
            those of the later one.

    Raises:
        UserError: no such file, a damaged or hostile one, or none of the known networks; or `target` cannot be written.
    """
    source, target = Path(source), Path(target)
    if target.suffix != ".safetensors":
        raise UserError(f"the file to write must end in .safetensors, got {printable(target)}")
    chosen, num_other_sets = choose_files(source, direction)
    networks: dict[Direction, Network] = {}
    files: dict[Direction, Path] = {}
    for path, told in chosen.items():
        try:
            for d, tensors in generators_in(path, told, direction).items():
                d = OTHER[d] if swap else d
                networks[d], files[d] = convert(tensors, image_size, norm_first), path
        except ForeignFileError as error:
            raise UserError(f"{printable(path)} {error}") from error
    kinds = sorted({str(network) for network in networks.values()})
    if len(kinds) > 1:
        raise UserError(f"the two files hold different networks: {'; '.join(kinds)}")
    config = next(iter(networks.values())).config
    with atomic_write(target) as temporary:
        generators = {f"gen_{d}": network.weights for d, network in networks.items()}
        write_generators(temporary, generators, to_dict(config))
    return Imported(kinds[0], files, num_other_sets)


# --- Which files


def choose_files(source: Path, direction: Direction | None) -> tuple[FileSet, int]:
    """The files to read with their directions, None where the name does not tell, and how many other sets there are."""
    if source.is_dir():
        if direction:
            raise UserError("--direction is for one file: give the file, or --swap for a folder")
        sets = [files for files in sets_of(source.rglob("*"))
                if {*files.values()} == {"ab", "ba"} or is_both_in_one(next(iter(files)))]  # fmt: skip
        if not sets:
            raise UserError(
                f"no pair of generators in {printable(source)}\n"
                "looked for gen_asian and gen_european, *_net_G_A and *_net_G_B, gena and genb, checkpoint_*,\n"
                "each .pth.tar, .pth, .pt or .tar; for a single file or another name, give the file itself"
            )
        return sets[-1], len(sets) - 1
    if not source.is_file():
        raise UserError(f"there is no file or folder {printable(source)}")
    alone: FileSet = {source: None}
    together = next((files for files in sets_of(source.parent.iterdir()) if source in files), alone)
    if direction:
        others = [path for path in together if path != source]
        partner: FileSet = {others[0]: OTHER[direction]} if len(others) == 1 else {}
        return {source: direction, **partner}, 0
    told: FileSet = {path: d for path, d in together.items() if d}
    return (told if source in told else alone), 0


def sets_of(paths: Iterable[Path]) -> list[FileSet]:
    """Files that belong together by their names, with the direction each name tells, in natural order."""
    sets: dict[tuple[str, ...], FileSet] = {}
    for path in sorted((path for path in paths if path.is_file()), key=natural_order):
        if is_both_in_one(path):
            sets[str(path),] = {path: None}
        for pattern, directions in FILE_NAMES:
            match = re.fullmatch(f"{pattern}({ENDING})", path.name.lower())
            if match:
                key = (str(path.parent), pattern, match[1], match[3])
                sets.setdefault(key, {})[path] = directions.get(match[2])
    return list(sets.values())


def is_both_in_one(path: Path) -> bool:
    return re.fullmatch(BOTH_IN_ONE + ENDING, path.name.lower()) is not None


def natural_order(path: Path) -> list[str | int]:
    """A sort key by which epoch 10 follows epoch 9, and a word like "latest" all numbers."""
    parts = re.split("([0-9]+)", str(path).lower())
    return [int(part) if index % 2 else part for index, part in enumerate(parts)]


# --- What is in them


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


# --- Into our format


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


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Import what the command line names."""
    parser = argparse.ArgumentParser(description="Turn other projects' CycleGAN generators into a .safetensors file.")
    parser.add_argument("source", metavar="SOURCE", help="a folder, or one file; its partner beside it is found")
    parser.add_argument("target", metavar="OUT", help="the .safetensors file to write")
    parser.add_argument("--direction", choices=("ab", "ba"), help="what SOURCE, one file, does; its partner the other")
    parser.add_argument("--swap", action="store_true", help="the files are named the other way round")
    parser.add_argument("--image-size", type=int, metavar="N", help="side in px of the images it was trained on")
    parser.add_argument("--no-norm-first", action="store_true", help="early tutorial: no norm after the first layer")
    given = parser.parse_args(argv)
    print(import_weights(given.source, given.target, given.direction, swap=given.swap, image_size=given.image_size,
                         norm_first=not given.no_norm_first))  # fmt: skip
    out = printable(given.target)
    print(f"wrote {out}; next: python translate.py PHOTO --weights {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
