"""Export trained weights with a model card, as .safetensors or ONNX: `python export.py RUN_OR_FILE --onnx`.

With --push they go to the Hugging Face Hub, from where every program here loads them as --weights hf://USER/NAME. With
--web they become part of a page that translates in the browser.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import startup  # noqa: F401

from check_data import as_table, problems
from config import Config
from console import UserError, command, printable, some_path
from training.source_commit import source_commit
from utils import atomic_write, file_to_write
from weights.hub import NAME, WEIGHTS_NAME, is_on_hub, upload
from weights.load import Weights, chosen_weights, direction_names, find_weights, load_weights, save_weights
from weights.model_card import MARK, CardFacts, model_card
from weights.onnx_file import write_onnx
from weights.web_page import write_page

CARD_NAME = "README.md"  # The Hub shows the card under this name.
DATA_CHECK = "data_check.json"  # A run's folder may hold what `check_data.py --json` has printed under this name.
PLACES = ("data_dir", "runs_dir", "init_from")  # These knobs hold paths on this machine, which concern nobody else.


def planned_files(weights: Weights, args: argparse.Namespace) -> dict[str, str]:
    """What each file that the command line asks for is, by its name."""
    files: dict[str, str] = {}
    if args.safetensors or args.push or not args.onnx:
        files[WEIGHTS_NAME] = "the generators with their configuration, for the program"
    if args.onnx:
        names = direction_names(weights.config.domain_a, weights.config.domain_b)
        files |= {f"gen_{direction}.onnx": f"{names[direction]}, in ONNX" for direction in weights.generators}
    return files


def write_files(weights: Weights, files: Collection[str], out: Path, *, half: bool) -> None:
    """Write files by their names to a folder.

    Raises:
        UserError: a file cannot be written, a package is missing, or an ONNX file differs from its network.
    """
    if WEIGHTS_NAME in files:
        save_weights(weights, out / WEIGHTS_NAME, half=half)
    for direction in weights.generators:
        if (name := f"gen_{direction}.onnx") in files:
            difference = write_onnx(weights, direction, out / name)
            print(f"{name} differs from PyTorch by at most {difference:.1g}, in images in [-1, 1]")


def without_places(weights: Weights) -> Weights:
    """The same weights, with a configuration that names no folder of this machine."""
    return replace(weights, config=replace(weights.config, **{knob: getattr(Config, knob) for knob in PLACES}))


# --- What the card says


def current_commit() -> str:
    """The commit of this program; "" if it is not known."""
    try:
        return source_commit()
    except LookupError:
        return ""


def data_check_of(source: Path) -> str:
    """The summary of a run's data check, if its folder holds one; else "".

    Raises:
        UserError: the file is not what `check_data.py --json` prints.
    """
    place = find_weights(source)
    folder = place if place.is_dir() else place.parent
    path = folder.parent / DATA_CHECK
    if folder.name not in ("checkpoints", "best") or not path.exists():
        return ""
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        found = [f"{title}: {len(entries)}" for title, entries in problems(report).items()]
        return "\n".join([*as_table(report["classes"]), *found])
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{printable(path)} is not what check_data.py --json prints") from error


def evaluation_of(source: Path, weights: Weights, folder: Path) -> str:
    """The tables that evaluate.py wrote to a folder.

    Raises:
        UserError: the folder does not hold them, or they are of other weights.
    """
    try:
        report: dict[str, Any] = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
        tables = (folder / "evaluation.md").read_text(encoding="utf-8").strip()
        evaluated, step = Path(report["weights"]), report.get("step")
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(f"{printable(folder)} does not hold what evaluate.py writes: {error}") from error
    if evaluated.resolve() != source.resolve() or step != weights.step:
        at = "" if step is None else f" after {step} steps"
        now = "" if weights.step is None else f" after {weights.step} steps"
        raise UserError(
            f"the evaluation in {printable(folder)} is of {printable(evaluated)}{at}, not of {printable(source)}{now}\n"
            f"run: python evaluate.py --weights {printable(source)} --out {printable(folder)}"
        )
    return tables


def check_folder(out: Path, files: Collection[str]) -> None:
    """UserError if the folder holds files of these names, or a README.md, that this program did not write."""
    card = file_to_write(out / CARD_NAME)
    if card.exists() and MARK in card.read_text(encoding="utf-8", errors="replace"):
        return  # The files beside it are those of an earlier export.
    for name in (CARD_NAME, *files):
        if os.path.lexists(out / name):
            raise UserError(
                f"{printable(out / name)} exists and was not written by this program: name another folder with --out"
            )


# --- The command line


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; exit with status 2 and a message if it is wrong."""
    parser = argparse.ArgumentParser(description="Export trained weights, with a model card beside them.")
    add = parser.add_argument
    add("weights", nargs="?", type=some_path, metavar="RUN_OR_FILE", help="a run's folder, a checkpoint, or a "
        ".safetensors file (your newest run, or the bundled weights)")  # fmt: skip
    add("--safetensors", action="store_true", help=f"write {WEIGHTS_NAME} (the default without --onnx)")
    add("--half", action="store_true", help=f"16 instead of 32 bits a number in {WEIGHTS_NAME}")
    add("--onnx", action="store_true", help="write gen_ab.onnx and gen_ba.onnx, compared with PyTorch")
    add("--out", type=some_path, default=Path("exported"), metavar="DIR", help="the folder to write to (%(default)s)")
    add("--evaluation", type=some_path, metavar="DIR", help="what evaluate.py wrote, for the card")
    add("--web", type=some_path, metavar="DIR", help="instead write the page that translates in the browser (after "
        "npm ci in web/)")  # fmt: skip
    add("--license", default="", metavar="ID", help="the weights' licence as the Hub calls it, such as cc0-1.0")
    add("--push", metavar="USER/NAME", help="upload to this model on the Hugging Face Hub")
    add("--private", action="store_true", help="make a new model on the Hub visible to yourself only")
    args = parser.parse_args(argv)
    if args.push and not NAME.fullmatch(args.push):
        parser.error(f"argument --push: must be USER/NAME, got {args.push!r}")
    if args.web and (args.safetensors or args.half or args.onnx or args.push or args.evaluation):
        parser.error("argument --web: writes the page only; export the rest with another command")
    if args.private and not args.push:
        parser.error("argument --private: is about --push, which is missing")
    if args.half and args.onnx and not (args.safetensors or args.push):
        parser.error("argument --half: is about --safetensors; ONNX files always have 32 bits")
    return args


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Export what the command line names. Returns the program's exit status."""
    # Load the weights, and compose the card: what it needs is checked before the files take their time.
    args = parse_args(argv)
    source = chosen_weights(args.weights)
    weights = load_weights(source)
    for direction in weights.generators:
        weights.generator(direction)  # It raises an error for numbers that are not finite.
    if args.web:
        write_page(without_places(weights), args.web)
        print(f"wrote the page to {printable(args.web)}; next: python -m http.server --directory {printable(args.web)}")
        return 0
    files = planned_files(weights, args)
    facts = CardFacts(
        files,
        address=f"hf://{args.push}" if args.push else WEIGHTS_NAME,
        commit=current_commit(),
        data_check="" if is_on_hub(source) else data_check_of(source),
        evaluation=evaluation_of(source, weights, args.evaluation) if args.evaluation else "",
        license_id=args.license,
    )
    card = model_card(weights, facts)
    check_folder(args.out, files)

    # Write the files, and the card beside them.
    write_files(without_places(weights), files, args.out, half=args.half)
    with atomic_write(args.out / CARD_NAME) as temporary:
        temporary.write_text(card, encoding="utf-8")
    print(f"wrote {', '.join([*files, CARD_NAME])} to {printable(args.out)}")

    # Upload them.
    if args.push:
        address = upload(args.out, [*files, CARD_NAME], to=args.push, private=args.private)
        print(f"uploaded to {address}; next: python translate.py PHOTO --weights hf://{args.push}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
