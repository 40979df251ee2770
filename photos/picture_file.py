"""Read the photographs in image files, frames and pages included, and write the results in the same format."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import GifImagePlugin, Image, Jpeg2KImagePlugin, JpegImagePlugin

from console import UserError, count, is_out_of_memory
from images.colours import opaque, to_plain_srgb, to_rgb
from images.files import Refused, Source, decode, opened_image, register_heif, subfile_type
from photos.gif import save_gif
from photos.label import label_options
from photos.photo import Photo, open_photo

DEFAULT_MAX_MEGAPIXELS = 250  # Telephones take photographs of 200 megapixels.
KEPT_INFO = ("icc_profile", "transparency")  # Of what a file says about its image, results keep this.
SINGLE = ("JPEG", "MPO", "HEIF", "BMP", "JPEG2000", "PPM")  # Formats of which we translate the main image only.
LOSSY_QUALITY = 95  # of formats that do not tell how strongly the original was compressed
OPTIONS: dict[str, dict[str, Any]] = {  # Pillow's options, where its defaults lose more than need be
    "JPEG": {"quality": LOSSY_QUALITY},
    "WEBP": {"lossless": True},
    "TIFF": {"compression": "tiff_deflate"},
    "AVIF": {"quality": LOSSY_QUALITY, "subsampling": "4:4:4"},
    "HEIF": {"quality": LOSSY_QUALITY, "chroma": 444},
}
ANIMATED = ("GIF", "PNG", "WEBP", "AVIF")  # Formats that can hold an animation.
OPAQUE = ("JPEG", "PPM")  # Formats that know no transparency.
PROFILED = ("JPEG", "PNG", "WEBP", "TIFF", "AVIF", "HEIF")  # Formats in which Pillow writes colour profiles.
DEEP = ("PNG", "TIFF", "JPEG2000", "PPM")  # Formats that can hold 16 bits of grey.
MANY_FRAMES = 100_000  # No file has so many frames or pages.
PREVIOUS = 2  # An APNG frame with this disposal is followed by what was there before it.


@dataclass
class Picture:
    """What an image file holds.

    Attributes:
        photos: one photograph, or the frames of an animation, or the pages of a TIFF.
        format: Pillow's name of the format to write.
        options: Pillow's options for writing it; those of animations hold one value for each frame.
        notes: what has been left out or will change, one phrase each.
        is_converted: whether the format to write is another one than that of the file.
    """

    photos: list[Photo]
    format: str
    options: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    is_converted: bool = False

    @property
    def is_animation(self) -> bool:
        """Whether the photographs follow each other in time."""
        return "duration" in self.options

    @property
    def num_pixels(self) -> int:
        """The pixels of all photographs together."""
        return sum(photo.original.width * photo.original.height for photo in self.photos)

    @property
    def fullest(self) -> Photo:
        """The photograph in which most has been translated."""
        return max(self.photos, key=lambda photo: len(photo.regions))


def read_picture(source: Source, *, max_megapixels: float = DEFAULT_MAX_MEGAPIXELS) -> Picture:
    """Read an image file.

    Args:
        source: a path or a binary file; its format is recognised by its content, not by its name.
        max_megapixels: refuse files with more pixels than this, all frames or pages together.

    Raises:
        OSError, ValueError, SyntaxError: the errors of `opened_image`, or 32 bits a channel.
    """
    notes: list[str] = []
    with opened_image(source, max_pixels=int(max_megapixels * 1e6), notes=notes) as image:
        assert image.format is not None
        kind, num_frames = image.format, _count_frames(image)
        if num_frames == 1 or kind in SINGLE:
            options = _how_it_is_stored(image)
            picture = Picture([_open_frame(image)], kind, options)
            if num_frames > 1:
                notes.append(f"{num_frames - 1} further images in the file (such as previews)")
        elif kind == "TIFF":
            pages = _read_pages(image, num_frames, notes, max_megapixels=max_megapixels)
            picture = Picture(pages, kind, _how_it_is_stored(image))
        else:
            if num_frames < MANY_FRAMES and image.width * image.height * num_frames > max_megapixels * 1e6:
                size = f"{num_frames} frames of {image.width}x{image.height} px"
                raise ValueError(f"too large: {size}, over {max_megapixels:g} megapixels")
            picture = _read_animation(image, num_frames, notes, max_megapixels=max_megapixels)
    picture.notes = [f"left out: {note}" for note in dict.fromkeys(notes)]
    picture.format = _without_extras(kind)
    return picture


def _without_extras(kind: str) -> str:
    """The format of a main image: cameras write MPO files, which are JPEG files with further images appended."""
    return "JPEG" if kind == "MPO" else kind


def _open_frame(image: Image.Image) -> Photo:
    """The current frame of an opened image, without metadata."""
    frame = decode(image)
    plain = frame.copy()  # The file's own object would carry metadata into the result: the tags of a TIFF, a comment.
    plain.info = {key: frame.info[key] for key in KEPT_INFO if frame.info.get(key) is not None}
    return open_photo(plain)


def _count_frames(image: Image.Image) -> int:
    """The number of frames or pages in a file; MANY_FRAMES if a damaged one keeps Pillow from counting them."""
    try:
        return int(getattr(image, "n_frames", 1))
    except Exception:  # Decoders may raise any exception on damaged data.
        return MANY_FRAMES


def _read_frames(
    image: Image.Image,
    num_frames: int,
    notes: list[str],
    *,
    noun: str,
    accept: Callable[[Image.Image], bool],
    max_megapixels: float,
) -> Iterator[Photo]:
    """The frames or pages of a file that can be read and that `accept` accepts; the image stands at the yielded one.

    `num_frames` is what `_count_frames` said of the opened file; later it would count those that could be read.

    The first must be whole. Frames are drawn upon those before them, and end with the first that is damaged; pages are
    read on. What could not be read is noted.
    """
    num_lost = 0
    for index in range(num_frames):
        try:
            with _pillows_limit(max_megapixels):
                image.seek(index)
            accepted = accept(image)
            photo = _open_frame(image) if accepted else None
        except Exception as error:  # Decoders may raise any exception on damaged data.
            if index == 0 or isinstance(error, Refused) or is_out_of_memory(error):
                raise
            num_lost += 1
            if noun != "page" or image.tell() != index:
                num_lost += num_frames - index - 1 if num_frames < MANY_FRAMES else 0
                break
        else:
            if photo:
                yield photo
    if num_lost:
        notes.append(f"{count(num_lost, noun)} that cannot be read")


@contextmanager
def _pillows_limit(max_megapixels: float) -> Iterator[None]:
    """Pillow refuses frames of over twice as many pixels before it takes the memory for them."""
    previous, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, int(max_megapixels * 1e6)
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = previous


def _limit(max_megapixels: float, noun: str) -> Callable[[Image.Image], bool]:
    """Accepts frames or pages until they have too many pixels together; then it raises Refused."""
    num_pixels = 0

    def fits(image: Image.Image) -> bool:
        nonlocal num_pixels
        num_pixels += image.width * image.height
        if num_pixels > max_megapixels * 1e6:
            raise Refused(f"too large: its {noun} have over {max_megapixels:g} megapixels")
        return True

    return fits


def _read_pages(image: Image.Image, num_frames: int, notes: list[str], *, max_megapixels: float) -> list[Photo]:
    """The pages of a TIFF, which may differ in size and mode."""
    num_copies = 0
    fits = _limit(max_megapixels, "pages")

    def accept(page: Image.Image) -> bool:
        nonlocal num_copies
        if subfile_type(page) & 0b101:
            num_copies += 1
            return False
        return fits(page)

    photos = list(_read_frames(image, num_frames, notes, noun="page", accept=accept, max_megapixels=max_megapixels))
    if num_copies:
        notes.append(f"{num_copies} smaller copies and masks in the file")
    return photos


def _read_animation(image: Image.Image, num_frames: int, notes: list[str], *, max_megapixels: float) -> Picture:
    """The frames of an animation, each as it appears, and how they follow each other."""
    photos, durations, disposals = [], [], []
    fits = _limit(max_megapixels, "frames")
    frames = _read_frames(image, num_frames, notes, noun="frame", accept=fits, max_megapixels=max_megapixels)
    for photo in frames:
        photos.append(photo)
        durations.append(image.info.get("duration", 0))
        disposals.append(getattr(image, "disposal_method", image.info.get("disposal", 0)))
    options = _how_it_is_stored(image)
    options |= {key: image.info[key] for key in ("loop", "background") if key in image.info}
    if isinstance(image, GifImagePlugin.GifImageFile):
        return Picture(photos, "GIF", options | {"duration": durations, "disposal": disposals})
    assert image.format is not None
    if image.format == "PNG":
        still = bool(getattr(image, "default_image", False))  # It is shown where animations cannot be.
        # The frames are written as they appear, so that Pillow need not know what was there before the frame before.
        options["disposal"] = [0 if disposal == PREVIOUS else int(disposal) for disposal in disposals[still:]]
        options |= {"blend": 0, "default_image": still}
        durations = durations[still:]
        if not durations:  # Damage has left the still alone.
            return Picture(photos, "PNG", _how_it_is_stored(image))
    return Picture(photos, image.format, options | {"duration": durations})


def _how_it_is_stored(image: Image.Image) -> dict[str, Any]:
    """Options with which Pillow stores an image much as the file that was opened does."""
    if isinstance(image, JpegImagePlugin.JpegImageFile):
        # With the same compression, the areas that are not translated hardly change.
        sampling = JpegImagePlugin.get_sampling(image)
        return {"qtables": image.quantization, **({"subsampling": sampling} if sampling >= 0 else {})}
    if isinstance(image, Jpeg2KImagePlugin.Jpeg2KImageFile):
        return {"no_jp2": image.codec == "j2k"}
    return dict(OPTIONS.get(image.format or "", {}))


# --- The result


def choose_format(picture: Picture, *, source: Path, target: Path) -> Path:
    """Choose the format of a result: that of its source or, if the target's name ends otherwise, that of the name.

    Returns:
        The file to write. It is the target, or with ".jpg" added to it where the source's format cannot be written.

    Raises:
        ValueError: images cannot be written in the format that the target's name asks for.
    """
    Image.init()
    suffix = target.suffix.lower()
    if suffix == source.suffix.lower():
        if picture.format in Image.SAVE:
            return target
        picture.notes.append(f"written as JPEG, because {picture.format} cannot be written here")
        _convert(picture, "JPEG")
        return target.with_name(f"{target.name}.jpg")
    if suffix.startswith((".hei", ".hif")):
        register_heif()
    kind = _without_extras(Image.registered_extensions().get(suffix, ""))
    if kind not in Image.SAVE:
        raise UserError(f"images cannot be written as {target.suffix}: choose another name with --out")
    if kind != picture.format:
        _convert(picture, kind)
        if suffix in (".j2k", ".j2c", ".jpc"):
            picture.options["no_jp2"] = True
    return target


def _convert(picture: Picture, kind: str) -> None:
    """Have a picture written in another format, with as many of its frames or pages as that can hold."""
    num_photos, options = len(picture.photos), dict(OPTIONS.get(kind, {}))
    if picture.is_animation and kind in ANIMATED:
        durations = picture.options["duration"]
        picture.photos = picture.photos[-len(durations) :]  # An animated PNG may start with a still.
        options["duration"] = [round(duration) for duration in durations]  # ms
        if kind != "AVIF":
            options["loop"] = picture.options.get("loop", 1 if picture.format == "GIF" else 0)
        if kind == "GIF":
            options["disposal"] = [2] * len(durations)  # Every frame is drawn on an empty canvas.
        elif kind == "PNG":
            options |= {"disposal": 0, "blend": 0}
    elif kind != "TIFF":
        picture.photos = picture.photos[:1]
    if num_photos > len(picture.photos):
        picture.notes.append(f"left out: {num_photos - len(picture.photos)} further frames or pages of the file")
    picture.format, picture.options, picture.is_converted = kind, options, True


def _in_common_colours(image: Image.Image, kind: str) -> Image.Image:
    """An image as another format can hold it: as it is, else in sRGB, with its transparency if the format has any."""
    if not image.has_transparency_data and (kind in PROFILED or "icc_profile" not in image.info):
        is_plain_grey = image.mode == "L" and "icc_profile" not in image.info
        if image.mode == "RGB" or is_plain_grey or (image.mode == "I;16" and kind in DEEP):
            return image
    if kind not in OPAQUE:
        return to_plain_srgb(image)
    result = to_rgb(image).copy()
    result.info = {}  # The profile, if any, was that of the colours before.
    return result


def write_picture(
    picture: Picture, target: Path | io.BytesIO, *, side_by_side: bool = False, label: bool = True
) -> None:
    """Write the result without the original's metadata, such as its place and time.

    Args:
        picture: what `read_picture` returned, translated or not.
        target: the file or buffer to write to.
        side_by_side: write images with the original on the left and the result on the right.
        label: if anything has been translated, declare it in the file, where the format can hold that.

    Raises:
        OSError, ValueError: the format cannot hold an image of this size or mode, or the target cannot be written.
    """
    images = [photo.result for photo in picture.photos]
    options = dict(picture.options)
    if label and picture.fullest.regions:
        options |= label_options(picture.format)
    if side_by_side:
        pairs = zip(picture.photos, images, strict=True)
        images = [place_side_by_side(photo.original, after) for photo, after in pairs]
    if picture.is_converted:
        images = [_in_common_colours(image, picture.format) for image in images]
    elif picture.format not in PROFILED and any("icc_profile" in image.info for image in images):
        images = [to_plain_srgb(image) for image in images]
        picture.notes.append(f"the colours become sRGB: {picture.format} is written without a colour profile")
    if picture.format == "GIF":
        befores = images if side_by_side or picture.is_converted else [photo.original for photo in picture.photos]
        save_gif(target, images, befores, options)
        return
    first, *rest = images
    if picture.format != "TIFF":  # Each page of a TIFF has its own profile, which Pillow takes from the image.
        options["icc_profile"] = first.info.get("icc_profile")
    if picture.format == "AVIF" and first.mode == "L":
        options.pop("subsampling", None)  # With any, Pillow would store colours.
    if rest:
        options |= {"save_all": True, "append_images": rest}
    first.save(target, picture.format, **options)


def place_side_by_side(before: Image.Image, after: Image.Image) -> Image.Image:
    """One image with two images of the same size next to each other, in the mode and profile of the second."""
    if after.mode in ("P", "PA"):  # Both images may have palettes of their own.
        after = after.convert("RGBA") if after.has_transparency_data else opaque(after)
    pair = Image.new(after.mode, (2 * after.width, after.height))
    pair.paste(before.convert(after.mode), (0, 0))
    pair.paste(after, (after.width, 0))
    pair.info = dict(after.info)
    return pair
