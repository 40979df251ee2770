"""Convert other projects' CycleGAN generators to our format: `python import_weights.py SOURCE OUT`.

Files are recognised by their names:
- the original European-to-Asian project: gen_asian and gen_european, or checkpoint_<time>_<epoch> with both in one file
- the paper's reference implementation: <epoch>_net_G_A and <epoch>_net_G_B
- the widespread tutorial: gena and genb, where genb makes images of domain b

weights/convert.py describes what is in them.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import startup  # noqa: F401

from config import to_dict
from console import UserError, command, printable, some_path
from training.checkpoint import naming
from utils import atomic_write, file_to_write
from weights.convert import Network, convert, generators_in
from weights.load import OTHER, Direction
from weights.safetensors_file import read_generators, write_generators

FileSet = dict[Path, Direction | None]  # The files of one model, and the direction that each name gives, if any.
ENDING = r"\.(?:pth\.tar|pth|pt|tar)"
# Names in lower case, without their endings. Files that differ only in the second group belong together, and that
# group gives the direction.
FILE_NAMES: tuple[tuple[str, dict[str, Direction]], ...] = (
    (r"(gen_)(asian|european)", {"asian": "ab", "european": "ba"}),
    (r"(.*net_g_)([ab])", {"a": "ab", "b": "ba"}),
    (r"(gen_?)([a-z])", {"b": "ab", "a": "ba"}),
)
BOTH_IN_ONE = r"checkpoint_.*"


@dataclass(frozen=True)
class Hints:
    """What the user states because the files do not record it.

    Attributes:
        direction: which way the file SOURCE translates, whatever its name says; its partner translates the other way.
            None if the names of the files are right.
        swap: whether the files are named the other way round.
        image_size: side of the training images, px; None for 256 above six residual blocks, and 128 otherwise.
        norm_first: False for the tutorial's early version, which has no norm after the first layer. Its weights look
            the same as those of the later version.
    """

    direction: Direction | None = None
    swap: bool = False
    image_size: int | None = None
    norm_first: bool = True


@dataclass(frozen=True)
class Imported:
    """What was imported. As text, it is the report for the user.

    Attributes:
        network: the layout and the size of the generators, in words.
        files: the file that each direction was read from.
        num_other_sets: how many older pairs of files were in the folder.
    """

    network: str
    files: dict[Direction, Path]
    num_other_sets: int

    def __str__(self) -> str:
        text = ", ".join(f"gen_{direction} from {printable(path)}" for direction, path in self.files.items())
        if self.num_other_sets:
            text += f", the newest of {self.num_other_sets + 1}"
        if len(self.files) == 1:
            text += "; no generator was found for the other direction"
        return f"{self.network}: {text}"


def import_weights(
    source: str | os.PathLike[str], target: str | os.PathLike[str], *, hints: Hints | None = None
) -> Imported:
    """Write another project's generators to a .safetensors file that `load_weights` can read.

    Args:
        source: a folder, from which the newest pair of files is imported, or a single file, which is imported together
            with its partner if that is beside it. Without a partner, the result holds one direction only.
        target: the .safetensors file to write. It stays unchanged if anything fails, or if it is not one of ours.
        hints: what the files do not record.

    Raises:
        UserError: a file is missing, damaged, malicious or not a supported network, or `target` cannot be written.
    """
    source = Path(source)
    target = Path(target)
    hints = hints or Hints()
    if target.suffix != ".safetensors":
        raise UserError(f"the file to write must end in .safetensors, got {printable(target)}")
    chosen, num_other_sets = choose_files(source, hints.direction)
    networks: dict[Direction, Network] = {}
    files: dict[Direction, Path] = {}
    for path, named in chosen.items():
        with naming(path):
            found = generators_in(path, named, given_by_user=hints.direction is not None)
            for stated, tensors in found.items():
                direction = OTHER[stated] if hints.swap else stated
                networks[direction] = convert(tensors, image_size=hints.image_size, norm_first=hints.norm_first)
                files[direction] = path
    kinds = sorted({str(network) for network in networks.values()})
    if len(kinds) > 1:
        raise UserError(f"the two files hold different networks: {'; '.join(kinds)}")
    config = next(iter(networks.values())).config
    check_target(target)
    with atomic_write(target) as temporary:
        generators = {f"gen_{direction}": network.weights for direction, network in networks.items()}
        write_generators(temporary, generators, config=to_dict(config))
    return Imported(kinds[0], files, num_other_sets)


def check_target(target: Path) -> None:
    """UserError if a file exists that this program did not write."""
    if not file_to_write(target).exists():
        return
    try:
        read_generators(target)
    except Exception as error:  # The reader may raise any exception on a file of another program.
        raise UserError(f"{printable(target)} exists and holds no weights of ours: name another file") from error


# --- Which files


def choose_files(source: Path, direction: Direction | None) -> tuple[FileSet, int]:
    """Choose the files to read, with their directions where these are known.

    Args:
        source: a folder or a file.
        direction: which way the file `source` translates; None to go by its name.

    Returns:
        The files, and how many other complete sets a folder holds.

    Raises:
        UserError: there is no such file or folder, or the folder does not hold a complete set.
    """
    if source.is_dir():
        if direction:
            raise UserError("--direction is for a single file; name the file, or use --swap for a folder")
        sets = [files for files in sets_of(source.rglob("*")) if is_complete(files)]
        if not sets:
            raise UserError(
                f"no pair of generators in {printable(source)}\n"
                "looked for gen_asian and gen_european, *_net_G_A and *_net_G_B, gena and genb, and checkpoint_*,\n"
                "ending in .pth.tar, .pth, .pt or .tar; to import a file with another name, name the file itself"
            )
        return sets[-1], len(sets) - 1
    if not source.exists():
        raise UserError(f"there is no file or folder {printable(source)}")
    alone: FileSet = {source: None}
    together = next((files for files in sets_of(source.parent.iterdir()) if source in files), alone)
    if direction:
        others = [path for path in together if path != source]
        partner: FileSet = {others[0]: OTHER[direction]} if len(others) == 1 else {}
        return {source: direction, **partner}, 0
    named: FileSet = {path: direction for path, direction in together.items() if direction}
    return (named if source in named else alone), 0


def sets_of(paths: Iterable[Path]) -> list[FileSet]:
    """Group files by their names, in natural order, with the direction that each name gives."""
    sets: dict[tuple[str, ...], FileSet] = {}
    for path in sorted((path for path in paths if path.is_file()), key=natural_order):
        if is_both_in_one(path):
            sets[(str(path),)] = {path: None}
        for pattern, directions in FILE_NAMES:
            match = re.fullmatch(f"{pattern}({ENDING})", path.name.lower())
            if match:
                key = (str(path.parent), pattern, match[1], match[3])
                sets.setdefault(key, {})[path] = directions.get(match[2])
    return list(sets.values())


def is_complete(files: FileSet) -> bool:
    """Whether a set has a file for each direction, or one file for both."""
    return {*files.values()} == {"ab", "ba"} or any(is_both_in_one(path) for path in files)


def is_both_in_one(path: Path) -> bool:
    """Whether a file's name says that it holds both generators."""
    return re.fullmatch(BOTH_IN_ONE + ENDING, path.name.lower()) is not None


def natural_order(path: Path) -> list[str | int]:
    """A sort key that puts epoch 10 after epoch 9, and a word like "latest" after all numbers."""
    parts = re.split("([0-9]+)", str(path).lower())  # text and numbers alternate, and the first part is text
    return [int(part) if index % 2 else part for index, part in enumerate(parts)]


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Import the weights that the command line names."""
    parser = argparse.ArgumentParser(description="Convert other projects' CycleGAN generators to a .safetensors file.")
    parser.add_argument("source", type=some_path, metavar="SOURCE", help="a folder, or a file beside its partner")
    parser.add_argument("target", type=some_path, metavar="OUT", help="the .safetensors file to write")
    parser.add_argument("--direction", choices=("ab", "ba"), help="direction of one file; its partner has the other")
    parser.add_argument("--swap", action="store_true", help="exchange the directions that the files' names give")
    parser.add_argument("--image-size", type=int, metavar="N", help="side of the training images, px")
    parser.add_argument("--no-norm-first", action="store_true", help="for the tutorial's early version: no first norm")
    args = parser.parse_args(argv)
    hints = Hints(args.direction, args.swap, args.image_size, norm_first=not args.no_norm_first)
    print(import_weights(args.source, args.target, hints=hints))
    out = printable(args.target)
    print(f"wrote {out}; next: python translate.py PHOTO --weights {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
