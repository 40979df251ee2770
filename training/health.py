"""Symptoms of the known ways in which a CycleGAN's training fails, each with a remedy."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from utils import UserError

WINDOW = 5  # A symptom in the losses must last for this many rows of metrics.csv.
MIN_DISC_LOSS = 0.005  # A discriminator with a loss below this is never wrong; one that guesses has 0.25 or more.
MIN_LOSS_RANGE = 1e-4  # Losses are stuck if their range, divided by their mean, stays below this.
MIN_CHANGE = 0.002  # Translations with a smaller mean change, half a grey level of 256, equal their inputs.
UNCHANGED_SHARE = 0.5  # Generators that start as the identity may change nothing for this fraction of the run.
MIN_SPREAD = 0.2  # Translations have collapsed if their spread, divided by that of their inputs, is below this.
MIN_CORRELATION = -0.3  # Colours are inverted if rough input and rough translation correlate less than this.
ROUGH_SIDE = 8  # Rough colours are means over squares with this side, px.
MAX_FINE_CHANGE = 3.0  # Fine change, divided by rough change, above this hides the input if cycles restore it.
BLOCK_SIDE = 32  # Spectra are of overlapping squares with this side, px, so that stripes on a part of the image count.
LONGEST_PERIOD = 8  # What repeats with a longer period than this, px, may belong to the picture.
NEIGHBOUR_BINS = 3  # Each frequency is compared with those up to this many bins away in both axes.
MAX_PEAK = 3.0  # Power gained at one frequency, divided by that gained around it, above this is a periodic pattern.
GREY_LEVEL = 1 / 127.5  # One of 256 grey levels, for images in [-1, 1].


@dataclass(frozen=True)
class Symptom:
    """A symptom of failing training.

    Attributes:
        name: identifies the symptom within a run.
        observation: what is wrong, with the value that shows it.
        remedy: what the user can do about it.
    """

    name: str
    observation: str
    remedy: str

    def __str__(self) -> str:
        return f"warning: {self.observation}; {self.remedy}"


def check_finite(means: Mapping[str, float], step: int) -> None:
    """UserError, with the names of the losses, if any mean since the last report is infinite or NaN."""
    bad = [name for name, mean in means.items() if not math.isfinite(mean)]
    if bad:
        raise UserError(
            f"stopped after step {step}, because these values became infinite or NaN: {', '.join(bad)}\n"
            "such steps did not change the weights; train again with a lower --learning-rate and another --run-name"
        )


def symptoms_in_losses(rows: Sequence[Mapping[str, float]]) -> Iterator[Symptom]:
    """The symptoms in the newest rows of metrics.csv; none while there are fewer than WINDOW rows."""
    newest = rows[-WINDOW:]
    if len(newest) < WINDOW:
        return
    for domain in "ab":
        highest = max(row[f"loss/disc_{domain}"] for row in newest)
        if highest < MIN_DISC_LOSS:
            yield Symptom(
                f"disc_{domain} has won",
                f"the discriminator of domain {domain} is never wrong (loss {highest:.4f}), so the generators learn "
                "nothing from it",
                "try --diff-augment geometry or --spectral-norm, and check whether the domains differ in something "
                "trivial, such as a border or the image format",
            )
    totals = [row["loss/gen"] for row in newest]
    if max(totals) - min(totals) <= MIN_LOSS_RANGE * abs(sum(totals) / WINDOW):
        yield Symptom(
            "losses are stuck",
            f"the generators' loss has stayed at {totals[-1]:.4f} for {WINDOW} rows of metrics.csv",
            "if grad_norm/gen is 0, start another run with another --seed or a lower --learning-rate",
        )


def symptoms_in_images(
    direction: str, *, real: Tensor, fake: Tensor, rec: Tensor, progress: float
) -> Iterator[Symptom]:
    """The symptoms in sample images of one direction.

    Args:
        direction: names the direction in the text, such as "european to asian".
        real, fake, rec: inputs, translations and cycle reconstructions, (N, 3, H, W) in [-1, 1], float32.
        progress: the fraction of the run that is complete, 0 to 1.
    """
    change = fake - real
    mean_change = change.abs().mean().item() / 2  # for images in [0, 1]
    if mean_change < MIN_CHANGE:
        if progress >= UNCHANGED_SHARE:
            yield Symptom(
                f"{direction} does nothing",
                f"translations {direction} still equal their inputs (mean change {mean_change:.4f})",
                "this is normal in the first thousand steps; later lower --lambda-cycle or --lambda-identity",
            )
        return
    rough_change, rough_real = F.avg_pool2d(change, ROUGH_SIDE), F.avg_pool2d(real, ROUGH_SIDE)
    fine_change = change - F.interpolate(rough_change, change.shape[-2:], mode="nearest")
    is_mostly_fine = fine_change.abs().mean() > MAX_FINE_CHANGE * rough_change.abs().mean()
    if len(real) > 1 and _spread(fake) < MIN_SPREAD * _spread(real):
        yield Symptom(
            f"{direction} has collapsed",
            f"translations {direction} all look alike",
            "start another run with a lower --learning-rate or a higher --lambda-cycle",
        )
    elif _correlation(rough_real, rough_real + rough_change) < MIN_CORRELATION:
        yield Symptom(
            f"{direction} inverts",
            f"translations {direction} turn dark into bright or colours into their opposites",
            "start another run with another --seed; --global-skip and --lambda-identity 0.5 preserve colours",
        )
    elif is_mostly_fine and (rec - real).abs().mean() < change.abs().mean() / 2:
        yield Symptom(
            f"{direction} hides its input",
            f"translations {direction} differ from their inputs only in fine noise, which encodes the input for the "
            "way back",
            "lower --lambda-cycle, so that cycles need not restore every detail",
        )
    peak, period = periodic_pattern(real, fake)
    if peak > MAX_PEAK:
        yield Symptom(
            f"{direction} has stripes",
            f"translations {direction} have stripes or a grid with a period of {period:.1f} px that their inputs lack",
            "try --upsampling resize --disc-norm none --r1-gamma 1, or return to an earlier checkpoint",
        )


def periodic_pattern(real: Tensor, fake: Tensor) -> tuple[float, float]:
    """How much more power one frequency has gained than those around it, and its period in px.

    A translation may be sharper or softer than its input, which changes neighbouring frequencies alike. What repeats
    every few px changes one frequency alone.

    Args:
        real, fake: inputs and their translations, (N, 3, H, W) in [-1, 1], with sides of at least BLOCK_SIDE px.
    """
    invisible = (GREY_LEVEL / 2) ** 2  # the power of a wave that is one grey level high
    gain = (_spectrum(fake) + invisible) / (_spectrum(real) + invisible)  # (BLOCK_SIDE, BLOCK_SIDE)
    offsets = range(-NEIGHBOUR_BINS, NEIGHBOUR_BINS + 1)
    shifted = torch.stack([gain.roll((row, column), (0, 1)) for row in offsets for column in offsets])
    around = shifted.median(dim=0).values  # (BLOCK_SIDE, BLOCK_SIDE)
    frequencies = torch.fft.fftfreq(BLOCK_SIDE, device=gain.device).abs()  # (BLOCK_SIDE,), cycles per px
    higher = torch.maximum(frequencies[:, None], frequencies)  # of both axes, (BLOCK_SIDE, BLOCK_SIDE)
    peaks = torch.where(higher >= 1 / LONGEST_PERIOD, gain / around, 0).flatten()
    highest = peaks.argmax()
    return float(peaks[highest]), float(1 / higher.flatten()[highest])


def _spectrum(images: Tensor) -> Tensor:
    """Mean power at each frequency, (BLOCK_SIDE, BLOCK_SIDE); a wave of amplitude a has (a / 2)^2."""
    grey = images.float().mean(dim=1, keepdim=True)  # (N, 1, H, W)
    columns = F.unfold(grey, BLOCK_SIDE, stride=BLOCK_SIDE // 2)  # (N, BLOCK_SIDE^2, blocks)
    blocks = columns.transpose(1, 2).reshape(-1, BLOCK_SIDE, BLOCK_SIDE)
    window = torch.hann_window(BLOCK_SIDE, device=images.device)
    weights = torch.outer(window, window)
    waves = torch.fft.fft2((blocks - blocks.mean(dim=(1, 2), keepdim=True)) * weights) / weights.sum()
    power: Tensor = waves.abs().square().mean(dim=0)
    return power


def _spread(images: Tensor) -> float:
    """How much images differ from each other: their mean standard deviation at a position."""
    return float(images.std(dim=0).mean())


def _correlation(x: Tensor, y: Tensor) -> float:
    """Mean correlation of each image in x with the same image in y, over all channels and positions."""
    x, y = (values.flatten(1) - values.flatten(1).mean(dim=1, keepdim=True) for values in (x, y))
    cosines: Tensor = torch.cosine_similarity(x, y)
    return float(cosines.mean())
