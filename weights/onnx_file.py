"""Write generators as ONNX files, for programs without PyTorch.

A file holds one generator, with two inputs and one or two outputs:
- "image", (N, 3, H, W) float32 in [-1, 1], for any N and any H and W that are multiples of 4
- "strength", a float32 scalar, how much of the change to apply (see `generator_model.edit_at_strength`)
- "translation", of the shape and range of "image"
- "shift", (N, 2, H, W), only of generators with an appearance flow: from how far away each pixel of the image was taken
  before its colours changed, to the right and down, in sides of the image

The metadata has three entries, all JSON: "image_size", the side of the training images in px; "template", where the
five landmarks of a face lay in these, as fractions of the side, or null; and "strength", the best strength.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from generator_model import SKIP_LIMIT, Generator, edit_at_strength
from utils import UserError, atomic_write, printable
from weights.load import Direction, Weights

MAX_DIFFERENCE = 1e-4  # A file may differ from the network in PyTorch by this, in images in [-1, 1].
MAX_SIDE = 2**20  # Images have at most this many px on a side, and batches this many images: torch needs a limit.
CHECKED_STRENGTHS = (0.0, 0.5, 1.0, 2.0)  # Files are compared with PyTorch at these strengths.
MISSING = "the ONNX packages are missing; run: pip install -r requirements-extra.txt"


class Blended(nn.Module):
    """A generator with the strength as an input, in operations of which each has a counterpart in ONNX."""

    def __init__(self, generator: Generator) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, image: Tensor, strength: Tensor) -> tuple[Tensor, ...]:
        """`generator_model.edit_at_strength` for a scalar tensor, without what would be None."""
        if self.generator.flow:
            translation, shift = self.generator.edit(image, strength)
            assert shift is not None
            return torch.where(strength == 0, image, translation), shift
        translation = self.generator(image)
        before, after = (torch.atanh(x.clamp(-SKIP_LIMIT, SKIP_LIMIT)) for x in (image, translation))
        blended = torch.tanh(torch.lerp(before, after, strength))
        return (torch.where(strength == 1, translation, torch.where(strength == 0, image, blended)),)


def write_onnx(weights: Weights, direction: Direction, target: Path) -> float:
    """Write the generator of one direction to an ONNX file, and compare both.

    Args:
        weights: the generators.
        direction: "ab" or "ba".
        target: the file, which is replaced only when the new one is complete and agrees with the network.

    Returns:
        The largest difference between the file's translations and the network's, in images in [-1, 1].

    Raises:
        UserError: the weights lack the direction, the file differs from the network by more than MAX_DIFFERENCE or
            cannot be written, or the packages are missing.
    """
    generator = weights.generator(direction)
    size = weights.config.image_size
    metadata = {"image_size": size, "template": weights.template, "strength": weights.strength(direction)}
    check_packages()
    program = _exported(generator)
    program.model.metadata_props.update({name: json.dumps(value) for name, value in metadata.items()})
    with atomic_write(target) as temporary:
        program.save(temporary)
        difference = largest_difference(temporary, generator, shapes=((1, 3, size, size), (2, 3, 32, 48)))
        if not difference <= MAX_DIFFERENCE:  # true for NaN, too
            raise UserError(
                f"{printable(target)} was not written: its translations would differ by {difference:.1g} from those of "
                f"PyTorch, expected at most {MAX_DIFFERENCE:g}\ntry other versions of onnxscript and onnxruntime"
            )
    return difference


def free_sides(source: Path, target: Path) -> None:
    """Copy an ONNX file of a network that is convolutional throughout, so that it takes images of any height and width.

    The copy forgets the sizes that the file states for its inputs, for its outputs and between its layers.
    """
    import onnx

    network = onnx.load(source)
    del network.graph.value_info[:]
    for image in network.graph.input:
        for axis, name in ((2, "height"), (3, "width")):
            image.type.tensor_type.shape.dim[axis].dim_param = name
    for output in network.graph.output:
        output.type.tensor_type.shape.dim[1].dim_param = f"cells_{output.name}"
    with atomic_write(target) as temporary:
        onnx.save(network, temporary)


def check_packages() -> None:
    """UserError if one of the optional packages is missing."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(MISSING) from error


def _exported(generator: Generator) -> Any:
    """The `torch.onnx.ONNXProgram` of a generator, for any number and size of images."""
    count, height, width = (torch.export.Dim(name, min=1, max=MAX_SIDE) for name in ("count", "height", "width"))
    return torch.onnx.export(
        Blended(generator).eval(),
        (torch.zeros(2, 3, 32, 48), torch.tensor(1.0)),
        dynamo=True,
        dynamic_shapes=({0: count, 2: 4 * height, 3: 4 * width}, None),
        input_names=["image", "strength"],
        output_names=["translation", "shift"] if generator.flow else ["translation"],
        external_data=False,
        verbose=False,
    )


def largest_difference(path: Path, generator: Generator, *, shapes: Sequence[tuple[int, int, int, int]]) -> float:
    """The largest difference between an ONNX file's translations of random images and the network's.

    Args:
        path: the file.
        generator: the network.
        shapes: the shapes of the images, (N, 3, H, W).
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    random = torch.Generator().manual_seed(0)
    largest = 0.0
    for shape in shapes:
        image = 2 * torch.rand(shape, generator=random) - 1
        for strength in CHECKED_STRENGTHS:
            inputs = {"image": image.numpy(), "strength": torch.tensor(strength).numpy()}
            with torch.inference_mode():
                edit = edit_at_strength(generator, image, strength)
            expected = [tensor for tensor in edit if tensor is not None]
            for result, tensor in zip(session.run(None, inputs), expected, strict=False):  # strength 0 moves nothing
                largest = max(largest, float((torch.from_numpy(result) - tensor).abs().max()))
    return largest
