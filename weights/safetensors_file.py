"""Write and read generators and their configuration as one .safetensors file, a format that cannot contain code.

The tensors are called `gen_ab.<parameter>` and `gen_ba.<parameter>`; a file may hold only one of the two generators.
The metadata has two entries, both JSON: "config" is the configuration, and "template" gives the positions of a face's
five landmarks in the training images as fractions of the side, or null if the images do not show faces.
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
    """Write generators and their configuration to a file.

    Args:
        path: the file to write.
        generators: state dicts by generator name, "gen_ab" and "gen_ba".
        config: the configuration as plain values.
        template: a `utils.Template`, or None.
    """
    tensors = {f"{name}.{key}": tensor.contiguous() for name, state in generators.items()
               for key, tensor in state.items()}  # fmt: skip
    path.write_bytes(save(tensors, metadata={"config": json.dumps(config), "template": json.dumps(template)}))


def read_generators(path: Path) -> tuple[dict[str, dict[str, Tensor]], Any, Any]:
    """Read the state dicts by generator name, the configuration and the template, as `write_generators` takes them.

    Raises:
        Exception: the file is missing, damaged, or from another program. The exception can be of any kind.
    """
    generators: dict[str, dict[str, Tensor]] = {}
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        config, template = json.loads(metadata["config"]), json.loads(metadata.get("template", "null"))
        for name in file.keys():  # noqa: SIM118
            generator, _, key = name.partition(".")
            generators.setdefault(generator, {})[key] = file.get_tensor(name)
    return generators, config, template
