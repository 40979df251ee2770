"""Helpers for every program: images and tensors, image grids, seeds, devices, and atomic file writes."""

from __future__ import annotations

import os
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from console import UserError as UserError  # Written so, these three may also be imported from here.
from console import command as command
from console import is_out_of_memory
from console import printable as printable
from images.colours import to_rgb
from images.files import decode, opened_image

BF16_SIDE, BF16_CHANNELS = 128, 64  # From these on bfloat16 is faster on a CPU, see docs/PERFORMANCE.md.
Template = tuple[tuple[float, float], ...]  # A face's five landmarks (x, y) as fractions of its crop's side.


def read_image(source: str | os.PathLike[str] | IO[bytes], min_side: int = 1, *, preview: bool = False) -> Image.Image:
    """Read the first frame of an image file as an upright sRGB image with 8 bits per channel.

    Args:
        source: a path or a binary file; its format is recognised by its content, not by its name.
        min_side: refuse images with a shorter side than this, px.
        preview: decode a JPEG in grey at an eighth of its size, which is faster and finds damage just as well.

    Raises:
        OSError, ValueError, SyntaxError: see `images.files.opened_image` and `images.colours.to_rgb`.
    """
    with opened_image(source, min_side=min_side) as image:
        if preview:
            image.draft("L", (1, 1))
        return to_rgb(decode(image))


def image_to_pixels(image: Image.Image | np.ndarray) -> Tensor:
    """Convert an RGB image with 8 bits per channel, (H, W, 3), to a uint8 tensor (3, H, W)."""
    pixels = torch.from_numpy(np.array(image, dtype=np.uint8))  # a copy, because the tensor must be writable
    return pixels.permute(2, 0, 1).contiguous()


def normalize(pixels: Tensor) -> Tensor:
    """Scale pixel values 0 to 255, of any dtype and shape, to float32 in [-1, 1]."""
    return pixels.float() / 127.5 - 1


def denormalize(images: Tensor) -> Tensor:
    """Scale floating-point images in [-1, 1], of any shape, to pixel values 0 to 255 of the same dtype."""
    return (images + 1) * 127.5


def quantize(images: Tensor) -> Tensor:
    """Convert floating-point images in [-1, 1], of any shape, to uint8 pixels, rounded and clipped to 0 to 255."""
    return denormalize(images).round().clamp(0, 255).to(torch.uint8)


def image_to_tensor(image: Image.Image | np.ndarray) -> Tensor:
    """Convert an RGB image with 8 bits per channel, (H, W, 3), to a float32 tensor (3, H, W) in [-1, 1]."""
    return normalize(image_to_pixels(image))


def tensor_to_image(tensor: Tensor) -> Image.Image:
    """Convert a floating-point tensor (3, H, W) in [-1, 1] to an RGB image; values outside this range are clipped."""
    return Image.fromarray(quantize(tensor.detach().cpu().float()).permute(1, 2, 0).numpy())


def image_grid(columns: Sequence[Tensor], padding: int = 2) -> Tensor:
    """Arrange batches side by side.

    Args:
        columns: C floating-point tensors (N, 3, H, W) in [-1, 1].
        padding: width of the white lines between the images, px.

    Returns:
        One float32 image (3, H', W') with N rows of C images.
    """
    from torchvision.utils import make_grid  # not at the top: programs that draw no grid start faster without it

    cells = torch.stack([column.detach().cpu().float() for column in columns], dim=1).flatten(0, 1)
    grid: Tensor = make_grid(cells, nrow=len(columns), padding=padding, pad_value=1.0)
    return grid


def seed_everything(seed: int) -> None:
    """Seed the global random generators of Python, NumPy and torch, on all devices."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def pick_device(name: str, gpu: int = 0) -> torch.device:
    """The torch device for a device knob.

    Args:
        name: "cpu", "mps", "cuda", "cuda:N", or "auto" for the first of cuda, mps and cpu that is available.
        gpu: the number of the GPU if the name does not give one.

    Raises:
        UserError: the name is not valid, or the device is not available.
    """
    has_mps = torch.backends.mps.is_available()
    num_gpus = torch.cuda.device_count()
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if has_mps else "cpu"
    if not re.fullmatch(r"cpu|mps|cuda(:[0-9]{1,2})?", name):
        raise UserError(f"device must be auto, cpu, cuda, cuda:N or mps, got {name!r}")
    device = torch.device("cuda", gpu) if name == "cuda" else torch.device(name)
    if device.type == "mps" and not has_mps:
        raise UserError("device mps is not available; try --device auto")
    if device.type == "cuda" and device.index >= num_gpus:
        advice = "start at most that many processes" if gpu else "try --device auto"
        raise UserError(f"device {device} is not available: torch found {num_gpus} CUDA GPUs; {advice}")
    return device


def has_fast_bf16(device: torch.device) -> bool:
    """Whether the device has instructions for bfloat16, so that autocast makes large networks faster.

    These are CUDA GPUs since Ampere (compute capability 8.0), and CPUs with AVX512-BF16 or AMX. torch has reported the
    latter since 2.11; earlier versions count every CPU as slow.
    """
    if device.type == "cpu":
        abilities: Mapping[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
        return bool(abilities.get("avx512_bf16") or abilities.get("amx_bf16"))
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


def uses_bf16(amp: str, device: torch.device, *, image_size: int, base_channels: int) -> bool:
    """Whether to train in bfloat16: yes for `amp` "bf16", no for "off", and only if that is faster for "auto".

    On a CPU small networks are slower in bfloat16, even with instructions for it: converting costs more than it saves.

    Args:
        amp: the knob.
        device: where to train.
        image_size: side of the training images, px.
        base_channels: channels of the networks' first layer.
    """
    if amp == "auto":
        is_large = image_size >= BF16_SIDE and base_channels >= BF16_CHANNELS
        return has_fast_bf16(device) and (is_large or device.type != "cpu")
    return amp == "bf16"


def fast_layout(device: torch.device, bf16: bool, compiled: bool = False) -> torch.memory_format:
    """The memory format in which a network is fastest: channels_last for bfloat16, and contiguous otherwise.

    Networks on a GPU that are not compiled stay contiguous, because group norm is slow in channels_last there
    (https://github.com/pytorch/pytorch/issues/194616).
    """
    return torch.channels_last if bf16 and (compiled or device.type == "cpu") else torch.contiguous_format


def file_to_write(path: Path) -> Path:
    """The file that a path names, behind any links.

    Raises:
        UserError: the path names a folder, a device, a pipe or a socket. Programs write whole files or none, which only
            a file can keep: a device would be replaced by one, and a pipe without a reader would block for ever.
    """
    file = Path(os.path.realpath(path))
    if file.exists() and not file.is_file():
        kind = "a folder" if file.is_dir() else "a device, pipe or socket"
        raise UserError(f"{printable(path)} is {kind}: name a file to write")
    return file


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield the path of a temporary file to write, which replaces `path` when the block ends without an error.

    A link stays, and the file that it leads to is replaced.

    Raises:
        UserError: the path names something other than a file, the disk is full, or the file cannot be written. The
            temporary file is removed, and `path` is unchanged.
    """
    file = file_to_write(path)
    ending = os.fsdecode(os.fsencode(file.name)[-100:])  # in bytes, because names have at most 255 of them
    temporary = file.with_name(f".{ending}.{os.getpid()}.tmp")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _flush_to_disk(temporary)
        os.replace(temporary, file)
        _flush_to_disk(file.parent)
    except (OSError, RuntimeError) as error:  # torch.save turns an OSError into a RuntimeError
        has_cause = isinstance(error.__context__, OSError) and not getattr(error, "errno", None)
        reason = error.__context__ if has_cause else error
        if type(reason) is RuntimeError or is_out_of_memory(error):
            raise  # the file is not the problem: an earlier error of the GPU may appear only here
        raise UserError(
            f"could not write {printable(path)}: {reason}\n"
            "an earlier version is unchanged; check the free space and permissions, and run the command again"
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _flush_to_disk(path: Path) -> None:
    """fsync a file or a folder; Windows cannot do this for folders."""
    if path.is_dir() and os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
