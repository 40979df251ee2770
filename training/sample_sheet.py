"""Sample translations as a picture: a grid whose columns say what they show."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from utils import image_grid, tensor_to_image

MIN_CELL = 128  # Smaller images are enlarged by a whole number, to at least this side, px.
LAST_LETTER = "\u00ff"  # Pillow's own font has the letters of western Europe only, which end here.
FONT_SIZE, LINE_HEIGHT, MARGIN = 14, 22, 4  # The text has this size, height of a line and margin, px.


def titled_grid(columns: Sequence[Tensor], titles: Sequence[str], caption: str) -> Image.Image:
    """A grid of images below a caption and the columns' titles.

    Args:
        columns: C floating-point tensors (N, 3, H, W) in [-1, 1].
        titles: C titles; one that is too long for its column is cut.
        caption: the line above them.

    Returns:
        A picture with N rows of C images, each pixel of which is a square of one colour.
    """
    factor = -(-MIN_CELL // columns[0].shape[-1])  # rounded up
    grid = tensor_to_image(image_grid(columns))
    grid = grid.resize((grid.width * factor, grid.height * factor), Image.Resampling.NEAREST)
    sheet = Image.new("RGB", (grid.width, grid.height + heading_height()), "white")
    sheet.paste(grid, (0, heading_height()))
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(FONT_SIZE)
    width = grid.width / len(columns)
    for text, left, line, room in [(caption, 0.0, 0, grid.width), *(
        (title, index * width, 1, width) for index, title in enumerate(titles))]:  # fmt: skip
        draw.text((left + MARGIN, line * LINE_HEIGHT + MARGIN), _cut(text, room - 2 * MARGIN, font), "black", font)
    return sheet


def heading_height() -> int:
    """The height of the caption and the titles, px."""
    return 2 * LINE_HEIGHT + MARGIN


def names_to_draw(domains: tuple[str, str]) -> tuple[str, str]:
    """The names of domains a and b for titles: these letters where the font lacks one of the names' own."""
    return domains if max("".join(domains)) <= LAST_LETTER else ("a", "b")


def column_titles(source: str, target: str) -> list[str]:
    """Titles of the columns real, fake and rec of the direction from one domain to another."""
    return [source, f"to {target}", f"back to {source}"]


def _cut(text: str, room: float, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """The text, or its start and three dots if it is wider than `room`, px."""
    if font.getlength(text) <= room:
        return text
    length = next((n for n in range(len(text), 0, -1) if font.getlength(f"{text[:n]}...") <= room), 0)
    return f"{text[:length]}..."
