"""Signs of the known ways in which a CycleGAN's training goes wrong, each with what to do about it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from utils import UserError

WINDOW = 5  # rows of metrics that a sign in the losses must last
WON = 0.005  # a discriminator's loss below this: it is never wrong; 0.25 is guessing
STILL = 1e-4  # the losses' spread over their mean below this: they do not move
SAME = 0.002  # change of an image, of [0, 1], below this: half a grey level of 256
UNCHANGED_SHARE = 0.5  # share of the run until which generators that begin as the identity may change nothing
ALIKE = 0.2  # spread of the translations over that of their inputs below this: all look alike
INVERTED = -0.3  # correlation of rough colours of input and translation below this: dark became bright
COARSE = 8  # px that are averaged to see rough colours
HIDDEN = 3.0  # fine change over rough change above this, while the way back is good: the fine change hides the input


@dataclass(frozen=True)
class Symptom:
    """One sign: its name, what is seen, and what to do."""

    name: str
    seen: str
    remedy: str

    def __str__(self) -> str:
        return f"warning: {self.seen}; {self.remedy}"


def check_finite(means: Mapping[str, float], step: int) -> None:
    """UserError that names the losses that were infinite or not a number since the last report."""
    bad = [name for name, mean in means.items() if not math.isfinite(mean)]
    if bad:
        raise UserError(
            f"stopped after step {step}: not finite since the last report: {', '.join(bad)}\n"
            "the weights were not changed by it; try a lower --learning-rate in another --run-name"
        )


def symptoms_in_losses(rows: Sequence[Mapping[str, float]]) -> Iterator[Symptom]:
    """What the newest rows of metrics.csv say; nothing before there are WINDOW of them."""
    newest = rows[-WINDOW:]
    if len(newest) < WINDOW:
        return
    for domain in "ab":
        highest = max(row[f"loss/disc_{domain}"] for row in newest)
        if highest < WON:
            yield Symptom(
                f"disc_{domain} has won",
                f"the discriminator of domain {domain} is never wrong (loss {highest:.4f}), which teaches nothing",
                "try --diff-augment geometry or --spectral-norm, and look for a difference that gives all images away",
            )
    totals = [row["loss/gen"] for row in newest]
    if max(totals) - min(totals) <= STILL * abs(sum(totals) / WINDOW):
        yield Symptom(
            "losses stand still",
            f"the generators' loss has stayed at {totals[-1]:.4f} over {WINDOW} rows",
            "look at grad_norm/gen: if it is 0, begin again with another --seed or a lower --learning-rate",
        )


def symptoms_in_images(direction: str, real: Tensor, fake: Tensor, rec: Tensor, progress: float) -> Iterator[Symptom]:
    """What sample images say.

    Args:
        direction: such as "european to asian", for the text.
        real, fake, rec: inputs, their translations, and these translated back, (N, 3, H, W) in [-1, 1].
        progress: share of the run that is done.
    """
    change = fake - real
    rough, rough_real = F.avg_pool2d(change, COARSE), F.avg_pool2d(real, COARSE)
    fine = change - F.interpolate(rough, change.shape[-2:], mode="nearest")
    size = change.abs().mean().item() / 2  # of images in [0, 1]
    if size < SAME:
        if progress >= UNCHANGED_SHARE:
            yield Symptom(
                f"{direction} does nothing",
                f"translations {direction} equal their inputs (mean change {size:.4f})",
                "try --lambda-cycle 5 --lambda-identity 0, or train longer",
            )
        return
    if len(real) > 1 and _spread(fake) < ALIKE * _spread(real):
        yield Symptom(
            f"{direction} has collapsed",
            f"translations {direction} all look alike",
            "go back to an earlier checkpoint with a lower --learning-rate, or raise --lambda-cycle",
        )
    elif _correlation(rough_real, rough_real + rough) < INVERTED:
        yield Symptom(
            f"{direction} inverts",
            f"translations {direction} turn dark into bright or colours into their opposites",
            "begin again with another --seed; --global-skip and --lambda-identity 0.5 keep colours in place",
        )
    elif fine.abs().mean() > HIDDEN * rough.abs().mean() and (rec - real).abs().mean() < change.abs().mean() / 2:
        yield Symptom(
            f"{direction} hides its input",
            f"translations {direction} change in fine noise only, from which the way back is read",
            "lower --lambda-cycle, so that the way back need not be exact",
        )


def _spread(images: Tensor) -> float:
    """How much images differ from each other."""
    return float(images.std(dim=0).mean())


def _correlation(x: Tensor, y: Tensor) -> float:
    """Mean correlation of each image's values, channels taken together."""
    x, y = (values.flatten(1) - values.flatten(1).mean(dim=1, keepdim=True) for values in (x, y))
    cosines: Tensor = torch.cosine_similarity(x, y)
    return float(cosines.mean())
