"""Load trained generators from a run, a checkpoint or a .safetensors file, and export them to .safetensors."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from config import Config, from_dict, to_dict
from generator_model import Generator
from training.checkpoint import CheckpointError, newest_checkpoint, read_checkpoint, saved_config
from utils import Template, UserError, atomic_write, printable
from weights.safetensors_file import read_generators, write_generators

Direction = Literal["ab", "ba"]
DIRECTIONS: tuple[Direction, ...] = ("ab", "ba")  # From domain a to b, and from b to a.
OTHER: dict[Direction, Direction] = {"ab": "ba", "ba": "ab"}
MAX_POSITION = 10  # Landmarks of a template are closer to its corner than this many sides of the image.


@dataclass(frozen=True)
class Weights:
    """Trained generators, and how they were trained.

    Attributes:
        path: the run's folder or the file that they were loaded from.
        generators: networks by direction, on the CPU, in evaluation mode. Imported files may hold only one direction.
        config: the configuration that they were trained with.
        template: where the landmarks of faces are in the training images; None if the images do not show faces.
    """

    path: Path
    generators: dict[Direction, Generator]
    config: Config
    template: Template | None

    def generator(self, direction: Direction) -> Generator:
        """The generator of one direction; UserError if the file does not hold it or its weights are not finite."""
        if direction not in DIRECTIONS:
            raise UserError(f'direction must be "ab" or "ba", got {direction!r}')
        if direction not in self.generators:
            other = OTHER[direction]
            raise CheckpointError(
                f"{printable(self.path)} does not hold gen_{direction}, only gen_{other}; use --direction {other}"
            )
        generator = self.generators[direction]
        if not all(torch.isfinite(weights).all() for weights in generator.parameters()):
            raise CheckpointError(
                f"{printable(self.path)} holds numbers that are not finite; use an earlier checkpoint"
            )
        return generator


def load_weights(path: str | os.PathLike[str], *, ema: bool = True) -> Weights:
    """Read trained generators.

    Args:
        path: a run's folder, of which the newest intact checkpoint is read; a checkpoint; or a .safetensors file that
            `export_weights` or import_weights.py wrote.
        ema: load the moving averages of the weights. If False, load the raw weights, which only checkpoints hold.

    Raises:
        UserError: the file does not exist, is damaged, or comes from another program or architecture.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        if not ema:
            raise UserError(f"{printable(path)} holds only the averaged weights; give a checkpoint for the raw ones")
        config, states, template = _read_safetensors(path)
    else:
        saved = _read_run_or_checkpoint(path)
        prefix = "ema_gen_" if ema else "gen_"
        config = _config_in(saved, path)
        template = saved.get("template")
        states = {direction: saved[prefix + direction] for direction in DIRECTIONS}
    generators = {direction: _build(config, state, path, f"gen_{direction}") for direction, state in states.items()}
    return Weights(path, generators, config, _checked_template(template, path))


def load_generator(path: str | os.PathLike[str], direction: Direction, *, ema: bool = True) -> Generator:
    """Read the generator of one direction, "ab" or "ba"; see `load_weights` for the arguments and errors."""
    return load_weights(path, ema=ema).generator(direction)


def export_weights(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """Write the averaged weights of both generators to a .safetensors file.

    Args:
        source: a run's folder or a checkpoint, as for `load_weights`.
        target: the .safetensors file, which is replaced only when the new one is complete.

    Raises:
        UserError: `source` cannot be loaded, or `target` cannot be written.
    """
    saved = _read_run_or_checkpoint(Path(source))
    generators = {f"gen_{direction}": saved[f"ema_gen_{direction}"] for direction in DIRECTIONS}
    with atomic_write(Path(target)) as temporary:
        write_generators(temporary, generators, to_dict(_config_in(saved, Path(source))), saved.get("template"))


def _build(config: Config, state: dict[str, Tensor], path: Path, name: str) -> Generator:
    """Build the generator that the configuration describes, and load its weights."""
    generator = Generator(**config.generator)
    try:
        generator.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{printable(path)} is damaged: {name} does not fit its configuration") from error
    return generator.eval()


def _config_in(saved: dict[str, Any], path: Path) -> Config:
    """The configuration in a checkpoint; CheckpointError, which names the file, where this version cannot use it."""
    try:
        return saved_config(saved)
    except CheckpointError as error:
        raise CheckpointError(f"{printable(path)}: {error}") from error


def _checked_template(template: Any, path: Path) -> Template | None:
    """A template from a file; CheckpointError unless it is None or five different positions in an image."""
    if template is None:
        return None
    try:
        landmarks = tuple((float(x), float(y)) for x, y in template)
    except (TypeError, ValueError):
        landmarks = ()
    in_reach = all(abs(x) < MAX_POSITION and abs(y) < MAX_POSITION for x, y in landmarks)  # False for NaN, too
    if len(landmarks) != 5 or len(set(landmarks)) != 5 or not in_reach:
        raise CheckpointError(f"{printable(path)} has an invalid face template: {str(template)[:200]}")
    return landmarks


def _read_run_or_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint, or the newest intact one of a run."""
    if not path.is_dir():
        return read_checkpoint(path)
    saved, broken = newest_checkpoint(path / "checkpoints")
    if saved is None:
        raise CheckpointError(str(broken[0]) if broken else f"no checkpoint in {printable(path / 'checkpoints')}")
    return saved


def _read_safetensors(path: Path) -> tuple[Config, dict[Direction, dict[str, Tensor]], Any]:
    """Read the configuration, the generators' weights by direction, and the unchecked template."""
    try:
        states, values, template = read_generators(path)
        config = from_dict(values)
    except Exception as error:  # a damaged or malicious file can make the parsers raise anything
        raise CheckpointError(f"{printable(path)} does not hold weights of this program: {error!r}") from error
    found = {direction: states[f"gen_{direction}"] for direction in DIRECTIONS if f"gen_{direction}" in states}
    if not found:
        raise CheckpointError(f"{printable(path)} does not hold a generator")
    return config, found, template
