"""Write and read generators and their configuration as one .safetensors file, a format that cannot contain code.

The tensors are called `gen_ab.<parameter>` and `gen_ba.<parameter>`; a file may hold only one of the two generators.
The metadata has three entries, all JSON. "config" is the configuration. "template" gives the positions of a face's five
landmarks in the training images as fractions of the side, or null if the images do not show faces. "strength" gives the
best strength of each direction, such as {"ab": 1.5, "ba": 1.0}, or null if it was not measured.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from training.torch_file import UnusableFileError


class Content(NamedTuple):
    """What a file holds, as its reader finds it: only the format is checked, not the values."""

    generators: dict[str, dict[str, Tensor]]
    config: Any
    template: Any
    strength: Any


def write_generators(
    path: Path,
    generators: Mapping[str, Mapping[str, Tensor]],
    *,
    config: Mapping[str, Any],
    template: Any = None,
    strength: Mapping[Any, float] | None = None,
) -> None:
    """Write generators and their configuration to a file.

    Args:
        path: the file to write.
        generators: state dicts by generator name, "gen_ab" and "gen_ba".
        config: the configuration as plain values.
        template: a `utils.Template`, or None.
        strength: the best strength of each direction, or None.
    """
    tensors = {f"{name}.{key}": tensor.contiguous() for name, state in generators.items()
               for key, tensor in state.items()}  # fmt: skip
    metadata = {"config": config, "template": template, "strength": strength}
    path.write_bytes(save(tensors, metadata={name: json.dumps(value) for name, value in metadata.items()}))


def read_generators(path: Path) -> Content:
    """Read what `write_generators` wrote.

    Raises:
        UnusableFileError: the file is missing, damaged, or from another program.
    """
    generators: dict[str, dict[str, Tensor]] = {}
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if "config" not in metadata:
                raise UnusableFileError("does not hold weights of this program: its metadata has no configuration")
            config, template, strength = (json.loads(metadata.get(name, "null"))
                                          for name in ("config", "template", "strength"))  # fmt: skip
            for name in file.keys():  # noqa: SIM118
                generator, _, key = name.partition(".")
                generators.setdefault(generator, {})[key] = file.get_tensor(name)
    except UnusableFileError:
        raise
    except Exception as error:  # a damaged or malicious file can make the parsers raise anything
        raise UnusableFileError(f"is damaged, or does not hold weights of this program: {error}") from error
    return Content(generators, config, template, strength)
