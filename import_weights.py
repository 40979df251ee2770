"""Other projects' CycleGAN generators into our format: `python import_weights.py SOURCE OUT`.

Recognised by name are gen_asian and gen_european, or both in checkpoint_<time>_<epoch>.pth.tar, of the original
European-to-Asian project; <epoch>_net_G_A and <epoch>_net_G_B of the paper's reference implementation; gena and genb
of the widespread tutorial, where genb makes images of domain b. weights/convert.py knows what is in them.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from config import to_dict
from utils import UserError, atomic_write, command, printable
from weights.convert import Network, convert, generators_in
from weights.foreign_pickle import ForeignFileError
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
