"""Score translations of one direction: the task, the measures of a set of images, and the curve over the strength."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from evaluation.classifier import predicts_b
from evaluation.distortions import DISTORTIONS
from evaluation.metrics import (
    Estimate,
    absolute_errors,
    bootstrap,
    change_outside,
    edits_in_batches,
    kernel_distance,
    rank_one,
    sharpness,
    ssim,
)
from evaluation.report import Row
from evaluation.scorers import INCEPTION, Scorers, cosines, frechet_distance
from generator_model import moved
from photos.crops import measure_template, paste_mask
from utils import Template, tensor_to_image
from weights.load import Direction

MAX_OFFSET = 0.05  # Landmarks that lie further from the template's, in sides, show that faces are cropped differently.
STRENGTHS = (0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0)  # Translations are scored at these strengths.


@dataclass(frozen=True)
class Domain:
    """The images of one domain, (N, 3, H, W) in [-1, 1].

    Attributes:
        name: the domain's name.
        read_train: reads the training images anew, a batch at a time: together they may not fit into memory.
        test: the test images.
    """

    name: str
    read_train: Callable[[], Iterable[Tensor]]
    test: Tensor


@dataclass(frozen=True)
class Task:
    """Translate the test images of one domain to another.

    Attributes:
        direction: the direction from `source` to `target`.
        source, target: the two domains.
        paired: whether their test images with the same index are true translations of each other.
        strength: how much of the change to apply, see `generator_model.edit_at_strength`.
        template: where the landmarks of faces are in the images; None for images of other things.
    """

    direction: Direction
    source: Domain
    target: Domain
    paired: bool
    strength: float = 1.0
    template: Template | None = None

    @property
    def name(self) -> str:
        """The direction in words."""
        return f"{self.source.name} to {self.target.name}"


def warning_of_framing(images: Tensor, template: Template | None) -> str | None:
    """What to say if the faces in images (N, 3, H, W) in [-1, 1] lie elsewhere than the template has them."""
    if template is None:
        return None
    found = measure_template(np.asarray(tensor_to_image(image)) for image in images)
    if found is None:
        return None
    offset = float(np.abs(np.subtract(found, template)).max())
    if offset <= MAX_OFFSET:
        return None
    return (
        f"Faces lie elsewhere in these images than in those of the training, by up to {offset:.0%} of the side. So "
        "these figures do not apply to photographs, in which translate.py aligns the faces: crop the images alike."
    )


References = dict[str, np.ndarray]  # The features (N, d) of real images, by the measure that compares them.


def score(
    images: Tensor,
    task: Task,
    *,
    scorers: Scorers,
    references: References,
    input_embeddings: np.ndarray | None = None,
    truth: Tensor | None = None,
) -> Row:
    """Score images (N, 3, H, W) in [-1, 1] as translations to the target domain.

    Args:
        images: translations, or other images to compare them with.
        task: the target domain.
        scorers: the networks that score the images.
        references: the features of real images of the target domain, see `embed_real`.
        input_embeddings: (N, d), the embedded faces of the images' inputs; None leaves out the identity.
        truth: (N, 3, H, W) in [-1, 1], the ground truth of each image; None leaves out the errors.
    """
    row = score_success(images, task, scorers=scorers, input_embeddings=input_embeddings)
    row |= score_damaged(images, task, scorers=scorers)
    if truth is not None:
        row |= estimates(truth_l1=absolute_errors(images, truth), truth_ssim=ssim(images, truth))
    return row | distances({key: network(images) for key, network in scorers.networks.items()}, references, scorers)


def score_success(images: Tensor, task: Task, *, scorers: Scorers, input_embeddings: np.ndarray | None = None) -> Row:
    """Whether images are read as the target domain, and whether the person is still there; arguments as in `score`."""
    domain = read_as_target(images, task, scorers=scorers)
    row = estimates(domain=domain)
    if scorers.identity:
        embeddings = scorers.identity(images)
        row |= estimates(face_found=1.0 - np.isnan(embeddings[:, 0]))
        if input_embeddings is not None:
            strangers = np.roll(input_embeddings, 1, axis=0)  # pairs each image with the input before its own
            right = rank_one(embeddings, input_embeddings)  # 0 where no face is found
            row |= estimates(identity=cosines(input_embeddings, embeddings), strangers=cosines(strangers, embeddings))
            row |= estimates(rank_one=right, joint=right * domain)
    return row


def read_as_target(images: Tensor, task: Task, *, scorers: Scorers) -> np.ndarray:
    """1 for each image (N, 3, H, W) that the classifier assigns to the target domain, else 0; (N,) float64."""
    is_b = predicts_b(scorers.domain, images)
    return is_b if task.direction == "ab" else 1 - is_b


def score_damaged(images: Tensor, task: Task, *, scorers: Scorers) -> Row:
    """The share of images that the classifier still assigns to the target after each of DISTORTIONS."""
    return estimates(**{
        f"domain_{name}": read_as_target(distort(images), task, scorers=scorers)
        for name, distort in DISTORTIONS.items()
    })  # fmt: skip


def score_real(task: Task, *, scorers: Scorers) -> Row:
    """Score the target's test images, which the classifier has not seen: no translation need score higher."""
    row = score_success(task.target.test, task, scorers=scorers)
    return row | score_damaged(task.target.test, task, scorers=scorers)


def compare_with_inputs(images: Tensor, inputs: Tensor, template: Template | None) -> Row:
    """How sharp translations are, and where they change, relative to their inputs.

    Args:
        images, inputs: (N, 3, H, W) in [-1, 1].
        template: where the landmarks of faces are; None for images of other things, which have no inside.
    """
    row = estimates(sharpness=sharpness(images, inputs))
    if template is None:
        return row
    inside = torch.from_numpy(paste_mask(inputs.shape[-1], template) == 1).to(inputs.device)  # (H, W)
    return row | estimates(change_outside=change_outside(images, inputs, inside))


def embed_real(domain: Domain, *, scorers: Scorers) -> tuple[References, References]:
    """The features of all real images of a domain in two halves: a reference, and images to compare with it."""
    found: dict[str, list[np.ndarray]] = {key: [] for key in scorers.networks}
    for batch in chain(domain.read_train(), [domain.test]):
        for key, network in scorers.networks.items():
            found[key].append(network(batch))
    features = {key: np.concatenate(parts) for key, parts in found.items()}
    return {key: x[::2] for key, x in features.items()}, {key: x[1::2] for key, x in features.items()}


def as_pasted(images: Tensor, inputs: Tensor, template: Template | None, shift: Tensor | None = None) -> Tensor:
    """Translations as photographs take them on, which change in the face only; see `photos.crops.paste`.

    Args:
        images, inputs: translations and their inputs, (N, 3, H, W) in [-1, 1].
        template: where the landmarks of faces are; None for images of other things, which change as a whole.
        shift: how the inputs' pixels have moved, (N, 2, H, W), see `generator_model.moved`; None if they have not.
    """
    if template is None:
        return images
    mask = torch.from_numpy(paste_mask(inputs.shape[-1], template)).to(inputs.device)  # (H, W)
    if shift is None:
        return torch.lerp(inputs, images, mask.expand_as(images))
    return (moved(inputs, mask * shift) + mask * (images - moved(inputs, shift))).clamp(-1, 1)


def distances(features: References, references: References, scorers: Scorers) -> Row:
    """The distances between the distributions of two sets of images, from their features by measure."""
    found = {key: kernel_distance(features[key], references[key]) for key in features}
    if "kid" in features and scorers.features_name == INCEPTION:
        fid = frechet_distance(features["kid"], references["kid"])
        found["fid"] = Estimate(fid, count=len(features["kid"]))
    return {key: distance for key, distance in found.items() if distance}


def strength_curve(generator: nn.Module, task: Task, *, scorers: Scorers) -> dict[float, Row]:
    """Score weaker and stronger translations of the test images, by strength, as photographs take them on."""
    real = task.source.test
    embeddings = scorers.identity(real) if scorers.identity else None
    curve: dict[float, Row] = {}
    edit = edits_in_batches(generator, real)
    for strength in tqdm(STRENGTHS, unit=" strengths", leave=False, disable=None):
        fake, shift = edit(strength)
        images = as_pasted(fake, real, task.template, shift)
        row = score_success(images, task, scorers=scorers, input_embeddings=embeddings)
        curve[strength] = row | compare_with_inputs(images, real, task.template)
    return curve


def best_strength(curve: dict[float, Row]) -> float:
    """The strength with the highest joint success or, without an embedder of faces, share that is read as the target.

    Of equally good strengths it is the weakest.
    """
    key = "joint" if any("joint" in row for row in curve.values()) else "domain"
    values = {strength: row[key].value for strength, row in curve.items() if key in row}
    return max(values, key=lambda strength: (values[strength], -strength))


def estimates(**values: np.ndarray) -> Row:
    """Means of one value per image, with their intervals, by key; measures that no image has are left out."""
    found = {key: bootstrap(numbers) for key, numbers in values.items()}
    return {key: estimate for key, estimate in found.items() if estimate}
