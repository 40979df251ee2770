"""How good a checkpoint is: is it the same person, does it look like the other domain, how far is it from the truth?

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
from PIL import Image, ImageDraw
from torch import Tensor, nn
from tqdm import tqdm

from config import Config
from dataset import find_images, load_images
from evaluation.metrics import Estimate, absolute_errors, bootstrap, kernel_distance, ssim, translate_in_batches
from evaluation.scorers import (
    DomainClassifier,
    FaceEmbedder,
    Features,
    cosines,
    frechet_distance,
    inception_features,
    predicts_b,
    train_domain_classifier,
)
from evaluation.validation import Validation
from training.checkpoint import CheckpointError, checkpoint_step, list_checkpoints
from utils import UserError, atomic_write, command, image_grid, pick_device, printable, tensor_to_image
from weights.load import OTHER, Direction, Weights, load_weights

INCEPTION = "Inception"
CURVE = (640, 140)  # px, width and height of a diagram
SHEET_ROWS = 3  # of the best, of the median and of the worst translations
COLUMNS = {  # by key: title, and whether more is better
    "kid": ("kernel distance of {features}", False),  # KID, if these are Inception's
    "fid": ("Frechet distance of {features}", False),  # FID, if these are Inception's
    "feature_distance": ("distance in the domain judge's features", False),
    "domain": ("looks like the target", True),
    "identity": ("identity", True),
    "strangers": ("identity of strangers", False),
    "face_found": ("face found", True),
    "cycle_l1": ("cycle L1", False),
    "cycle_ssim": ("cycle SSIM", True),
    "truth_l1": ("L1 to the truth", False),
    "truth_ssim": ("SSIM to the truth", True),
}
Row = dict[str, Estimate]  # by column; a column without a number is left out


@dataclass(frozen=True)
class Domain:
    """The images of one domain as the generators see them, (N, 3, H, W) in [-1, 1]."""

    name: str
    train: Tensor
    test: Tensor

    @property
    def halves(self) -> tuple[Tensor, Tensor]:
        """All images in two halves: translations are compared with the first, and so is the second, which is real."""
        images = torch.cat([self.train, self.test])
        return images[::2], images[1::2]


@dataclass
class Scorers:
    """Who scorers; None where a judge cannot be had, for the reason in `missing`."""

    domain: DomainClassifier
    domain_accuracy: float
    identity: FaceEmbedder | None = None
    features: Features | None = None
    features_name: str = INCEPTION
    missing: tuple[str, ...] = ()


def load_domain(config: Config, index: int, device: torch.device) -> Domain:
    """The images of domain a (0) or b (1); UserError where its training or test folder has none."""
    views = {}
    for split in ("train", "test"):
        folder = find_images(config, split)[index]
        if not folder.files:
            raise UserError(f"no usable images in {printable(folder.path)}; --data-dir names the data set")
        if split == "train" and len(folder.files) < 2:
            raise UserError(f"the judge of the domain needs two training images, found one in {printable(folder.path)}")
        views[split] = load_images(folder.files, config.image_size).to(device)
    return Domain((config.domain_a, config.domain_b)[index], views["train"], views["test"])


def check_pairs(a: Domain, b: Domain, paired: bool) -> None:
    """UserError where test images are to be true pairs and there are more of one domain."""
    if paired and len(a.test) != len(b.test):
        raise UserError(f"pairs want as many test images of both domains, found {len(a.test)} and {len(b.test)}")


def load_scorers(a: Domain, b: Domain, inception_weights: str | None) -> Scorers:
    """Train the judge of the domain, and load those of identity and distribution if they can be had."""
    scorers = Scorers(*train_domain_classifier(a.train, b.train))
    try:
        scorers.identity = FaceEmbedder()
    except UserError as error:
        scorers.missing += (str(error),)
    try:
        scorers.features = inception_features(inception_weights, a.train.device)
    except UserError as error:
        scorers.missing += (str(error),)
    return scorers


def evaluate(
    generators: Mapping[Direction, nn.Module],
    direction: Direction,
    source: Domain,
    target: Domain,
    scorers: Scorers,
    paired: bool,
) -> tuple[dict[str, Row], Tensor]:
    """Judge one direction.

    Args:
        generators: of both directions.
        direction: the one to judge, from domain `source` to `target`.
        scorers: who scorers.
        paired: whether the test images of both domains are true translations of each other, in order.

    Returns:
        Rows by name: "this model"; "no change", the inputs as if they were translations; and "real against real", one
        half of the target domain against the other. Only beside these two do the model's numbers mean anything. And
        the picture sheet, (3, H', W') in [-1, 1]: input, translation, back again.
    """
    inputs, (reference, others) = source.test, target.halves
    outputs = translate_in_batches(generators[direction], inputs)
    returned = translate_in_batches(generators[OTHER[direction]], outputs)
    toward_b = direction == "ab"
    truth = target.test if paired else None
    identity_before = scorers.identity(inputs) if scorers.identity else None
    rows = {
        "this model": judge(outputs, toward_b, reference, scorers, identity_before, truth)
        | estimates(cycle_l1=absolute_errors(returned, inputs), cycle_ssim=ssim(returned, inputs)),
        "no change": judge(inputs, toward_b, reference, scorers, identity_before, truth),
        "real against real": judge(others, toward_b, reference, scorers, None, None),
    }
    order = np.arange(len(inputs))
    if scorers.identity and identity_before is not None:
        order = np.argsort(-cosines(identity_before, scorers.identity(outputs)))  # NaN, no face found, comes last
    middle = max(0, len(order) // 2 - SHEET_ROWS // 2)
    chosen = [*order[:SHEET_ROWS], *order[middle : middle + SHEET_ROWS], *order[-SHEET_ROWS:]]
    return rows, image_grid([inputs[chosen], outputs[chosen], returned[chosen]])


def judge(
    images: Tensor,
    toward_b: bool,
    reference: Tensor,
    scorers: Scorers,
    identity_before: np.ndarray | None,
    truth: Tensor | None,
) -> Row:
    """What the scorers say of images (N, 3, H, W) in [-1, 1] that want to be of the target domain.

    Args:
        images: translations, or what stands for them.
        toward_b: whether the target domain is b.
        reference: real images of the target domain.
        identity_before: embeddings of the inputs, in the images' order; None where there are none.
        truth: what the images should be; None where nobody knows.
    """
    b = predicts_b(scorers.domain, images)
    columns = estimates(domain=b if toward_b else 1 - b)
    distances = {"feature_distance": kernel_distance(scorers.domain.embed(images), scorers.domain.embed(reference))}
    if scorers.features:
        features, real = scorers.features(images), scorers.features(reference)
        distances["kid"] = kernel_distance(features, real)
        if scorers.features_name == INCEPTION:
            fid = frechet_distance(features, real)
            distances["fid"] = Estimate(fid, fid, fid, len(images))
    if scorers.identity:
        after = scorers.identity(images)
        columns |= estimates(face_found=1.0 - np.isnan(after[:, 0]))
        if identity_before is not None:
            strangers = np.roll(identity_before, 1, axis=0)  # everybody with the next one
            columns |= estimates(identity=cosines(identity_before, after), strangers=cosines(strangers, after))
    if truth is not None:
        columns |= estimates(truth_l1=absolute_errors(images, truth), truth_ssim=ssim(images, truth))
    return columns | {name: distance for name, distance in distances.items() if distance}


def estimates(**values: np.ndarray) -> Row:
    """Means with their intervals; columns without any number are left out."""
    return {name: estimate for name, numbers in values.items() if (estimate := bootstrap(numbers))}


def as_markdown(title: str, rows: dict[str, Row], features_name: str = INCEPTION) -> str:
    """A table with a line for each column of `rows`; `features_name` says whose features kid and fid are of."""
    lines = [f"### {title}", "", f"| | {' | '.join(rows)} |", "|---|" + "---|" * len(rows)]
    for key, (name, more_is_better) in COLUMNS.items():
        cells = [str(row[key]) if key in row else "" for row in rows.values()]
        if any(cells):
            name = {"kid": "KID", "fid": "FID"}.get(key, name) if features_name == INCEPTION else name
            name = name.format(features=features_name)
            lines.append(f"| {name} ({'more' if more_is_better else 'less'} is better) | {' | '.join(cells)} |")
    return "\n".join(lines)


# --- The command line


def load_both(weights: Path, device: torch.device) -> Weights:
    """The generators of both directions, on the device; UserError where one is missing."""
    loaded = load_weights(weights)
    for direction in OTHER:
        loaded.generator(direction).to(device)
    return loaded


def rank_checkpoints(run_dir: Path, data_dir: str | None, device: torch.device, out: Path) -> str:
    """Examine all checkpoints of a run, write checkpoints.json and curves.png, and return the table, best first."""
    paths = list_checkpoints(run_dir / "checkpoints")
    if not paths:
        raise UserError(f"there are no checkpoints in {printable(run_dir / 'checkpoints')}")
    config = load_weights(paths[-1]).config
    config = replace(config, data_dir=data_dir or config.data_dir)
    a, b = (load_domain(config, index, device) for index in (0, 1))
    check_pairs(a, b, config.paired_test)
    validation = Validation(a.train, b.train, a.test, b.test, config.paired_test)
    found = {}
    for path in tqdm(paths, unit=" checkpoints", leave=False, disable=None):
        try:
            both = load_both(path, device)
        except CheckpointError as error:
            print(f"skipped: {error}", file=sys.stderr)
            continue
        found[checkpoint_step(path)] = validation.measure(both.generator("ab"), both.generator("ba"))
    if not found:
        raise UserError(f"no checkpoint in {printable(run_dir / 'checkpoints')} is whole")
    with atomic_write(out / "checkpoints.json") as temporary:
        temporary.write_text(json.dumps(found, indent=2) + "\n")
    with atomic_write(out / "curves.png") as temporary:
        draw_curves(found).save(temporary, "PNG")
    columns = list(next(iter(found.values())))
    lines = [f"| step | {' | '.join(columns)} |", "|---|" + "---|" * len(columns)]
    for step in sorted(found, key=lambda step: -found[step]["score"]):
        lines.append(f"| {step} | {' | '.join(f'{value:.3f}' for value in found[step].values())} |")
    return "\n".join(lines)


def draw_curves(found: dict[int, dict[str, float]]) -> Image.Image:
    """A small diagram for each number over the steps, each on its own scale."""
    names, steps = list(next(iter(found.values()))), sorted(found)
    picture = Image.new("RGB", (CURVE[0], CURVE[1] * len(names)), "white")
    draw = ImageDraw.Draw(picture)
    for index, name in enumerate(names):
        values = [found[step][name] for step in steps]
        low, high, top = min(values), max(values), index * CURVE[1] + 24
        draw.text((8, top - 20), f"{name}: {low:.4f} to {high:.4f}, steps {steps[0]} to {steps[-1]}", fill="black")
        width, height = CURVE[0] - 16, CURVE[1] - 32
        points = [(8 + width * (step - steps[0]) / max(steps[-1] - steps[0], 1),
                   top + height * (1 - (value - low) / ((high - low) or 1)))
                  for step, value in zip(steps, values, strict=True)]  # fmt: skip
        draw.rectangle((8, top, 8 + width, top + height), outline="lightgrey")
        draw.line(points, fill="navy", width=2)
        for x, y in points:
            draw.ellipse((x - 3, y - 3, x + 3, y + 3), fill="navy")
    return picture


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; a mistake ends the program with status 2 and says why."""
    parser = argparse.ArgumentParser(description="Measure how good a checkpoint is, on held-out images.")
    add = parser.add_argument
    add("--weights", type=Path, required=True, help="a run's folder, a checkpoint, or a .safetensors file")
    add("--data-dir", help="the data set, with train and test images (default: the one it was trained on)")
    add("--direction", choices=("ab", "ba", "both"), default="both", help="(%(default)s)")
    add("--out", type=Path, default=Path("evaluated"), help="the folder to write to (%(default)s)")
    add("--inception-weights", metavar="PATH", help="of KID and FID; otherwise they are fetched on first use")
    add("--all-checkpoints", action="store_true", help="rank all checkpoints of a run instead, by quick measures")
    add("--paired", action="store_true", help="test images of equal position are true translations of each other")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (%(default)s)")
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> str:
    """Evaluate as the command line asks, write the files, and return the tables."""
    device = pick_device(args.device)
    both = load_both(args.weights, device)
    config = both.config
    config = replace(config, data_dir=args.data_dir or config.data_dir)
    a, b = (load_domain(config, index, device) for index in (0, 1))
    paired = args.paired or config.paired_test
    check_pairs(a, b, paired)
    scorers = load_scorers(a, b, args.inception_weights)
    tables, report = [], {"weights": str(args.weights), "data_dir": config.data_dir,
                          "classifier_accuracy": scorers.domain_accuracy, "missing": scorers.missing}  # fmt: skip
    sides: dict[Direction, tuple[Domain, Domain]] = {"ab": (a, b), "ba": (b, a)}
    for direction, (source, target) in sides.items():
        if args.direction in (direction, "both"):
            rows, picture = evaluate(both.generators, direction, source, target, scorers, paired)
            tables.append(as_markdown(f"{source.name} to {target.name}", rows))
            report[direction] = {name: {key: asdict(value) for key, value in row.items()} for name, row in rows.items()}
            with atomic_write(args.out / f"sheet_{direction}.png") as temporary:
                tensor_to_image(picture).save(temporary, "PNG")
    notes = f"The judge of the domain knows {100 * scorers.domain_accuracy:.0f} % of held-out real images."
    text = "\n\n".join([*tables, notes, *(f"Left out: {reason}" for reason in scorers.missing)])
    with atomic_write(args.out / "evaluation.json") as temporary:
        temporary.write_text(json.dumps(report, indent=2) + "\n")
    with atomic_write(args.out / "evaluation.md") as temporary:
        temporary.write_text(text + "\n")
    return text


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate what the command line names."""
    args = parse_args(argv)
    if args.all_checkpoints:
        text = rank_checkpoints(args.weights, args.data_dir, pick_device(args.device), args.out)
    else:
        text = run(args)
    print(f"{text}\n\nwritten to {printable(args.out)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
