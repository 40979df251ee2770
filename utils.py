"""Images to tensors and back, image grids, seeds, device, signals, atomic files. Nothing here knows what a GAN is."""

from __future__ import annotations

import functools
import os
import random
import re
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
ORIENTATION = 0x0112  # the EXIF tag
MAX_PIXELS = 89_478_485  # Pillow warns above this and fails above twice this; we refuse above this


Template = tuple[tuple[float, float], ...]  # A face's five landmarks (x, y) as fractions of its crop's side.


class UserError(ValueError):
    """Something the user can put right: programs print its text without a traceback."""


Main = Callable[[Sequence[str] | None], int]


def command(main: Main) -> Callable[..., int]:
    """Wrap a program's `main`, which takes the command line and returns the exit status.

    Errors that the user can put right end it with a short message and status 1, Ctrl-C with 130.
    """

    @functools.wraps(main)
    def wrapped(argv: Sequence[str] | None = None) -> int:
        try:
            return main(argv)
        except UserError as error:
            message = str(error)
        except OSError as error:  # a worker's holds a traceback, whose last line says what happened
            message = (str(error).strip() or repr(error)).splitlines()[-1]
        except KeyboardInterrupt:
            return 128 + signal.SIGINT
        print(f"error: {message}", file=sys.stderr)
        return 1

    return wrapped


def read_image(source: str | os.PathLike[str] | IO[bytes], min_side: int = 1, preview: bool = False) -> Image.Image:
    """Read the first frame of an image file, whatever its name, as an upright RGB image of 8 bits a channel.

    Args and errors as of `open_image`; see `to_rgb` for the colours.
    """
    return to_rgb(turn_upright(open_image(source, min_side, preview)))


def open_image(source: str | os.PathLike[str] | IO[bytes], min_side: int = 1, preview: bool = False) -> Image.Image:
    """Decode the first frame of an image file, whole, so that a truncated file does not pass; its mode stays.

    Args:
        source: path or binary file.
        min_side: refuse images with a shorter side than this, px.
        preview: decode a JPEG to a grey eighth of its size, which is faster and as good for finding damage.

    Raises:
        OSError, ValueError, SyntaxError: no image of these formats, damaged, too small or too large. Pillow has no
            common error for bad data: some decoders raise others still.
    """
    try:
        opened = Image.open(source, formats=IMAGE_FORMATS)
    except Image.DecompressionBombError as error:
        raise ValueError(f"too large: {error}") from None
    with opened as image:
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(f"too large: {image.width}x{image.height} px, over {MAX_PIXELS} pixels")
        if min(image.size) < min_side:
            raise ValueError(f"too small: {image.width}x{image.height} px, under {min_side} px")
        if preview:
            image.draft("L", (1, 1))
        image.load()
        return image


def turn_upright(image: Image.Image) -> Image.Image:
    """The image as its EXIF orientation wants it shown; the very same where that is as it is."""
    return image if image.getexif().get(ORIENTATION, 1) == 1 else ImageOps.exif_transpose(image)


def to_rgb(image: Image.Image) -> Image.Image:
    """An image of any mode as RGB of 8 bits a channel: 16-bit grey is scaled, transparency is laid on white.

    One that is so already is returned as it is.

    Raises:
        ValueError: 32 bits a channel.
    """
    if image.mode in ("I", "F"):
        raise ValueError("32-bit images are not supported: their range is unknown")
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) // 257).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def image_to_pixels(image: Image.Image | np.ndarray) -> Tensor:
    """RGB image of 8 bits a channel, (H, W, 3), to a uint8 tensor (3, H, W)."""
    pixels = torch.from_numpy(np.array(image, dtype=np.uint8))  # a copy: torch wants to own writable memory
    return pixels.permute(2, 0, 1).contiguous()


def normalize(pixels: Tensor) -> Tensor:
    """Pixel values 0 to 255, of any dtype and shape, to float32 in [-1, 1]."""
    return pixels.float() / 127.5 - 1


def denormalize(images: Tensor) -> Tensor:
    """Images in [-1, 1], floating point of any shape, to pixel values 0 to 255 of the same dtype."""
    return (images + 1) * 127.5


def quantize(images: Tensor) -> Tensor:
    """Images in [-1, 1], floating point of any shape, to uint8 pixels, rounded and clipped."""
    return denormalize(images).round().clamp(0, 255).to(torch.uint8)


def image_to_tensor(image: Image.Image | np.ndarray) -> Tensor:
    """RGB image of 8 bits a channel, (H, W, 3), to a float32 tensor (3, H, W) in [-1, 1]."""
    return normalize(image_to_pixels(image))


def tensor_to_image(tensor: Tensor) -> Image.Image:
    """Floating-point tensor (3, H, W) in [-1, 1] to an RGB image: the inverse of `image_to_tensor`, clipped."""
    return Image.fromarray(quantize(tensor.detach().cpu().float()).permute(1, 2, 0).numpy())


def image_grid(columns: Sequence[Tensor], padding: int = 2) -> Tensor:
    """Batches side by side: from C tensors (N, 3, H, W) in [-1, 1], one picture (3, H', W') with N rows of C images."""
    from torchvision.utils import make_grid  # as slow to import as torch: only who draws waits for it

    cells = torch.stack([column.detach().cpu().float() for column in columns], dim=1).flatten(0, 1)
    grid: Tensor = make_grid(cells, nrow=len(columns), padding=padding, pad_value=1.0)
    return grid


def seed_everything(seed: int) -> None:
    """Seed the global random generators of Python, NumPy and torch (all devices)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def pick_device(name: str, gpu: int = 0) -> torch.device:
    """The device called `name`; "auto" is the first of cuda, mps, cpu that is there. UserError if there is none.

    Where a GPU's number is not said, `gpu` is taken.
    """
    has_mps, num_gpus = torch.backends.mps.is_available(), torch.cuda.device_count()
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if has_mps else "cpu"
    if not re.fullmatch(r"cpu|mps|cuda(:[0-9]{1,2})?", name):
        raise UserError(f"device must be auto, cpu, cuda, cuda:N or mps, got {name!r}")
    device = torch.device("cuda", gpu) if name == "cuda" else torch.device(name)
    if device.type == "mps" and not has_mps:
        raise UserError("device mps is not here; try --device auto")
    if device.type == "cuda" and device.index >= num_gpus:
        cure = "start no more processes than that" if gpu else "try --device auto"
        raise UserError(f"device {device} is not here: torch sees {num_gpus} CUDA GPUs; {cure}")
    return device


def has_fast_bf16(device: torch.device) -> bool:
    """Whether the device itself computes in bfloat16, so that autocast pays.

    CUDA GPUs do since Ampere (compute capability 8.0), CPUs with AVX512-BF16 or AMX (torch tells since 2.11).
    """
    if device.type == "cpu":
        abilities: Mapping[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
        return bool(abilities.get("avx512_bf16") or abilities.get("amx_bf16"))
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


def uses_bf16(amp: str, device: torch.device) -> bool:
    """What the knob `amp` means on a device: "bf16", "off", or "auto", which is bf16 where that pays."""
    return amp == "bf16" or (amp == "auto" and has_fast_bf16(device))


def fast_layout(device: torch.device, bf16: bool, compiled: bool = False) -> torch.memory_format:
    """The memory format in which a network is fastest: channels_last for convolutions in bfloat16.

    Except on a GPU, unless compiled: our group norms are slow in it there (pytorch/pytorch#194616).
    """
    return torch.channels_last if bf16 and (compiled or device.type == "cpu") else torch.contiguous_format


def printable(path: str | os.PathLike[str]) -> str:
    """A path as text that can be shown on one line, whatever its name holds: the rest is escaped."""
    text = os.fspath(path)
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A temporary file's path to write to, which becomes `path` when the block ends without an error.

    Raises:
        UserError: the disk is full or the file cannot be written; nothing is left of it, and an older `path` stays.
    """
    temporary = path.with_name(f".{path.name[-100:]}.{os.getpid()}.tmp")  # nobody's file, and not too long a name
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _flush_to_disk(temporary)
        os.replace(temporary, path)
        _flush_to_disk(path.parent)
    except (OSError, RuntimeError) as error:  # torch's writer makes a RuntimeError of an OSError
        reason = error.__context__ if isinstance(error.__context__, OSError) else error
        if type(reason) is RuntimeError:
            raise  # not about the file: an error of the GPU, say, that shows only now
        raise UserError(
            f"could not write {printable(path)}: {reason}\n"
            "what was there before is untouched; make room and run the command again"
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _flush_to_disk(path: Path) -> None:
    """fsync a file or, where the system can, a folder."""
    if path.is_dir() and os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
