"""Translate the faces in photographs and videos, and leave everything else as it is.

python translate.py PHOTO... [--weights RUN_OR_FILE] [--direction ab|ba] [--out DIR]
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO

from PIL import Image
from tqdm import tqdm

from dataset import IMAGE_SUFFIXES, measure_faces, scan_folder, visible_files
from generator_model import MAX_STRENGTH
from photos.faces import find_faces
from photos.photo import Photo, Pixels, Storage, open_photo, read_photo, write_photo
from photos.smoothing import FaceSmoother
from photos.translator import Translator
from photos.video import VIDEO_SUFFIXES, VideoReport, translate_video
from training import distributed
from utils import (
    UserError,
    atomic_write,
    command,
    pick_device,
    printable,
)
from weights.load import Direction, default_weights, load_weights

Writer = Callable[[Photo, Path | io.BytesIO, Storage], None]  # This is `write_photo` with the user's options.


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
    place = pick_device(device, distributed.local_rank())
    template = loaded.template
    if crops:
        template = None
    elif like:
        examples = scan_folder(Path(like))
        if not examples.files:
            raise UserError(f"no usable images in {printable(like)}")
        template = measure_faces(examples.files)
    generator = loaded.generator(direction)
    if strength is None:
        strength = loaded.strength(direction)
    elif not 0 <= strength <= MAX_STRENGTH:
        raise UserError(f"the strength must be between 0 and {MAX_STRENGTH:g}, got {strength:g}")
    return Translator(generator, loaded.config.image_size, template=template, device=place, batch_size=batch_size,
                      strength=strength)  # fmt: skip


# --- Files


@dataclass
class Summary:
    """What happened to the files that the command line names."""

    num_translated: int = 0
    num_faces: int = 0
    num_unchanged: int = 0
    skipped: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def add(self, photo: Photo) -> None:
        """Count a file that has been written."""
        if photo.regions:
            self.num_translated += 1
            self.num_faces += photo.num_faces
        else:
            self.num_unchanged += 1

    def skip(self, source: Path, error: Exception) -> None:
        """Record why a file was skipped."""
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        self.skipped.append(f"  {printable(source)}: {reason}")

    def leave_out(self, source: Path, parts: str) -> None:
        """Record which parts of a file its result lacks."""
        if parts:
            self.left_out.append(f"  {printable(source)}: {parts}")

    def __str__(self) -> str:
        text = f"translated {_count(self.num_translated, 'file')}"
        if self.num_faces:
            text += f", {_count(self.num_faces, 'face')}"
        if self.num_unchanged:
            text += f"; left {_count(self.num_unchanged, 'file')} without a face unchanged"
        if self.left_out:
            text += "\n".join(["\nleft out:", *self.left_out])
        if self.skipped:
            text += "\n".join([f"\nskipped {_count(len(self.skipped), 'file')}:", *self.skipped])
        return text


def _count(number: int, noun: str) -> str:
    """A number and a noun: "1 file", "2 files"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def find_jobs(sources: Sequence[Path], out: Path) -> list[tuple[Path, Path]]:
    """Pairs of a file to translate and the file to write; the results of a folder keep its subfolders.

    Raises:
        UserError: a source does not exist, two results would have the same name, or a result would replace a source.
    """
    jobs: list[tuple[Path, Path]] = []
    written_to = out.resolve()
    for source in sources:
        if not source.exists():
            raise UserError(f"{printable(source)} does not exist")
        if not source.is_dir():
            jobs.append((source, out / source.name))
            continue
        files = [file for file in visible_files(source) if file.suffix.lower() in IMAGE_SUFFIXES + VIDEO_SUFFIXES]
        if source.resolve() in written_to.parents:  # The results of earlier runs are not translated again.
            files = [file for file in files if written_to not in file.resolve().parents]
        jobs += [(file, out / file.relative_to(source)) for file in files]
    source_of: dict[Path, Path] = {}
    for source, target in jobs:
        if target.resolve() == source.resolve():
            raise UserError(f"{printable(source)} would be overwritten: choose another folder with --out")
        if target in source_of:
            raise UserError(
                f"{printable(source_of[target])} and {printable(source)} would both become {printable(target)}\n"
                "translate them in separate runs, each with its own --out folder"
            )
        source_of[target] = source
    return jobs


def translate_files(
    translator: Translator, jobs: Sequence[tuple[Path, Path]], *, write: Writer, side_by_side: bool = False
) -> Summary:
    """Translate files to files, several images at a time; files that cannot be read or written are skipped.

    `write` writes images. With `side_by_side` videos show each frame before and after.
    """
    summary = Summary()
    with tqdm(total=len(jobs), unit=" files", leave=False, disable=None) as bar:
        for start in range(0, len(jobs), translator.batch_size):
            batch = jobs[start : start + translator.batch_size]
            # Translate videos one by one, and read a batch of images.
            opened = []
            for source, target in batch:
                try:
                    if not source.is_file():  # Reading from a pipe would block for ever.
                        raise UserError("not a regular file")
                    if source.suffix.lower() in VIDEO_SUFFIXES:
                        photo, report = _translate_video_file(translator, source, target, side_by_side)
                        summary.add(photo)
                        summary.leave_out(source, str(report))
                    else:
                        opened.append((source, *read_photo(source), target))
                except Exception as error:  # Decoders may raise any exception on a damaged file.
                    summary.skip(source, error)
            # Translate the faces of all these images together.
            translator.translate([photo for _, photo, *_ in opened])
            # Write the results.
            for source, photo, storage, target in opened:
                try:
                    with atomic_write(target) as temporary:
                        write(photo, temporary, storage)
                    summary.add(photo)
                except (ValueError, OSError) as error:
                    summary.skip(source, error)
            bar.update(len(batch))
    return summary


def _translate_video_file(
    translator: Translator, source: Path, target: Path, side_by_side: bool
) -> tuple[Photo, VideoReport]:
    """Translate a video, and return its frame with the most faces, and what was left out, for the summary."""
    smoother = FaceSmoother()
    fullest: Photo | None = None

    def change(pixels: Pixels) -> Pixels:
        nonlocal fullest
        photo = open_photo(Image.fromarray(pixels))
        translator.translate([photo], lambda frame: smoother(find_faces(frame)))
        if fullest is None or len(photo.regions) > len(fullest.regions):
            fullest = photo
        return photo.colours

    report = translate_video(source, target, change=change, side_by_side=side_by_side)
    assert fullest is not None  # `translate_video` raises an error for a video without frames.
    return fullest, report


def translate_stream(translator: Translator, source: IO[bytes], *, target: IO[bytes], write: Writer) -> None:
    """Translate one image from a binary stream to another; UserError where it cannot be read or written."""
    try:
        photo, storage = read_photo(io.BytesIO(source.read()))
    except Exception as error:  # Decoders may raise any exception on a damaged file.
        raise UserError(f"the standard input is not a readable image: {error}") from error
    translator.translate([photo])
    result = io.BytesIO()  # Some formats need to seek in the file that they write.
    try:
        write(photo, result, storage)
    except ValueError as error:
        raise UserError(f"the result cannot be written as {storage.format}: {error}") from error
    target.write(result.getvalue())


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; exit with status 2 and a message if it is wrong."""
    parser = argparse.ArgumentParser(description="Translate the faces in photographs and videos.")
    add = parser.add_argument
    add("photos", nargs="+", metavar="PHOTO", help="images, videos and folders; - reads an image from standard input")
    add(
        "--weights",
        help="a run's folder, a checkpoint, or a .safetensors file (your newest run, or the bundled weights)",
    )
    add("--direction", choices=("ab", "ba"), default="ab", help="a to b (European to Asian) or b to a (%(default)s)")
    add("--strength", type=float, metavar="S", help="0: no change, 1: what the network gives, up to 3: more (default: "
        "what is stored with the weights, else 1)")  # fmt: skip
    add("--out", type=Path, default=Path("translated"), help="the folder to write to (%(default)s)")
    add("--crops", action="store_true", help="translate whole images: they are already cropped, or do not show faces")
    add("--like", type=Path, metavar="DIR", help="images cropped like the training images, if the weights need them")
    add("--side-by-side", action="store_true", help="write before and after next to each other in one image or video")
    add("--no-metadata", action="store_true", help="do not record in the file that a trained model changed the image")
    add("--batch-size", type=int, default=8, metavar="N", help="translate N images at a time (%(default)s)")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (%(default)s)")
    args = parser.parse_args(argv)
    if args.batch_size < 1:
        parser.error(f"argument --batch-size: must be at least 1, got {args.batch_size}")
    if "" in args.photos:
        parser.error("argument PHOTO: must not be empty")
    if "-" in args.photos and len(args.photos) > 1:
        parser.error("argument PHOTO: - cannot be combined with other inputs, since its result goes to standard output")
    return args


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Translate what the command line names; return 1 if any file was skipped, otherwise 0."""
    args = parse_args(argv)
    write = partial(write_photo, side_by_side=args.side_by_side, label=not args.no_metadata)
    weights = args.weights or default_weights()
    if not args.weights:
        print(f"weights: {printable(weights)}", file=sys.stderr)
    translator = load_translator(
        weights, args.direction, device=args.device, crops=args.crops, like=args.like, batch_size=args.batch_size,
        strength=args.strength,
    )  # fmt: skip
    if translator.template is None and not args.crops:
        reason = "the images of --like do not show faces" if args.like else "the weights record no faces (see --like)"
        print(f"translating whole images: {reason}", file=sys.stderr)
    if args.photos == ["-"]:
        if sys.stdin is None or sys.stdout is None:
            raise UserError("the standard input or output is closed")
        translate_stream(translator, sys.stdin.buffer, target=sys.stdout.buffer, write=write)
        return 0
    jobs = find_jobs([Path(photo) for photo in args.photos], args.out)
    own_jobs = jobs[distributed.rank() :: distributed.count()]
    summary = translate_files(translator, own_jobs, write=write, side_by_side=args.side_by_side)
    print(f"{summary}\nresults: {printable(args.out)}")
    # Several processes return 0 even so: torchrun would stop all of them if one failed.
    return 1 if summary.skipped and distributed.count() == 1 else 0


if __name__ == "__main__":
    sys.exit(main())
