"""Translate the faces in photographs and videos, and leave everything else as it is.

python translate.py PHOTO... [--weights RUN_OR_FILE] [--direction ab|ba] [--out DIR_OR_FILE]
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import IO

import startup  # noqa: F401

from PIL import Image
from tqdm import tqdm

from console import (
    UserError,
    command,
    is_out_of_memory,
    memory_advice,
    printable,
    some_count,
    some_number,
    some_path,
    some_text,
)
from dataset import measure_faces, scan_folder
from generator_model import MAX_STRENGTH
from photos.faces import find_faces
from photos.jobs import Job, Summary, check_replaceable, find_jobs, is_video
from photos.photo import Photo, Pixels, open_photo
from photos.picture_file import DEFAULT_MAX_MEGAPIXELS, Picture, choose_format, read_picture, write_picture
from photos.smoothing import FaceSmoother
from photos.translator import Translator, translate_pictures
from photos.video import VideoReport, result_name, translate_video
from training import distributed
from utils import Template, atomic_write, pick_device
from weights.load import Direction, Weights, chosen_weights, load_weights

Reader = Callable[[Path | io.BytesIO], Picture]  # This is `read_picture` with the user's options.
Writer = Callable[[Picture, Path | io.BytesIO], None]  # This is `write_picture` with the user's options.
Opened = tuple[Path, Picture, Path]  # The source, what it holds, and the target.
PIXELS_AT_ONCE = 50_000_000  # No further image is read before those read are written, once they have this many pixels.
MAX_STREAM = 2**31  # The standard input holds at most this many bytes: 250 megapixels of 8 bytes, uncompressed, fit.
MEMORY_ADVICE = "lower --batch-size, end other programs, or try --device cpu"


def load_translator(
    weights: str | os.PathLike[str],
    direction: Direction = "ab",
    *,
    device: str = "auto",
    crops: bool = False,
    like: str | os.PathLike[str] | None = None,
    batch_size: int = 8,
    strength: float | None = None,
) -> Translator:
    """Build a translator from trained weights.

    Args:
        weights: a run's folder (its newest checkpoint), a checkpoint, or a .safetensors file.
        direction: "ab" translates from domain a to b, "ba" from b to a.
        device: auto, cpu, cuda, cuda:N or mps.
        crops: translate whole images instead of the faces in them.
        like: a folder of images cropped like the training images, for weights that do not record the face template.
        batch_size: the generator translates at most this many crops at a time.
        strength: how much of the change to apply, 0 to 3; None for what is stored with the weights, 1 if nothing is.

    Raises:
        UserError: the weights, the device or the images do not exist or cannot be used.
    """
    loaded = load_weights(weights)
    template = find_template(loaded, crops=crops, like=like)
    return build_translator(
        loaded, direction, template=template, device=device, batch_size=batch_size, strength=strength
    )


def find_template(loaded: Weights, *, crops: bool, like: str | os.PathLike[str] | None) -> Template | None:
    """Where the landmarks of faces lie in the training images; None to translate whole images.

    See `load_translator` for the arguments and errors.
    """
    if crops:
        return None
    if not like:
        return loaded.template
    examples = scan_folder(Path(like))
    if not examples.files:
        raise UserError(f"no usable images in {printable(like)}")
    return measure_faces(examples.files)


def build_translator(
    loaded: Weights,
    direction: Direction,
    *,
    template: Template | None,
    device: str = "auto",
    batch_size: int = 8,
    strength: float | None = None,
) -> Translator:
    """Build the translator of one direction; see `load_translator` for the arguments and errors."""
    place = pick_device(device, distributed.gpu_number())
    generator = loaded.generator(direction)
    if strength is None:
        strength = loaded.strength(direction)
    elif not 0 <= strength <= MAX_STRENGTH:
        raise UserError(f"the strength must be between 0 and {MAX_STRENGTH:g}, got {strength:g}")
    return Translator(generator, loaded.config.image_size, template=template, device=place, batch_size=batch_size,
                      strength=strength)  # fmt: skip


# --- Files


def translate_files(
    translator: Translator,
    jobs: Sequence[Job],
    *,
    read: Reader = read_picture,
    write: Writer = write_picture,
    overwrite: bool = False,
    side_by_side: bool = False,
    label: bool = True,
) -> Summary:
    """Translate files to files, several images at a time; files that cannot be read or written are skipped.

    A file that exists and that this program did not write stays as it is, unless `overwrite` is true (see
    `check_replaceable`). `write` writes images. With `side_by_side` videos show each frame before and after, and with
    `label` they say that a trained model may have changed them.
    """
    summary = Summary()
    opened: list[Opened] = []
    with tqdm(total=len(jobs), unit=" files", leave=False, disable=None) as bar:
        for index, (source, target) in enumerate(jobs, start=1):
            # Translate a video, or read an image.
            try:
                if not source.is_file():  # Reading from a pipe would block for ever.
                    raise UserError("not a regular file")
                if is_video(source):
                    if not overwrite:
                        check_replaceable(target)
                    write_frames = partial(translate_video, source, target, side_by_side=side_by_side, label=label)
                    photo, notes = _translate_video_file(translator, write_frames)
                    if target.name != source.name and target == target.with_name(result_name(source).name):
                        notes.append("written as Matroska")
                    summary.add(photo)
                    summary.note(source, notes)
                else:
                    opened.append((source, read(source), target))
            except Exception as error:  # Decoders may raise any exception on a damaged file.
                summary.skip(source, error)
            # Translate the faces of several images together, and write the results.
            num_pixels = sum(picture.num_pixels for _, picture, _ in opened)
            if len(opened) == translator.batch_size or num_pixels >= PIXELS_AT_ONCE or index == len(jobs):
                for done in _translated(translator, opened, read, summary):
                    _write_result(done, write, overwrite, summary)
                opened.clear()
            bar.update()
    return summary


def _translated(translator: Translator, opened: list[Opened], read: Reader, summary: Summary) -> Iterator[Opened]:
    """Translate images together or, if the memory is full, one by one; yields those for which it sufficed."""
    try:
        translate_pictures(translator, [picture for _, picture, _ in opened])
        unread: list[Job] = []
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        unread = [(source, target) for source, _, target in opened]
        opened.clear()  # The first attempt may have changed some of these images, and fills the memory.
    yield from opened
    for source, target in unread:
        try:
            picture = read(source)
            translate_pictures(translator, [picture])
        except (ValueError, OSError, MemoryError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and not is_out_of_memory(error):
                raise
            summary.skip(source, error)
        else:
            yield source, picture, target


def _write_result(done: Opened, write: Writer, overwrite: bool, summary: Summary) -> None:
    """Write a translated image, and record it in the summary."""
    source, picture, target = done
    try:
        target = choose_format(picture, source=source, target=target)
        with atomic_write(target) as temporary:
            write(picture, temporary)
            if not overwrite:
                check_replaceable(target, temporary)
        summary.add(picture.fullest)
        summary.note(source, picture.notes)
    except (ValueError, OSError, MemoryError) as error:
        summary.skip(source, error)


def _translate_video_file(translator: Translator, write_frames: Callable[..., VideoReport]) -> tuple[Photo, list[str]]:
    """Translate a video, and return its frame with the most faces, and notes on what was left out, for the summary.

    `write_frames` is `translate_video` for that video, and is given the change of its frames.
    """
    smoother = FaceSmoother()
    fullest: Photo | None = None

    def change(pixels: Pixels) -> Pixels:
        nonlocal fullest
        photo = open_photo(Image.fromarray(pixels))
        translator.translate([photo], lambda frame: smoother(find_faces(frame)))
        if fullest is None or len(photo.regions) > len(fullest.regions):
            fullest = photo
        return photo.colours

    report = write_frames(change=change)
    assert fullest is not None  # `translate_video` raises an error for a video without frames.
    return fullest, [f"left out: {report}"] if str(report) else []


def read_stream(source: IO[bytes]) -> io.BytesIO:
    """The content of a binary stream; UserError if there is none, or more than any image needs."""
    content = source.read(MAX_STREAM + 1)
    if not content:
        raise UserError("the standard input is empty: expected an image, as in: python translate.py - < FILE > RESULT")
    if len(content) > MAX_STREAM:
        raise UserError(f"the standard input is not a readable image: it holds more than {MAX_STREAM >> 20} MiB")
    return io.BytesIO(content)


def translate_stream(
    translator: Translator, source: IO[bytes], *, target: IO[bytes], read: Reader, write: Writer
) -> list[str]:
    """Translate one image from a binary stream to another, and return the notes on the result.

    Raises:
        UserError: the image cannot be read or written.
    """
    try:
        picture = read(read_stream(source))
    except UserError:
        raise
    except Exception as error:  # Decoders may raise any exception on a damaged file.
        raise UserError(f"the standard input is not a readable image: {error}") from error
    translate_pictures(translator, [picture])
    choose_format(picture, source=Path("-"), target=Path("-"))
    result = io.BytesIO()  # Some formats need to seek in the file that they write.
    try:
        write(picture, result)
    except ValueError as error:
        raise UserError(f"the result cannot be written as {picture.format}: {error}") from error
    target.write(result.getvalue())
    return picture.notes


def add_translator_flags(parser: argparse.ArgumentParser, *, max_megapixels: float) -> None:
    """Add the flags for weights, faces and limits to a program's command line; `max_megapixels` is a default."""
    add = parser.add_argument
    add(
        "--weights",
        type=some_path,
        help="a run's folder, a checkpoint, or a .safetensors file (your newest run, or the bundled weights)",
    )
    add("--crops", action="store_true", help="translate whole images: they are already cropped, or do not show faces")
    add("--like", type=some_path, metavar="DIR", help="images cropped like the training images, if the weights need it")
    add("--batch-size", type=some_count, default=8, metavar="N", help="translate N images at a time (%(default)s)")
    add("--max-megapixels", type=some_number, default=max_megapixels, metavar="N", help="skip images with more pixels "
        "(%(default)s million); translating takes up to 31 bytes of memory a pixel")  # fmt: skip
    add("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (%(default)s)")


def load_chosen_weights(args: argparse.Namespace) -> tuple[Weights, Template | None]:
    """The weights that the command line names, and their template; says which weights if it names none.

    Raises:
        UserError: as for `load_translator`.
    """
    loaded = load_weights(chosen_weights(args.weights))
    template = find_template(loaded, crops=args.crops, like=args.like)
    if template is None and not args.crops:
        reason = "the images of --like show no faces" if args.like else "the weights record no faces (see --like)"
        print(f"translating whole images: {reason}", file=sys.stderr)
    return loaded, template


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; exit with status 2 and a message if it is wrong."""
    parser = argparse.ArgumentParser(description="Translate the faces in photographs and videos.")
    add = parser.add_argument
    add("photos", nargs="+", type=some_text, metavar="PHOTO", help="images, videos and folders; - reads standard input")
    add_translator_flags(parser, max_megapixels=DEFAULT_MAX_MEGAPIXELS)
    add("--direction", choices=("ab", "ba"), default="ab", help="a to b (European to Asian) or b to a (%(default)s)")
    add("--strength", type=float, metavar="S", help="0: no change, 1: what the network gives, up to 3: more (default: "
        "what is stored with the weights, else 1)")  # fmt: skip
    add("--out", type=some_path, help="the folder to write to (translated), or a file for a single photograph or video")
    add("--overwrite", action="store_true", help="also replace files that are not results of this program")
    add("--side-by-side", action="store_true", help="write before and after next to each other in one image or video")
    add("--no-metadata", action="store_true", help="do not record in the file that a trained model changed the image")
    args = parser.parse_args(argv)
    if "-" in args.photos and len(args.photos) > 1:
        parser.error("argument PHOTO: - cannot be combined with other inputs, since its result goes to standard output")
    if "-" in args.photos and args.out:
        parser.error("argument --out: the result of - goes to standard output; write > FILE instead of --out FILE")
    args.out = args.out or Path("translated")
    return args


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Translate what the command line names; return 1 if a file was skipped or none was written, otherwise 0."""
    args = parse_args(argv)
    read = partial(read_picture, max_megapixels=args.max_megapixels)
    write = partial(write_picture, side_by_side=args.side_by_side, label=not args.no_metadata)
    with memory_advice(MEMORY_ADVICE):
        loaded, template = load_chosen_weights(args)
        translator = build_translator(
            loaded, args.direction, template=template, device=args.device, batch_size=args.batch_size,
            strength=args.strength,
        )  # fmt: skip
        if args.photos == ["-"]:
            if sys.stdin is None or sys.__stdout__ is None:
                raise UserError("the standard input or output is closed")
            print("reading an image from the standard input, until that ends", file=sys.stderr)
            notes = translate_stream(translator, sys.stdin.buffer, target=sys.stdout.buffer, read=read, write=write)
            for note in notes:
                print(note, file=sys.stderr)
            return 0
        return translate_and_report(translator, args, read, write)


def translate_and_report(translator: Translator, args: argparse.Namespace, read: Reader, write: Writer) -> int:
    """Translate this process's share of the files, print a summary, and return the exit status."""
    jobs, passed_over = find_jobs([Path(photo) for photo in args.photos], args.out)
    if not jobs:
        named = ", ".join(map(printable, args.photos))
        raise UserError(f"there is nothing to translate in {named}\n{passed_over}".rstrip())
    own_jobs = jobs[distributed.rank() :: distributed.count()]
    summary = translate_files(
        translator, own_jobs, read=read, write=write, overwrite=args.overwrite, side_by_side=args.side_by_side,
        label=not args.no_metadata,
    )  # fmt: skip
    summary.passed_over = passed_over
    print(summary)
    if distributed.count() > 1:
        print(f"this was process {distributed.rank()} of {distributed.count()}, which share the files")
    if summary.num_written:
        print(f"results: {printable(args.out)}")
    # Several processes return 0 even so: torchrun would stop all of them if one failed.
    failed = summary.skipped or not summary.num_written
    return 1 if failed and distributed.count() == 1 else 0


if __name__ == "__main__":
    sys.exit(main())
