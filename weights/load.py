"""Load trained generators from a run, a checkpoint or a .safetensors file, and export them to .safetensors."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from config import Config, as_flag, from_dict, to_dict
from console import reason_of
from generator_model import MAX_STRENGTH, Generator
from training.checkpoint import CheckpointError, list_checkpoints, newest_checkpoint, read_checkpoint, saved_config
from utils import Template, UserError, atomic_write, printable
from weights.safetensors_file import read_generators, write_generators

Direction = Literal["ab", "ba"]
DIRECTIONS: tuple[Direction, ...] = ("ab", "ba")  # From domain a to b, and from b to a.
OTHER: dict[Direction, Direction] = {"ab": "ba", "ba": "ab"}
BUNDLED_WEIGHTS = Path(__file__).parents[1] / "assets" / "weights_rendered_128.safetensors"
FREE_KNOBS = {"init_std", "recompute"}  # Networks that differ in these knobs alone have weights of the same meaning.
MAX_POSITION = 10  # Landmarks of a template are closer to its corner than this many sides of the image.


@dataclass(frozen=True)
class Weights:
    """Trained generators, and how they were trained.

    Attributes:
        path: the run's folder or the file that they were loaded from.
        generators: networks by direction, on the CPU, in evaluation mode. Imported files may hold only one direction.
        config: the configuration that they were trained with.
        template: where the landmarks of faces are in the training images; None if the images do not show faces.
        strengths: the best strength of translations by direction, where somebody has measured it.
    """

    path: Path
    generators: dict[Direction, Generator]
    config: Config
    template: Template | None
    strengths: dict[Direction, float] = field(default_factory=dict)

    def strength(self, direction: Direction) -> float:
        """How much of its change a direction's generator should apply, see `generator_model.blend`; 1 by default."""
        return self.strengths.get(direction, 1.0)

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
        config, states, template, strength = _read_safetensors(path)
        generators = {d: _build(config, state, path, f"gen_{d}") for d, state in states.items()}
        return Weights(path, generators, config, _checked_template(template, path), _checked_strength(strength, path))
    return _weights_in(_read_run_or_checkpoint(path), path, ema=ema)


def default_weights(runs_dir: Path = Path(Config.runs_dir)) -> Path:
    """The run whose newest checkpoint is the newest of all, or the weights that come with the program without any."""
    runs = [(checkpoints[-1].stat().st_mtime, folder) for folder in sorted(runs_dir.glob("*"))
            if (checkpoints := list_checkpoints(folder / "checkpoints"))]  # fmt: skip
    return max(runs)[1] if runs else BUNDLED_WEIGHTS


def load_generator(path: str | os.PathLike[str], direction: Direction, *, ema: bool = True) -> Generator:
    """Read the generator of one direction, "ab" or "ba"; see `load_weights` for the arguments and errors."""
    return load_weights(path, ema=ema).generator(direction)


def export_weights(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    strength: Mapping[Direction, float] | None = None,
    half: bool = False,
) -> None:
    """Write the averaged weights of both generators to a .safetensors file.

    Args:
        source: a run's folder or a checkpoint, as for `load_weights`.
        target: the .safetensors file, which is replaced only when the new one is complete.
        strength: the best strength of each direction, 0 to 3, which translate.py then uses; None keeps the source's.
        half: store 16 bits a number instead of 32; translations change by less than a grey level.

    Raises:
        UserError: `source` cannot be loaded, `target` cannot be written, or a strength is out of range.
    """
    saved = _read_run_or_checkpoint(Path(source))
    strengths = _checked_strength(saved.get("strength") if strength is None else strength, Path(source))
    generators = {f"gen_{direction}": saved[f"ema_gen_{direction}"] for direction in DIRECTIONS}
    if half:
        generators = {name: {key: x.half() for key, x in state.items()} for name, state in generators.items()}
    with atomic_write(Path(target)) as temporary:
        write_generators(temporary, generators, config=to_dict(_config_in(saved, Path(source))),
                         template=saved.get("template"), strength=strengths or None)  # fmt: skip


def load_networks(path: str | os.PathLike[str], config: Config) -> dict[str, dict[str, Tensor]]:
    """Read trained networks from which a run with this configuration can start.

    Args:
        path: as for `load_weights`.
        config: the new run's configuration.

    Returns:
        State dicts by name: "gen_ab" and "gen_ba", the moving averages, and "disc_a" and "disc_b" if a run or a
        checkpoint holds such discriminators as the configuration describes.

    Raises:
        UserError: as for `load_weights`; a direction is missing; or the generators are of another kind.
    """
    path = Path(path)
    saved = None if path.suffix == ".safetensors" else _read_run_or_checkpoint(path)
    weights = load_weights(path) if saved is None else _weights_in(saved, path)
    networks = {f"gen_{direction}": weights.generator(direction).state_dict() for direction in DIRECTIONS}
    theirs, ours = weights.config.generator, config.generator
    differences = {knob: theirs[knob] for knob in ours if knob not in FREE_KNOBS and theirs[knob] != ours[knob]}
    if differences:
        flags = " ".join(as_flag(knob, value) for knob, value in differences.items())
        raise UserError(f"{printable(path)} holds generators of another kind; to start from them, add\n{flags}")
    theirs, ours = weights.config.discriminator, config.discriminator
    is_same_kind = all(theirs[knob] == ours[knob] for knob in ours if knob not in FREE_KNOBS)
    if is_same_kind and saved is not None:
        networks |= {name: saved[name] for name in ("disc_a", "disc_b")}
    return networks


def _weights_in(saved: dict[str, Any], path: Path, *, ema: bool = True) -> Weights:
    """The trained generators in a checkpoint that was read from `path`."""
    prefix = "ema_gen_" if ema else "gen_"
    config = _config_in(saved, path)
    generators = {d: _build(config, saved[prefix + d], path, f"gen_{d}") for d in DIRECTIONS}
    template, strength = _checked_template(saved.get("template"), path), _checked_strength(saved.get("strength"), path)
    return Weights(path, generators, config, template, strength)


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


def _checked_strength(strength: Any, path: Path) -> dict[Direction, float]:
    """Strengths by direction; CheckpointError unless they are None or numbers between 0 and MAX_STRENGTH."""
    if strength is None:
        return {}
    values = dict(strength) if isinstance(strength, Mapping) else {"": strength}
    for direction, value in values.items():
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if direction not in DIRECTIONS or not is_number or not 0 <= value <= MAX_STRENGTH:  # False for NaN, too
            raise CheckpointError(
                f"{printable(path)}: the strength must be a number between 0 and {MAX_STRENGTH:g} for each of ab "
                f"and ba, got {str(strength)[:200]}"
            )
    return {direction: float(values[direction]) for direction in DIRECTIONS if direction in values}


def _read_run_or_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint, or the newest intact one of a run."""
    if not path.is_dir():
        return read_checkpoint(path)
    saved, broken = newest_checkpoint(path / "checkpoints")
    if saved is None:
        raise CheckpointError(str(broken[0]) if broken else f"no checkpoint in {printable(path / 'checkpoints')}")
    return saved


def _read_safetensors(path: Path) -> tuple[Config, dict[Direction, dict[str, Tensor]], Any, Any]:
    """Read the configuration, the generators' weights by direction, and the unchecked template and strength."""
    try:
        content = read_generators(path)
        config = from_dict(content.config)
    except Exception as error:  # a damaged or malicious file can make the parsers raise anything
        raise CheckpointError(f"{printable(path)} does not hold weights of this program: {reason_of(error)}") from error
    states = content.generators
    found = {direction: states[f"gen_{direction}"] for direction in DIRECTIONS if f"gen_{direction}" in states}
    if not found:
        raise CheckpointError(f"{printable(path)} does not hold a generator")
    return config, found, content.template, content.strength
