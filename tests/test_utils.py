"""Conversions between images and tensors, and every kind of image file that training may read."""

from __future__ import annotations

import errno
import io
import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_image
from PIL import Image

from utils import (
    UserError,
    atomic_write,
    fast_layout,
    image_grid,
    image_to_tensor,
    pick_device,
    printable,
    read_image,
    seed_everything,
    tensor_to_image,
    uses_bf16,
)


def test_every_grey_level_survives_the_conversion_to_a_tensor_and_back() -> None:
    pixels = np.arange(256 * 3, dtype=np.uint16).reshape(16, 16, 3).astype(np.uint8)
    tensor = image_to_tensor(pixels)
    assert (tensor.shape, tensor.dtype) == ((3, 16, 16), torch.float32)
    assert (tensor.min().item(), tensor.max().item()) == (-1.0, 1.0)
    assert np.array_equal(np.asarray(tensor_to_image(tensor)), pixels)


def test_values_outside_the_range_are_clipped() -> None:
    image = tensor_to_image(torch.tensor([-3.0, 0.0, 3.0]).reshape(3, 1, 1))
    assert image.getpixel((0, 0)) == (0, 128, 255)


def grey_ramp(dtype: type) -> np.ndarray:
    """A 16 x 16 image with 256 equal steps from 0 to the largest value of the type."""
    return (np.arange(256) * (np.iinfo(dtype).max // 255)).astype(dtype).reshape(16, 16)


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_sixteen_bit_grey_is_scaled_and_not_clipped(suffix: str, tmp_path: Path) -> None:
    Image.fromarray(grey_ramp(np.uint16)).save(tmp_path / f"x.{suffix}")
    read = np.asarray(read_image(tmp_path / f"x.{suffix}"))
    assert np.array_equal(read, np.repeat(grey_ramp(np.uint8)[..., None], 3, axis=2))


WRITTEN = [
    *((mode, "png") for mode in ("1", "L", "P", "RGB")),
    *((mode, "jpg") for mode in ("L", "RGB", "CMYK", "YCbCr")),
    *((mode, "tif") for mode in ("1", "L", "P", "RGB", "CMYK")),
    *((mode, "bmp") for mode in ("L", "P", "RGB")),
    ("P", "gif"),
    ("RGB", "webp"),
]


@pytest.mark.parametrize(("mode", "suffix"), WRITTEN)
def test_every_mode_of_every_format_reads_as_rgb(mode: str, suffix: str, tmp_path: Path) -> None:
    image = make_image(3, (24, 20)).convert(mode)
    image.save(tmp_path / f"x.{suffix}")
    read = read_image(tmp_path / f"x.{suffix}")
    assert (read.mode, read.size) == ("RGB", (24, 20))
    difference = np.abs(np.asarray(read, dtype=int) - np.asarray(image.convert("RGB"), dtype=int)).mean()
    assert difference < (12 if suffix in ("jpg", "webp") else 1)  # mean grey levels; these two formats are lossy


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "P"])
def test_transparent_pixels_become_white(mode: str, tmp_path: Path) -> None:
    image = Image.new("RGBA", (20, 20), (0, 0, 0, 0))
    image.paste((200, 0, 0, 255), (0, 0, 10, 20))
    path = tmp_path / ("x.tif" if mode == "PA" else "x.png")
    if mode == "P":
        palette = Image.new("P", (20, 20), 0)
        palette.putpalette([0, 0, 0, 200, 0, 0])
        palette.paste(1, (0, 0, 10, 20))
        palette.save(path, transparency=0)
    else:
        image.convert("LA" if mode == "PA" else mode).save(path)
    read = read_image(path)
    assert read.getpixel((15, 10)) == (255, 255, 255)
    assert read.getpixel((5, 10)) == ((200, 0, 0) if mode in ("RGBA", "P") else (60, 60, 60))


def test_the_first_frame_of_an_animation_is_read(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (20, 20), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "x.gif", save_all=True, append_images=frames[1:])
    assert read_image(tmp_path / "x.gif").getpixel((3, 3)) == (255, 0, 0)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_all_eight_exif_orientations_give_the_same_upright_image(orientation: int, tmp_path: Path) -> None:
    upright = make_image(5, (40, 24))
    undo = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_90",
            7: "TRANSVERSE", 8: "ROTATE_270"}  # fmt: skip
    stored = upright.transpose(Image.Transpose[undo[orientation]]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "x.png", exif=exif)
    assert np.array_equal(np.asarray(read_image(tmp_path / "x.png")), np.asarray(upright))


def test_the_content_of_a_file_decides_its_format_and_not_its_name(tmp_path: Path) -> None:
    make_image(1).save(tmp_path / "x.jpg", format="PNG")
    assert read_image(tmp_path / "x.jpg").size == (40, 40)


def test_a_truncated_file_is_an_error_even_in_a_preview(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    make_image(1, (200, 200)).save(buffer, "JPEG")
    for preview in (False, True):
        with pytest.raises(OSError, match="truncated"):
            read_image(io.BytesIO(buffer.getvalue()[:-200]), preview=preview)


def test_images_that_are_too_large_or_too_small_are_errors(tmp_path: Path) -> None:
    Image.new("1", (12_000, 12_000)).save(tmp_path / "bomb.png")
    with pytest.raises(ValueError, match="too large: 12000x12000"):
        read_image(tmp_path / "bomb.png")
    make_image(1, (40, 15)).save(tmp_path / "icon.png")
    with pytest.raises(ValueError, match="too small: 40x15 px, under 16 px"):
        read_image(tmp_path / "icon.png", min_side=16)


def test_a_grid_has_a_row_for_each_image_and_a_column_for_each_batch() -> None:
    columns = [torch.full((2, 3, 8, 10), value) for value in (-1.0, 0.0, 0.5)]
    grid = image_grid(columns, padding=2)
    assert grid.shape == (3, 2 * 10 + 2, 3 * 12 + 2)
    assert [grid[0, 5, 5 + 12 * i].item() for i in range(3)] == [-1.0, 0.0, 0.5]


def test_the_same_seed_gives_the_same_numbers_from_all_generators() -> None:
    def draw() -> tuple[float, float, float]:
        seed_everything(3)
        return torch.rand(1).item(), float(np.random.rand()), random.random()

    assert draw() == draw()


def test_a_device_that_is_not_available_is_an_error_that_the_user_can_correct(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match="cuda:1 is not available: torch found 1"):
        pick_device("cuda:1")
    with pytest.raises(UserError, match="cuda:1 is not available: torch found 1 CUDA GPUs; start at most that many"):
        pick_device("cuda", gpu=1)
    assert pick_device("cuda:0", gpu=1).index == pick_device("cuda").index == 0
    assert pick_device("cpu").type == "cpu"


def test_characters_that_cannot_be_printed_are_escaped() -> None:
    assert printable("Müller\n\udcff.jpg") == "Müller\\n\\udcff.jpg"


@pytest.mark.parametrize(("ability", "fast"), [("avx512_bf16", True), ("amx_bf16", True), ("avx512_f", False)])
def test_auto_uses_bfloat16_for_large_networks_on_cpus_with_instructions_for_it(
    monkeypatch: pytest.MonkeyPatch, ability: str, fast: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {ability: True}, raising=False)
    cpu = torch.device("cpu")
    for size, channels, large in ((128, 64, True), (124, 64, False), (128, 63, False), (256, 128, True)):
        used = [uses_bf16(amp, cpu, image_size=size, base_channels=channels) for amp in ("auto", "bf16", "off")]
        assert used == [fast and large, True, False]


@pytest.mark.parametrize(("capability", "fast"), [((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_auto_uses_bfloat16_on_gpus_since_ampere(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], fast: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert uses_bf16("auto", torch.device("cuda:1"), image_size=64, base_channels=32) == fast


def test_the_layout_is_channels_last_only_where_that_is_fast() -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert fast_layout(cpu, bf16=True) == fast_layout(gpu, bf16=True, compiled=True) == torch.channels_last
    assert fast_layout(cpu, bf16=False) == fast_layout(gpu, bf16=True) == torch.contiguous_format


def test_a_folder_that_cannot_be_made_is_refused_for_the_reason_of_the_folder_above(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.mkdir

    def mkdir(path: str | os.PathLike[str], *arguments: int) -> None:
        if Path(path) == tmp_path / "locked":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        real(path, *arguments)

    monkeypatch.setattr(os, "mkdir", mkdir)
    refused = pytest.raises(UserError, match=r"could not write .*: \[Errno 13\] Permission denied: '.*locked'")
    with refused, atomic_write(tmp_path / "locked" / "new" / "result.txt"):
        pass
