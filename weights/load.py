"""Load trained generators from a run, a checkpoint, a .safetensors file or the Hub, and export them to .safetensors."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from config import Config, as_flag, to_dict
from generator_model import Generator
from training.checkpoint import (
    CheckpointError,
    checked_step,
    checked_strength,
    checked_template,
    list_checkpoints,
    naming,
    newest_checkpoint,
    read_checkpoint,
    saved_config,
)
from training.torch_file import UnusableFileError, fitting_tensors, kind_of
from utils import Template, UserError, atomic_write, printable
from weights.hub import download_weights, is_on_hub
from weights.safetensors_file import Content, read_generators, write_generators

Direction = Literal["ab", "ba"]
DIRECTIONS: tuple[Direction, ...] = ("ab", "ba")  # From domain a to b, and from b to a.
OTHER: dict[Direction, Direction] = {"ab": "ba", "ba": "ab"}
BUNDLED_WEIGHTS = Path(__file__).parents[1] / "assets" / "weights_rendered_128.safetensors"
FREE_KNOBS = {"init_std", "recompute"}  # Networks that differ in these knobs alone have weights of the same meaning.
MAX_NAMED = 8  # A message names at most this many runs.


def direction_names(domain_a: str, domain_b: str) -> dict[Direction, str]:
    """What each direction translates to what, in words."""
    return {"ab": f"{domain_a} to {domain_b}", "ba": f"{domain_b} to {domain_a}"}


@dataclass(frozen=True)
class Weights:
    """Trained generators, and how they were trained.

    Attributes:
        path: the run's folder or the file that they were loaded from.
        generators: networks by direction, on the CPU, in evaluation mode. Imported files may hold only one direction.
        config: the configuration that they were trained with.
        template: where the landmarks of faces are in the training images; None if the images do not show faces.
        strengths: the best strength of translations by direction, where somebody has measured it.
        step: how many steps they were trained for; None if the file does not say.
        num_images: how many training images there were of domains "a" and "b", where the file says it.
    """

    path: Path
    generators: dict[Direction, Generator]
    config: Config
    template: Template | None
    strengths: dict[Direction, float] = field(default_factory=dict)
    step: int | None = None
    num_images: dict[str, int] = field(default_factory=dict)

    def strength(self, direction: Direction) -> float:
        """The strength of a direction's translations, 1 by default; see `generator_model.edit_at_strength`."""
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
        path: a checkpoint; a .safetensors file that `save_weights` or import_weights.py wrote; a folder, see
            `find_weights`; or hf://USER/NAME, see `weights.hub`.
        ema: load the moving averages of the weights. If False, load the raw weights, which only checkpoints hold.

    Raises:
        UserError: the file does not exist, is damaged, or comes from another program or architecture.
    """
    path = Path(path)
    saved = _read(path)
    if isinstance(saved, Content) and not ema:
        raise UserError(f"{printable(path)} holds only the averaged weights; give a checkpoint for the raw ones")
    return _weights_in(saved, path, ema=ema)


def find_weights(path: Path) -> Path:
    """The file, or the folder with checkpoints, that a path to trained weights means.

    A folder may be a run's folder, for its folder checkpoints or, without that, best; one of these two; or a folder
    in which there is one run or one .safetensors file. A model on the Hub is downloaded.

    Raises:
        UserError: the Hub does not have it.
        CheckpointError: there is nothing of that name, or no such weights in it, or several; it names those there are.
    """
    if is_on_hub(path):
        return download_weights(path)
    if not path.exists():
        known = runs_in(path.parent) or runs_in(Path(Config.runs_dir))
        hint = f"; runs that exist: {_listed(known)}" if known else ""
        raise CheckpointError(f"there is no file or folder {printable(path)}{hint}")
    if not path.is_dir():
        return path
    for folder in (path / "checkpoints", path, path / "best"):
        if list_checkpoints(folder):
            return folder
    found = [*runs_in(path), *sorted(path.glob("*.safetensors"))]
    if len(found) == 1:
        return find_weights(found[0])
    if found:
        raise CheckpointError(f"{printable(path)} holds several trained weights: give one of {_listed(found)}")
    raise CheckpointError(f"no checkpoint in {printable(path / 'checkpoints')}, and none in {printable(path)} itself")


def runs_in(folder: Path) -> list[Path]:
    """The folders of runs with checkpoints in a folder and in its subfolders, sorted."""
    files = [*folder.glob("*/checkpoints/step_*.pt"), *folder.glob("*/*/checkpoints/step_*.pt")]
    return sorted({file.parent.parent for file in files})


def _listed(paths: Sequence[Path]) -> str:
    """Paths as text for one line, the first few where there are many."""
    more = f" and {len(paths) - MAX_NAMED} more" if len(paths) > MAX_NAMED else ""
    return ", ".join(printable(path) for path in paths[:MAX_NAMED]) + more


def default_weights(runs_dir: Path = Path(Config.runs_dir)) -> Path:
    """The run whose newest checkpoint is the newest of all, or the weights that come with the program without any."""
    runs = [(checkpoints[-1].stat().st_mtime, folder) for folder in sorted(runs_dir.glob("*"))
            if (checkpoints := list_checkpoints(folder / "checkpoints"))]  # fmt: skip
    return max(runs)[1] if runs else BUNDLED_WEIGHTS


def chosen_weights(asked: Path | None) -> Path:
    """The weights that a user asked for, or else `default_weights`, which are then named on the standard error."""
    if asked:
        return asked
    path = default_weights()
    print(f"weights: {printable(path)}", file=sys.stderr)
    return path


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
        source: a checkpoint or a folder with some, as for `load_weights`.
        target: the .safetensors file, which is replaced only when the new one is complete.
        strength: the best strength of each direction, 0 to 3, which translate.py then uses; None keeps the source's.
        half: store 16 bits a number instead of 32; translations change by less than a grey level.

    Raises:
        UserError: `source` cannot be loaded, `target` cannot be written, or a strength is out of range.
    """
    saved = _read(Path(source))
    if isinstance(saved, Content):
        raise UserError(f"{printable(source)} is a .safetensors file already; give a run or a checkpoint")
    weights = _weights_in(saved, Path(source))
    if strength is not None:
        with naming(source):
            strengths: dict[Any, float] = checked_strength(strength)
        weights = replace(weights, strengths=strengths)
    save_weights(weights, Path(target), half=half)


def save_weights(weights: Weights, target: Path, *, half: bool = False) -> None:
    """Write generators with all that translating needs to know of them to a .safetensors file.

    Args:
        weights: the generators, of one direction or both.
        target: the file, which is replaced only when the new one is complete.
        half: store 16 bits a number instead of 32.

    Raises:
        UserError: the file cannot be written.
    """
    generators = {f"gen_{direction}": generator.state_dict() for direction, generator in weights.generators.items()}
    if half:
        generators = {name: {key: x.half() for key, x in state.items()} for name, state in generators.items()}
    with atomic_write(target) as temporary:
        write_generators(temporary, generators, config=to_dict(weights.config), template=weights.template,
                         strength=weights.strengths or None)  # fmt: skip


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
    saved = _read(path)
    weights = _weights_in(saved, path)
    networks = {f"gen_{direction}": weights.generator(direction).state_dict() for direction in DIRECTIONS}
    theirs, ours = weights.config.generator, config.generator
    differences = {knob: theirs[knob] for knob in ours if knob not in FREE_KNOBS and theirs[knob] != ours[knob]}
    if differences:
        flags = " ".join(as_flag(knob, value) for knob, value in differences.items())
        raise UserError(f"{printable(path)} holds generators of another kind; to start from them, add\n{flags}")
    theirs, ours = weights.config.discriminator, config.discriminator
    is_same_kind = all(theirs[knob] == ours[knob] for knob in ours if knob not in FREE_KNOBS)
    if is_same_kind and not isinstance(saved, Content):
        networks |= {name: saved[name] for name in ("disc_a", "disc_b")}
    return networks


def _read(path: Path) -> dict[str, Any] | Content:
    """Read a checkpoint, the newest intact one of a folder, or a .safetensors file, which its content tells apart."""
    place = find_weights(path)
    if not place.is_dir():
        with naming(place):
            return read_generators(place) if kind_of(place) == "safetensors" else read_checkpoint(place)
    saved, broken = newest_checkpoint(place)
    if saved is None:
        raise CheckpointError(str(broken[0]))
    return saved


def _weights_in(saved: dict[str, Any] | Content, path: Path, *, ema: bool = True) -> Weights:
    """The trained generators in what was read from `path`."""
    with naming(path):
        step: int | None = None
        num_images: dict[str, int] = {}
        if isinstance(saved, Content):
            config, template, strength = _config_in({"config": saved.config}, path), saved.template, saved.strength
            states = {d: saved.generators[f"gen_{d}"] for d in DIRECTIONS if f"gen_{d}" in saved.generators}
            if not states:
                raise UnusableFileError("does not hold a generator")
        else:
            config, template, strength = _config_in(saved, path), saved.get("template"), saved.get("strength")
            states = {d: saved[f"ema_gen_{d}" if ema else f"gen_{d}"] for d in DIRECTIONS}
            step, num_images = checked_step(saved["step"]), _counts_in(saved["data"])
        generators = {d: _build(config, state, f"gen_{d}") for d, state in states.items()}
        strengths: dict[Any, float] = checked_strength(strength)
        return Weights(path, generators, config, checked_template(template), strengths, step, num_images)


def _counts_in(data: Any) -> dict[str, int]:
    """How many images the fingerprints of a checkpoint's training images count, by domain."""
    fingerprints = data.items() if isinstance(data, Mapping) else ()
    counts = {name: re.match(r"(\d{1,9}) images", str(fingerprint)) for name, fingerprint in fingerprints}
    return {str(name): int(match[1]) for name, match in counts.items() if match}


def _build(config: Config, state: Any, name: str) -> Generator:
    """Build the generator that the configuration describes around its weights.

    Until they are known to fit it is on the meta device: a small file may describe a network that fills the memory.
    """
    with torch.device("meta"):
        generator = Generator(**config.generator)
    generator.load_state_dict(fitting_tensors(generator, state, name=name), assign=True)
    return generator.eval()


def _config_in(saved: dict[str, Any], path: Path) -> Config:
    """The configuration in a checkpoint; CheckpointError, which names the file, where this version cannot use it."""
    try:
        return saved_config(saved)
    except CheckpointError as error:
        raise CheckpointError(f"{printable(path)}: {error}") from error
