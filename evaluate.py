"""Evaluate a checkpoint: how well translations match the target domain, keep the person, and match the ground truth.

python evaluate.py --weights RUN_OR_FILE --data-dir FOLDER [--direction both]
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import startup  # noqa: F401

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from config import Config
from console import UserError, command, memory_advice, printable, some_path, some_text
from dataset import domain_folders, domain_names, load_images, scan_folder
from evaluation.classifier import resize
from evaluation.metrics import absolute_errors, edit_in_batches, ssim, translate_in_batches
from evaluation.report import (
    MISSING_CURVES,
    MISSING_PLOT,
    Row,
    check_folder,
    evaluation_table,
    has_matplotlib,
    plot_curves,
    plot_strengths,
    ranking_table,
)
from evaluation.scorers import Scorers, add_inception, cosines, load_scorers
from evaluation.scoring import (
    Domain,
    Task,
    as_pasted,
    best_strength,
    compare_with_inputs,
    distances,
    embed_real,
    estimates,
    score,
    score_real,
    strength_curve,
    warning_of_framing,
)
from evaluation.validation import Validation
from generator_model import MAX_STRENGTH
from training.checkpoint import (
    CheckpointError,
    checked_template,
    checkpoint_step,
    list_checkpoints,
    naming,
    newest_checkpoint,
    saved_config,
)
from utils import atomic_write, image_grid, pick_device, tensor_to_image
from weights.load import DIRECTIONS, OTHER, Direction, Weights, load_weights

MAX_TRAINING_IMAGES = 4000  # At most this many training images of each domain are used,
READ_BATCH = 32  # and so many are in memory at a time.
NUM_FRAMED = 8  # So many test images of each domain show how faces are cropped.
SHEET_ROWS = 3  # A sheet holds this many of the best, of the median and of the worst translations.


def load_domains(config: Config, device: torch.device, *, paired: bool) -> tuple[Domain, Domain]:
    """Load domains a and b, see `load_domain`; UserError where pairs are incomplete."""
    a, b = load_domain(config, 0, device), load_domain(config, 1, device)
    if paired and len(a.test) != len(b.test):
        folder_a, folder_b = (printable(path) for path in domain_folders(config, "test"))
        raise UserError(
            f"paired evaluation needs equally many test images of both domains, found {len(a.test)} and "
            f"{len(b.test)};\nadd the missing ones to {folder_a} or {folder_b}"
        )
    return a, b


def load_domain(config: Config, index: int, device: torch.device) -> Domain:
    """Load the test images of domain a (index 0) or b (index 1), and find its training images.

    At most MAX_TRAINING_IMAGES of the latter are used, evenly spread, and they are read whenever they are needed, so
    that the memory that they take is bounded.

    Raises:
        UserError: a folder has no images.
    """
    train, test = (scan_folder(domain_folders(config, split)[index]) for split in ("train", "test"))
    for folder in (train, test):
        if not folder.files:
            raise UserError(f"no usable images in {printable(folder.path)}; give the data set's folder with --data-dir")
        if folder.what_is_missing:
            print(f"in {printable(folder.path)}: {folder.what_is_missing}", file=sys.stderr)
    name = domain_names(config)[index]
    every = math.ceil(len(train.files) / MAX_TRAINING_IMAGES)
    files = train.files[::every]

    def read_train() -> Iterator[Tensor]:
        for start in tqdm(
            range(0, len(files), READ_BATCH), f"reading {name}", unit=" batches", leave=False, disable=None
        ):
            yield load_images(files[start : start + READ_BATCH], config.image_size).to(device)

    return Domain(name, read_train, load_images(test.files, config.image_size).to(device))


def small_training_images(domain: Domain) -> Tensor:
    """A domain's training images at the size at which the classifier sees them, (N, 3, SIDE, SIDE) in [-1, 1]."""
    return torch.cat([resize(batch) for batch in domain.read_train()])


def evaluate(
    generators: Mapping[Direction, nn.Module], task: Task, *, scorers: Scorers
) -> tuple[dict[str, Row], Tensor]:
    """Evaluate one direction.

    Args:
        generators: the generators of both directions.
        task: the images to translate, and the domain to translate them to.
        scorers: the networks that score the translations.

    Returns:
        Rows by name: "this model"; on faces "as pasted", which scores the translations as photographs take them on, in
        the face only; "no change", which scores the inputs as if they were translations; and "real
        images", which scores the target's test images, and compares one half of all its images with the other. The
        model's values mean little without these two. And a sheet of examples, (3, H', W') in [-1, 1]: inputs,
        translations, cycle reconstructions.
    """
    # Translate the test images and translate the results back.
    real = task.source.test
    fake, shift = edit_in_batches(generators[task.direction], real, strength=task.strength)
    rec = translate_in_batches(generators[OTHER[task.direction]], fake)

    # Score the translations and, for comparison, the unchanged inputs and real images of the target domain.
    truth = task.target.test if task.paired else None
    embeddings = scorers.identity(real) if scorers.identity else None
    references, others = embed_real(task.target, scorers=scorers)
    compare = partial(
        score, task=task, scorers=scorers, references=references, input_embeddings=embeddings, truth=truth
    )
    model = compare(fake) | estimates(cycle_l1=absolute_errors(rec, real), cycle_ssim=ssim(rec, real))
    rows = {"this model": model | compare_with_inputs(fake, real, task.template)}
    if task.template is not None:
        pasted = as_pasted(fake, real, task.template, shift)
        rows["as pasted"] = compare(pasted) | compare_with_inputs(pasted, real, task.template)
    rows |= {
        "no change": compare(real),
        "real images": score_real(task, scorers=scorers) | distances(others, references, scorers),
    }

    # Choose examples: those that keep the identity best, those in the middle, and those that keep it least.
    order = np.arange(len(real))
    if scorers.identity and embeddings is not None:
        order = np.argsort(-cosines(embeddings, scorers.identity(fake)))  # images without a face (NaN) come last
    middle = max(0, len(order) // 2 - SHEET_ROWS // 2)
    chosen = [*order[:SHEET_ROWS], *order[middle : middle + SHEET_ROWS], *order[-SHEET_ROWS:]]
    return rows, image_grid([real[chosen], fake[chosen], rec[chosen]])


# --- The command line


def load_both(weights: Path, device: torch.device) -> Weights:
    """Load the generators of both directions onto the device; UserError where one is missing."""
    loaded = load_weights(weights)
    for direction in DIRECTIONS:
        loaded.generator(direction).to(device)
    return loaded


def rank_checkpoints(run_dir: Path, out: Path, *, data_dir: str | None, device: torch.device) -> str:
    """Measure all checkpoints of a run, write checkpoints.json and curves.png, and return the table, best first."""
    folder = run_dir / "checkpoints"
    paths = list_checkpoints(folder)
    if not paths:
        raise UserError(f"no checkpoints in {printable(folder)}; --all-checkpoints needs a run's folder as --weights")
    saved, _ = newest_checkpoint(folder)
    if saved is None:
        raise UserError(f"none of the {len(paths)} checkpoints in {printable(folder)} is intact")
    config = saved_config(saved)
    config = replace(config, data_dir=data_dir or config.data_dir)
    a, b = load_domains(config, device, paired=config.paired_test)
    small = small_training_images(a), small_training_images(b)
    with naming(folder):
        template = checked_template(saved.get("template"))
    validation = Validation(*small, a.test, b.test, paired=config.paired_test, template=template)
    ranking: dict[int, dict[str, float]] = {}
    for path in tqdm(paths, unit=" checkpoints", leave=False, disable=None):
        try:
            weights = load_both(path, device)
        except CheckpointError as error:
            print(f"skipped: {error}", file=sys.stderr)
            continue
        ranking[checkpoint_step(path)] = validation.measure(weights.generator("ab"), weights.generator("ba"))
    if not ranking:
        raise UserError(f"none of the {len(paths)} checkpoints in {printable(folder)} can be used, see above")
    write_text(out / "checkpoints.json", json.dumps(ranking, indent=2))
    if not has_matplotlib():
        return f"{ranking_table(ranking)}\n\nLeft out: {MISSING_CURVES}"
    with atomic_write(out / "curves.png") as temporary:
        plot_curves(temporary, ranking)
    return ranking_table(ranking)


def report_direction(task: Task, rows: Mapping[str, Row], sheet: Tensor, *, out: Path) -> tuple[str, dict[str, Any]]:
    """Save the sheet of one direction's examples; returns the table, and the values for the JSON file."""
    with atomic_write(out / f"sheet_{task.direction}.png") as temporary:
        tensor_to_image(sheet).save(temporary, "PNG")
    values = {name: as_json(row) for name, row in rows.items()}
    table = evaluation_table(f"{task.name} at strength {task.strength:g}", rows)
    return table, {"strength": task.strength, **values}


def report_strengths(
    weights: Weights, task: Task, *, real: Row, scorers: Scorers, out: Path
) -> tuple[str, dict[str, Any]]:
    """Score weaker and stronger translations of one direction, and plot the shares; returns as `report_direction`.

    `real` scores the target's test images, for comparison.
    """
    curve = strength_curve(weights.generator(task.direction), task, scorers=scorers)
    best = best_strength(curve)
    columns = {f"S = {strength:g}": row for strength, row in curve.items()}
    columns["real images"] = {key: estimate for key, estimate in real.items() if key in curve[best]}
    if has_matplotlib():
        with atomic_write(out / f"strength_{task.direction}.png") as temporary:
            plot_strengths(temporary, curve, title=task.name, classifier_rate=real["domain"].value)
    values = {f"{strength:g}": as_json(row) for strength, row in curve.items()}
    pasted = "" if task.template is None else ", as pasted into photographs"
    table = evaluation_table(f"{task.name} by strength{pasted}; {best:g} is best", columns)
    return table, {"best_strength": best, "by_strength": values}


def as_json(row: Row) -> dict[str, dict[str, float]]:
    """A row's estimates as plain values."""
    return {key: asdict(estimate) for key, estimate in row.items()}


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically, with a line break at its end."""
    with atomic_write(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; an invalid one ends the program with a message and status 2."""
    parser = argparse.ArgumentParser(description="Measure how good a checkpoint is, on held-out images.")
    add = parser.add_argument
    add("--weights", type=some_path, required=True, help="a run's folder, a checkpoint, or a .safetensors file")
    add("--data-dir", type=some_text, help="folder with train and test images (default: that of the training)")
    add("--direction", choices=("ab", "ba", "both"), default="both", help="what to evaluate (default: %(default)s)")
    add("--strength", type=float, metavar="S", help="as in translate.py (default: what is stored with the weights)")
    add("--no-curve", action="store_true", help="leave out the other strengths, which take most of the time")
    add(
        "--out",
        type=some_path,
        default=Path("evaluated"),
        help="folder to write to (default: %(default)s); only results of this program in it are replaced",
    )
    add("--inception-weights", metavar="PATH", help="weights for KID and FID (default: download them on first use)")
    add("--all-checkpoints", action="store_true", help="instead rank all checkpoints of a run by quick measures")
    add("--paired", action="store_true", help="test images of the same position are true translations of each other")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (default: %(default)s)")
    args = parser.parse_args(argv)
    if args.strength is not None and not 0 <= args.strength <= MAX_STRENGTH:
        parser.error(f"argument --strength: must be between 0 and {MAX_STRENGTH:g}, got {args.strength:g}")
    return args


def run(args: argparse.Namespace) -> str:
    """Evaluate one set of weights, write the tables, the JSON file and the sheets, and return the tables."""
    # Load the weights, the images and the scorers.
    device = pick_device(args.device)
    weights = load_both(args.weights, device)
    config = replace(weights.config, data_dir=args.data_dir or weights.config.data_dir)
    paired = args.paired or config.paired_test
    a, b = load_domains(config, device, paired=paired)
    scorers = load_scorers(small_training_images(a), small_training_images(b))
    add_inception(scorers, args.inception_weights, device)
    if not args.no_curve and not has_matplotlib():
        scorers.missing += (MISSING_PLOT,)

    # Evaluate each direction.
    sections: list[str] = []
    report: dict[str, Any] = {"weights": str(args.weights), "step": weights.step, "data_dir": config.data_dir,
                              "classifier_accuracy": scorers.domain_accuracy, "missing": scorers.missing}  # fmt: skip
    known_by = args.out / "evaluation.json"  # By this the folder is known, should the evaluation be interrupted.
    if not known_by.exists():
        write_text(known_by, json.dumps(report, indent=2))
    sides: tuple[tuple[Direction, Domain, Domain], ...] = (("ab", a, b), ("ba", b, a))
    for direction, source, target in sides:
        if args.direction in (direction, "both"):
            strength = weights.strength(direction) if args.strength is None else args.strength
            task = Task(direction, source, target, paired, strength, weights.template)
            rows, sheet = evaluate(weights.generators, task, scorers=scorers)
            table, report[direction] = report_direction(task, rows, sheet, out=args.out)
            sections.append(table)
            if not args.no_curve:
                table, values = report_strengths(weights, task, real=rows["real images"], scorers=scorers, out=args.out)
                sections.append(table)
                report[direction] |= values

    # Write the tables, with the accuracy of the classifier, a warning, and the reasons for missing measures.
    sections.append(f"The domain classifier is right on {100 * scorers.domain_accuracy:.0f} % of held-out real images.")
    if warning := warning_of_framing(torch.cat([a.test[:NUM_FRAMED], b.test[:NUM_FRAMED]]), weights.template):
        sections.append(warning)
    sections += [f"Left out: {reason}" for reason in scorers.missing]
    text = "\n\n".join(sections)
    write_text(known_by, json.dumps(report, indent=2))
    write_text(args.out / "evaluation.md", text)
    return text


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate the weights or the run that the command line names. Returns the program's exit status."""
    args = parse_args(argv)
    with memory_advice("end other programs, try --device cpu, or evaluate on fewer test images"):
        check_folder(args.out)
        if args.all_checkpoints:
            text = rank_checkpoints(args.weights, args.out, data_dir=args.data_dir, device=pick_device(args.device))
        else:
            text = run(args)
    print(f"{text}\n\nwritten to {printable(args.out)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
