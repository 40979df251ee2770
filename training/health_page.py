"""The page "Is it healthy?" in TensorBoard: its charts, its text, and the warnings that a resumed run remembers."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

import torch

from config import Config
from training.losses import SOURCE_WEIGHT
from training.source_commit import source_commit
from utils import atomic_write, printable

TITLE = "Is it healthy?"
TEXT_TAG = "Is_it_healthy"  # TensorBoard sorts capitals first, so that this text stands above the configuration.
ADDRESS = "http://localhost:6006/#custom_scalars"  # TensorBoard shows the page's charts there.
Charts = dict[str, dict[str, tuple[str, list[str]]]]


def charts(domains: tuple[str, str]) -> Charts:
    """What `SummaryWriter.add_custom_scalars` takes: the page's charts, whose lines are scalars by their tags."""
    a, b = domains
    lines = {
        f"scores of discriminator a: real and translated {a}": ["score/real_a", "score/fake_a"],
        f"scores of discriminator b: real and translated {b}": ["score/real_b", "score/fake_b"],
        "cycle loss, mean absolute error in [-1, 1]": ["loss/cycle_a", "loss/cycle_b"],
        "GAN loss of the generators": ["loss/gan_ab", "loss/gan_ba"],
        "losses of the discriminators": ["loss/disc_a", "loss/disc_b"],
        "gradient norms": ["grad_norm/gen", "grad_norm/disc"],
    }
    return {TITLE: {title: ("Multiline", tags) for title, tags in lines.items()}}


def page(config: Config, *, step: int, warnings: Sequence[str], command: str, commit: str, device: str) -> str:
    """The page's text, in Markdown.

    Args:
        config: the run's configuration.
        step: how many steps are finished.
        warnings: the warnings so far, a line each.
        command: the command line that started the program.
        commit: what `commit` returns.
        device: where the run trains.
    """
    listed = "\n".join(f"- {warning}" for warning in warnings) or "none"
    return (
        f"# {TITLE}\n\nThe charts are under Custom Scalars, the pictures under Images.\n\n"
        f"## Healthy training looks like this\n\n{_healthy(config)}\n\n"
        f"## Warnings up to step {step}\n\n{listed}\n\n"
        f"## This run\n\n- command: `{command}`\n- commit: {commit}\n- device: {device}\n"
    )


def _healthy(config: Config) -> str:
    """What healthy training looks like, a sentence for each chart and two for the samples."""
    negatives = 1 + SOURCE_WEIGHT if config.source_negatives else 1.0
    of_each = math.log(2) if config.gan_loss == "logistic" else 0.25  # Its loss is this where a score says "perhaps".
    guessing = of_each * (1 + negatives) / 2
    first = "their inputs" if config.global_skip else "noise"
    sentences = (
        "Each discriminator scores real images above translated ones, and the distance does not grow without end.",
        "The cycle loss falls early; it may rise a little while the generators learn to change more.",
        "The GAN loss of the generators goes up and down, and neither falls to 0 nor grows without end.",
        f"The losses of the discriminators lie between 0 and {guessing:.2f}, which is the loss of guessing.",
        "The gradient norms are neither 0 nor grow without end.",
        f"The first samples look like {first}; later the second column of each grid takes on the other domain's look, "
        "and the third stays close to the first.",
    )
    return "\n".join(f"{number}. {sentence}" for number, sentence in enumerate(sentences, 1))


def command_line(argv: Sequence[str]) -> str:
    """The command that started the program, to be typed again."""
    return printable(shlex.join(["python", *argv]))


def commit() -> str:
    """The program's commit, and whether files were changed after it; or why it is unknown."""
    try:
        return source_commit()
    except LookupError as reason:
        return f"unknown, since {reason}"


def device_name(device: torch.device) -> str:
    """A device by number and, where it is a GPU, by name."""
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)


# --- The warnings


def read_warnings(path: Path, step: int) -> list[str]:
    """The warnings that an earlier process wrote about the steps up to `step`; none where there is no such file."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    found = ((line, re.search(r"\(step (\d{1,15})\)$", line)) for line in lines)
    return [line for line, match in found if match and int(match[1]) <= step]


def write_warnings(path: Path, warnings: Sequence[str]) -> None:
    """Write the warnings, a line each."""
    with atomic_write(path) as file:
        file.write_text("".join(f"{warning}\n" for warning in warnings), encoding="utf-8")
