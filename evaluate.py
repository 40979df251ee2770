"""Evaluate a checkpoint: how well translations match the target domain, keep the person, and match the ground truth.

python evaluate.py --weights RUN_OR_FILE --data-dir FOLDER [--direction both]
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from config import Config
from dataset import find_images, load_images
from evaluation.classifier import predicts_b
from evaluation.metrics import Estimate, absolute_errors, bootstrap, kernel_distance, ssim, translate_in_batches
from evaluation.report import Row, draw_curves, evaluation_table, ranking_table
from evaluation.scorers import INCEPTION, Scorers, cosines, frechet_distance, load_scorers
from evaluation.validation import Validation
from training.checkpoint import CheckpointError, checkpoint_step, list_checkpoints, newest_checkpoint, saved_config
from utils import UserError, atomic_write, command, image_grid, pick_device, printable, tensor_to_image
from weights.load import DIRECTIONS, OTHER, Direction, Weights, load_weights

SHEET_ROWS = 3  # A sheet holds this many of the best, of the median and of the worst translations.


@dataclass(frozen=True)
class Domain:
    """The images of one domain, (N, 3, H, W) in [-1, 1]."""

    name: str
    train: Tensor
    test: Tensor

    @property
    def halves(self) -> tuple[Tensor, Tensor]:
        """All images, training and test, in two halves: a reference, and real images to compare with it."""
        images = torch.cat([self.train, self.test])
        return images[::2], images[1::2]


@dataclass(frozen=True)
class Task:
    """Translate the test images of one domain to another.

    Attributes:
        direction: the direction from `source` to `target`.
        source, target: the two domains.
        paired: whether their test images with the same index are true translations of each other.
    """

    direction: Direction
    source: Domain
    target: Domain
    paired: bool


def load_domains(config: Config, device: torch.device, *, paired: bool) -> tuple[Domain, Domain]:
    """Load the training and test images of domains a and b.

    Raises:
        UserError: a folder has no images or too few, or `paired` is true and the domains differ in test images.
    """
    train, test = find_images(config, "train"), find_images(config, "test")
    for folder in (*train, *test):
        if not folder.files:
            raise UserError(f"no usable images in {printable(folder.path)}; give the data set's folder with --data-dir")
    count_a, count_b = (len(folder.files) for folder in test)
    if paired and count_a != count_b:
        raise UserError(
            f"paired evaluation needs equally many test images of both domains, found {count_a} and {count_b};\n"
            f"add the missing ones to {printable(test[0].path)} or {printable(test[1].path)}"
        )
    train_a, train_b, test_a, test_b = (
        load_images(folder.files, config.image_size).to(device) for folder in (*train, *test)
    )
    return Domain(config.domain_a, train_a, test_a), Domain(config.domain_b, train_b, test_b)


def evaluate(
    generators: Mapping[Direction, nn.Module], task: Task, *, scorers: Scorers
) -> tuple[dict[str, Row], Tensor]:
    """Evaluate one direction.

    Args:
        generators: the generators of both directions.
        task: the images to translate, and the domain to translate them to.
        scorers: the networks that score the translations.

    Returns:
        Rows by name: "this model"; "no change", which scores the inputs as if they were translations; and "real
        against real", which scores one half of the target domain against the other. The model's values mean little
        without these two. And a sheet of examples, (3, H', W') in [-1, 1]: inputs, translations, cycle reconstructions.
    """
    # Translate the test images and translate the results back.
    real = task.source.test
    fake = translate_in_batches(generators[task.direction], real)
    rec = translate_in_batches(generators[OTHER[task.direction]], fake)

    # Score the translations and, for comparison, the unchanged inputs and real images of the target domain.
    _, real_target = task.target.halves
    truth = task.target.test if task.paired else None
    embeddings = scorers.identity(real) if scorers.identity else None
    model = score(fake, task, scorers=scorers, input_embeddings=embeddings, truth=truth)
    model |= estimates(cycle_l1=absolute_errors(rec, real), cycle_ssim=ssim(rec, real))
    rows = {
        "this model": model,
        "no change": score(real, task, scorers=scorers, input_embeddings=embeddings, truth=truth),
        "real against real": score(real_target, task, scorers=scorers),
    }

    # Choose examples: those that keep the identity best, those in the middle, and those that keep it least.
    order = np.arange(len(real))
    if scorers.identity and embeddings is not None:
        order = np.argsort(-cosines(embeddings, scorers.identity(fake)))  # images without a face (NaN) come last
    middle = max(0, len(order) // 2 - SHEET_ROWS // 2)
    chosen = [*order[:SHEET_ROWS], *order[middle : middle + SHEET_ROWS], *order[-SHEET_ROWS:]]
    return rows, image_grid([real[chosen], fake[chosen], rec[chosen]])


def score(
    images: Tensor,
    task: Task,
    *,
    scorers: Scorers,
    input_embeddings: np.ndarray | None = None,
    truth: Tensor | None = None,
) -> Row:
    """Score images (N, 3, H, W) in [-1, 1] as translations to the target domain.

    Args:
        images: translations, or other images to compare them with.
        task: the target domain.
        scorers: the networks that score the images.
        input_embeddings: (N, d), the embedded faces of the images' inputs; None leaves out the identity.
        truth: (N, 3, H, W) in [-1, 1], the ground truth of each image; None leaves out the errors.
    """
    is_b = predicts_b(scorers.domain, images)
    row = estimates(domain=is_b if task.direction == "ab" else 1 - is_b)
    if scorers.identity:
        embeddings = scorers.identity(images)
        row |= estimates(face_found=1.0 - np.isnan(embeddings[:, 0]))
        if input_embeddings is not None:
            strangers = np.roll(input_embeddings, 1, axis=0)  # pairs each image with the input before its own
            row |= estimates(identity=cosines(input_embeddings, embeddings), strangers=cosines(strangers, embeddings))
    if truth is not None:
        row |= estimates(truth_l1=absolute_errors(images, truth), truth_ssim=ssim(images, truth))
    reference, _ = task.target.halves
    return row | distances(images, reference, scorers=scorers)


def distances(images: Tensor, reference: Tensor, *, scorers: Scorers) -> Row:
    """The distances between the distributions of two sets of images, (N, 3, H, W) and (M, 3, H, W) in [-1, 1]."""
    found = {"feature_distance": kernel_distance(scorers.domain.embed(images), scorers.domain.embed(reference))}
    if scorers.features:
        features, reference_features = scorers.features(images), scorers.features(reference)
        found["kid"] = kernel_distance(features, reference_features)
        if scorers.features_name == INCEPTION:
            fid = frechet_distance(features, reference_features)
            found["fid"] = Estimate(fid, count=len(images))
    return {key: distance for key, distance in found.items() if distance}


def estimates(**values: np.ndarray) -> Row:
    """Means of one value per image, with their intervals, by key; measures that no image has are left out."""
    found = {key: bootstrap(numbers) for key, numbers in values.items()}
    return {key: estimate for key, estimate in found.items() if estimate}


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
    validation = Validation(a.train, b.train, a.test, b.test, config.paired_test)
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
    with atomic_write(out / "curves.png") as temporary:
        draw_curves(ranking).save(temporary, "PNG")
    return ranking_table(ranking)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically, with a line break at its end."""
    with atomic_write(path) as temporary:
        temporary.write_text(text + "\n")


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; an invalid one ends the program with a message and status 2."""
    parser = argparse.ArgumentParser(description="Measure how good a checkpoint is, on held-out images.")
    add = parser.add_argument
    add("--weights", type=Path, required=True, help="a run's folder, a checkpoint, or a .safetensors file")
    add("--data-dir", help="folder with train and test images (default: the one that the weights were trained on)")
    add("--direction", choices=("ab", "ba", "both"), default="both", help="what to evaluate (default: %(default)s)")
    add("--out", type=Path, default=Path("evaluated"), help="folder to write to (default: %(default)s)")
    add("--inception-weights", metavar="PATH", help="weights for KID and FID (default: download them on first use)")
    add("--all-checkpoints", action="store_true", help="instead rank all checkpoints of a run by quick measures")
    add("--paired", action="store_true", help="test images of the same position are true translations of each other")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (default: %(default)s)")
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> str:
    """Evaluate one set of weights, write the tables, the JSON file and the sheets, and return the tables."""
    # Load the weights, the images and the scorers.
    device = pick_device(args.device)
    weights = load_both(args.weights, device)
    config = replace(weights.config, data_dir=args.data_dir or weights.config.data_dir)
    paired = args.paired or config.paired_test
    a, b = load_domains(config, device, paired=paired)
    scorers = load_scorers(a.train, b.train, inception_weights=args.inception_weights)

    # Evaluate each direction, and save its sheet of examples.
    sections = []
    report = {"weights": str(args.weights), "data_dir": config.data_dir,
              "classifier_accuracy": scorers.domain_accuracy, "missing": scorers.missing}  # fmt: skip
    for task in (Task("ab", a, b, paired), Task("ba", b, a, paired)):
        if args.direction in (task.direction, "both"):
            rows, sheet = evaluate(weights.generators, task, scorers=scorers)
            sections.append(evaluation_table(f"{task.source.name} to {task.target.name}", rows))
            report[task.direction] = {
                name: {key: asdict(estimate) for key, estimate in row.items()} for name, row in rows.items()
            }
            with atomic_write(args.out / f"sheet_{task.direction}.png") as temporary:
                tensor_to_image(sheet).save(temporary, "PNG")

    # Write the tables, with the accuracy of the classifier and the reasons for missing measures.
    sections.append(f"The domain classifier is right on {100 * scorers.domain_accuracy:.0f} % of held-out real images.")
    sections += [f"Left out: {reason}" for reason in scorers.missing]
    text = "\n\n".join(sections)
    write_text(args.out / "evaluation.json", json.dumps(report, indent=2))
    write_text(args.out / "evaluation.md", text)
    return text


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate the weights or the run that the command line names. Returns the program's exit status."""
    args = parse_args(argv)
    if args.all_checkpoints:
        text = rank_checkpoints(args.weights, args.out, data_dir=args.data_dir, device=pick_device(args.device))
    else:
        text = run(args)
    print(f"{text}\n\nwritten to {printable(args.out)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
