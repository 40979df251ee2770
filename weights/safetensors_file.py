"""Generators and the configuration they belong to, in one .safetensors file: a format that cannot hold code.

The tensors are called `gen_ab.<parameter>` and `gen_ba.<parameter>`; a file may hold only one of the two. The metadata
holds as JSON, under "config", the configuration, and under "template" where the landmarks of faces are in the training
images (see faces.py), null for images of other things.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor


def write_generators(
    path: Path, generators: Mapping[str, Mapping[str, Tensor]], config: Mapping[str, Any], template: Any = None
) -> None:
    """Write state dicts by generator name ("gen_ab", "gen_ba"), and configuration and template as JSON, to `path`."""
    tensors = {f"{name}.{key}": tensor.contiguous() for name, state in generators.items()
               for key, tensor in state.items()}  # fmt: skip
    path.write_bytes(save(tensors, metadata={"config": json.dumps(config), "template": json.dumps(template)}))


def read_generators(path: Path) -> tuple[dict[str, dict[str, Tensor]], Any, Any]:
    """State dicts by generator name, configuration and template, as `write_generators` takes them.

    Raises:
        Exception: of any kind, where the file is missing, damaged, or of another program.
    """
    generators: dict[str, dict[str, Tensor]] = {}
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        config, template = json.loads(metadata["config"]), json.loads(metadata.get("template", "null"))
        for name in file.keys():  # noqa: SIM118
            generator, _, key = name.partition(".")
            generators.setdefault(generator, {})[key] = file.get_tensor(name)
    return generators, config, template
