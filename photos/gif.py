"""Write GIF files: every pixel that has not changed keeps its colour, and every frame its duration and disposal."""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import GifImagePlugin, Image, ImageChops

NUM_COLOURS = 256  # A frame of a GIF has at most this many, one of which may stand for transparency.
STAYS = (0, 1)  # A frame with one of these disposals stays on the canvas when the next is drawn.


def save_gif(
    target: Path | io.BytesIO, images: Sequence[Image.Image], befores: Sequence[Image.Image], options: dict[str, Any]
) -> None:
    """Write one image or an animation.

    Args:
        target: the file or buffer to write to.
        images: the frames as they appear, all of one size and of any mode with 8 bits a channel.
        befores: the same frames before they were changed; pixels that are equal keep their colours exactly.
        options: "loop", how often to repeat, 0 for ever, absent for once; "duration", ms, and "disposal", GIF's codes
            for what becomes of the frame, each with one value for each frame; "xmp", a packet of metadata. A still
            image needs none.
    """
    width, height = images[0].size
    blocks = [b"GIF89a" + struct.pack("<HHBBB", width, height, 0, 0, 0)]
    if "loop" in options:
        blocks.append(b"\x21\xff\x0bNETSCAPE2.0\x03\x01" + struct.pack("<HB", options["loop"], 0))
    if "xmp" in options:
        end = b"\1" + bytes(range(255, -1, -1)) + b"\0"  # Programs that skip XMP as blocks end here (XMP part 3).
        blocks.append(b"\x21\xff\x0bXMP DataXMP" + options["xmp"] + end)
    durations, disposals = options.get("duration", [0]), options.get("disposal", [0])
    previous: Image.Image | None = None
    for image, before, duration, disposal in zip(images, befores, durations, disposals, strict=True):
        frame = image.convert("RGBA")
        # Only what differs from the frame before is drawn, where that one stays and this one stays as well.
        box = (0, 0, width, height)
        if previous is not None and disposal in STAYS:
            box = ImageChops.difference(frame, previous).getbbox(alpha_only=False) or (0, 0, 1, 1)
        reduced = to_palette(frame.crop(box), before.convert("RGBA").crop(box))
        settings = {"duration": duration, "disposal": disposal, "include_color_table": True}
        if "transparency" in reduced.info:
            settings["transparency"] = reduced.info["transparency"]
        blocks += GifImagePlugin.getdata(reduced, box[:2], **settings)
        previous = frame if disposal in STAYS else None
    data = b"".join([*blocks, b";"])
    if isinstance(target, Path):
        target.write_bytes(data)
    else:
        target.write(data)


def to_palette(image: Image.Image, before: Image.Image) -> Image.Image:
    """Reduce an RGBA image to at most NUM_COLOURS, of which pixels that equal `before` get theirs first.

    Returns:
        An image of mode P, with the index of the transparent colour, if any, in its `info`.
    """
    pixels = np.asarray(image)
    codes = pixels[..., :3].astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], np.uint32)
    clear = pixels[..., 3] < 128
    room = NUM_COLOURS - bool(clear.any())
    same = (pixels == np.asarray(before)).all(axis=2) & ~clear
    colours = np.unique(codes[~clear])
    if len(colours) > room:
        fixed = np.unique(codes[same])
        if len(fixed) > room:  # The original frames were put together from several palettes.
            fixed = fixed[:0]
            same[:] = False
        changed = codes[~clear & ~same]
        colours = np.concatenate([fixed, _choose(changed, room - len(fixed))])
    table = np.stack([colours >> 16 & 255, colours >> 8 & 255, colours & 255], axis=1).astype(np.uint8)
    indices = _nearest(codes, table if len(table) else np.zeros((1, 3), np.uint8))
    if clear.any():
        indices[clear] = len(table)
    result = Image.fromarray(indices)
    result.putpalette(np.concatenate([table, np.zeros((int(clear.any()), 3), np.uint8)]).tobytes())
    result.info = {"transparency": len(table)} if clear.any() else {}
    return result


def _choose(codes: np.ndarray, count: int) -> np.ndarray:
    """The `count` colours that stand for many others best, as codes 0xRRGGBB."""
    if count == 0:
        return codes[:0]
    row = np.stack([codes >> 16 & 255, codes >> 8 & 255, codes & 255], axis=-1).astype(np.uint8)[None]
    palette = Image.fromarray(row).quantize(count, Image.Quantize.MEDIANCUT).getpalette() or []
    chosen = np.array(palette, np.uint32).reshape(-1, 3)[:count]
    return np.unique(chosen @ np.array([1 << 16, 1 << 8, 1], np.uint32))


def _nearest(codes: np.ndarray, table: np.ndarray) -> np.ndarray:
    """For each pixel, 0xRRGGBB, the index of its own colour in a table, (N, 3), or else of the nearest one, uint8."""
    used, where = np.unique(codes, return_inverse=True)
    index = np.empty(len(used), np.uint8)
    for start in range(0, len(used), 4096):  # in blocks, which bounds the memory
        block = used[start : start + 4096]
        rgb = np.stack([block >> 16 & 255, block >> 8 & 255, block & 255], axis=1).astype(np.int32)
        index[start : start + 4096] = np.square(rgb[:, None] - table[None].astype(np.int32)).sum(axis=2).argmin(axis=1)
    result: np.ndarray = index[where].reshape(codes.shape)
    return result
