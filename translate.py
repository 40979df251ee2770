"""Photographs in, the same photographs with the faces translated out.

python translate.py PHOTO... --weights RUN_OR_FILE [--direction ab|ba] [--out DIR]
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

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from dataset import IMAGE_SUFFIXES, measure_faces, scan_folder, visible_files
from photos.faces import Face, find_faces
from photos.photo import (
    FaceRegion,
    Photo,
    Pixels,
    Region,
    Storage,
    WholeImage,
    open_photo,
    read_photo,
    write_photo,
)
from photos.video import VIDEO_SUFFIXES, FaceSmoother, translate_video
from training import distributed
from utils import (
    Template,
    UserError,
    atomic_write,
    command,
    denormalize,
    fast_layout,
    has_fast_bf16,
    normalize,
    pick_device,
    printable,
)
from weights.load import Direction, load_weights

Writer = Callable[[Photo, Path | io.BytesIO, Storage], None]  # `write_photo`, with the user's wishes


class Translator:
    """Translates the faces in photographs, or whole images.

    Args:
        generator: maps (N, 3, H, W) in [-1, 1] to the same, H and W multiples of 4; moved to `device`.
        image_size: side of the images it was trained on, px.
        template: where the landmarks lay in these, see `faces.measure_template`; None translates whole images.
        device: where to run; in bfloat16 where the hardware supports it.
        batch_size: crops that the generator takes at a time.
    """

    def __init__(
        self,
        generator: nn.Module,
        image_size: int,
        *,
        template: Template | None = None,
        device: torch.device | str = "cpu",
        batch_size: int = 8,
    ) -> None:
        self.device = torch.device(device)
        self.bf16 = has_fast_bf16(self.device)
        layout = fast_layout(self.device, self.bf16)
        self.generator = generator.to(self.device).to(memory_format=layout).eval()  # type: ignore[call-overload]
        self.image_size, self.template, self.batch_size = image_size, template, batch_size

    def __call__(self, image: Image.Image) -> Image.Image:
        """The translated image, upright, of the same size; an image without a face is returned unchanged.

        Raises:
            ValueError: a colour mode whose range is unknown (32 bits a channel).
        """
        photo = open_photo(image)
        self.translate([photo])
        return photo.result

    def translate(self, photos: Sequence[Photo], find: Callable[[Pixels], Sequence[Face]] = find_faces) -> None:
        """Translate photographs in place, crops of equal size together.

        `find` finds the faces in (H, W, 3) uint8 RGB pixels.
        """
        for photo in photos:
            photo.regions = self._find_regions(photo.seen, find)
        jobs = [(photo, region, region.crop(photo.seen)) for photo in photos for region in photo.regions]
        for shape in sorted({crop.shape for *_, crop in jobs}):
            same_shape = [job for job in jobs if job[2].shape == shape]
            for start in range(0, len(same_shape), self.batch_size):
                batch = same_shape[start : start + self.batch_size]
                results = self._run(np.stack([before for *_, before in batch]))
                for (photo, region, before), after in zip(batch, results, strict=True):
                    region.put_back(photo.colours, before, after)

    def _find_regions(self, pixels: Pixels, find: Callable[[Pixels], Sequence[Face]]) -> Sequence[Region]:
        if self.template is None:
            return [WholeImage(self.image_size)]
        return [FaceRegion(face, self.template, self.image_size) for face in find(pixels)]

    @torch.inference_mode()
    def _run(self, crops: np.ndarray) -> np.ndarray:
        """(N, H, W, 3), 0 to 255, through the generator; float32."""
        images = normalize(torch.from_numpy(crops).permute(0, 3, 1, 2).to(self.device))
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            translated: Tensor = self.generator(images)
        result: np.ndarray = denormalize(translated.float()).permute(0, 2, 3, 1).cpu().numpy()
        return result


def load_translator(
    weights: str | os.PathLike[str],
    direction: Direction = "ab",
    *,
    device: str = "auto",
    crops: bool = False,
    like: str | os.PathLike[str] | None = None,
    batch_size: int = 8,
) -> Translator:
    """A translator with the weights of a run (its newest checkpoint), of a checkpoint or of a .safetensors file.

    Args:
        weights: where they are.
        direction: "ab" (domain a to b) or "ba".
        device: auto, cpu, cuda, cuda:N or mps.
        crops: translate whole images, which are cropped like the training images or show no faces.
        like: a folder of images cropped like the training images, where the weights do not record the template.
        batch_size: crops that the generator takes at a time.

    Raises:
        UserError: no such weights, device or images.
    """
    found, place = load_weights(weights), pick_device(device, distributed.local_rank())
    template = None if crops else measure_examples(Path(like)) if like else found.template
    return Translator(found.generator(direction), found.config.image_size, template=template, device=place,
                      batch_size=batch_size)  # fmt: skip


def measure_examples(folder: Path) -> Template | None:
    """Where the landmarks lie in a folder's images, None if these show no faces; UserError without images."""
    examples = scan_folder(folder).files
    if not examples:
        raise UserError(f"no usable images in {printable(folder)}")
    return measure_faces(examples)


# --- Files


@dataclass
class Summary:
    """What happened to the files of the command line."""

    num_translated: int = 0
    num_faces: int = 0
    num_faceless: int = 0
    skipped: list[str] = field(default_factory=list)

    def add(self, photo: Photo) -> None:
        self.num_translated += bool(photo.regions)
        self.num_faces += photo.num_faces
        self.num_faceless += not photo.regions

    def skip(self, source: Path, error: Exception) -> None:
        reason, *_ = str(error).splitlines() or [type(error).__name__]
        self.skipped.append(f"  {printable(source)}: {reason}")

    def __str__(self) -> str:
        text = f"translated {self.num_translated} files" + f", {self.num_faces} faces" * bool(self.num_faces)
        text += f"; {self.num_faceless} without a face were left as they are" * bool(self.num_faceless)
        return "\n".join([text, *([f"skipped {len(self.skipped)}:", *self.skipped] if self.skipped else [])])


def find_jobs(sources: Sequence[Path], out: Path) -> list[tuple[Path, Path]]:
    """Pairs of a file to translate and the file to write; what is below a folder keeps its subfolders.

    Raises:
        UserError: a source is not there, two results would have one name, or a result would replace a source.
    """
    jobs: list[tuple[Path, Path]] = []
    written_to = out.resolve()
    for source in sources:
        if source.is_dir():
            if source.resolve() == written_to:
                raise UserError(f"{printable(source)} would be overwritten: choose another folder with --out")
            files = [file for file in visible_files(source) if file.suffix.lower() in IMAGE_SUFFIXES + VIDEO_SUFFIXES]
            if source.resolve() in written_to.parents:  # then earlier results are among them
                files = [file for file in files if written_to not in file.resolve().parents]
            jobs += [(file, out / file.relative_to(source)) for file in files]
        elif source.exists():
            jobs.append((source, out / source.name))
        else:
            raise UserError(f"there is no {printable(source)}")
    made_from: dict[Path, Path] = {}
    for source, target in jobs:
        if target.resolve() == source.resolve():
            raise UserError(f"{printable(source)} would be overwritten: choose another folder with --out")
        if target in made_from:
            raise UserError(
                f"{printable(made_from[target])} and {printable(source)} would both become {printable(target)}\n"
                "translate them one after the other, with another --out"
            )
        made_from[target] = source
    return jobs


def translate_files(translator: Translator, jobs: Sequence[tuple[Path, Path]], write: Writer) -> Summary:
    """Translate files to files, several images at a time; what cannot be read is skipped with a reason."""
    summary = Summary()
    with tqdm(total=len(jobs), unit=" files", leave=False, disable=None) as bar:
        for start in range(0, len(jobs), translator.batch_size):
            batch = jobs[start : start + translator.batch_size]
            opened = []
            for source, target in batch:
                try:
                    if not source.is_file():  # a pipe would block for ever
                        raise UserError("not a regular file")
                    if source.suffix.lower() in VIDEO_SUFFIXES:
                        summary.add(translate_frames(translator, source, target))
                    else:
                        opened.append((source, *read_photo(source), target))
                except Exception as error:  # decoders of damaged files raise anything; whatever it is, it is the reason
                    summary.skip(source, error)
            translator.translate([photo for _, photo, *_ in opened])
            for source, photo, storage, target in opened:
                try:
                    with atomic_write(target) as temporary:
                        write(photo, temporary, storage)
                    summary.add(photo)
                except (ValueError, OSError) as error:  # this one cannot be written; others may
                    summary.skip(source, error)
            bar.update(len(batch))
    return summary


def translate_frames(translator: Translator, source: Path, target: Path) -> Photo:
    """Translate a video; returns the frame that showed most faces."""
    smoother = FaceSmoother()
    fullest: Photo | None = None

    def change(pixels: Pixels) -> Pixels:
        nonlocal fullest
        photo = open_photo(Image.fromarray(pixels))
        translator.translate([photo], lambda seen: smoother(find_faces(seen)))
        if fullest is None or len(photo.regions) > len(fullest.regions):
            fullest = photo
        return photo.colours

    translate_video(source, target, change)
    assert fullest is not None  # a video without frames is an error
    return fullest


def translate_stream(translator: Translator, source: IO[bytes], target: IO[bytes], write: Writer) -> None:
    """Translate one image from a stream to another; UserError where it cannot be read."""
    try:
        photo, storage = read_photo(io.BytesIO(source.read()))
    except Exception as error:  # decoders of damaged files raise anything; whatever it is, it is the reason
        raise UserError(f"the standard input is not an image that can be read: {error}") from error
    translator.translate([photo])
    result = io.BytesIO()  # some formats seek
    write(photo, result, storage)
    target.write(result.getvalue())


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; a mistake ends the program with status 2 and says why."""
    parser = argparse.ArgumentParser(description="Translate the faces in photographs and videos.")
    add = parser.add_argument
    add(
        "photos",
        nargs="+",
        metavar="PHOTO",
        help="images, videos and folders; - reads an image from the standard input",
    )
    add("--weights", required=True, help="a run's folder, a checkpoint, or a .safetensors file")
    add("--direction", choices=("ab", "ba"), default="ab", help="a to b (European to Asian) or back (%(default)s)")
    add("--out", type=Path, default=Path("translated"), help="the folder to write to (%(default)s)")
    add(
        "--crops", action="store_true", help="the images are cropped like the training images already, or show no faces"
    )
    add(
        "--like",
        type=Path,
        metavar="DIR",
        help="images cropped as the weights want them, if these do not know",
    )
    add("--side-by-side", action="store_true", help="write before and after in one picture")
    add("--no-metadata", action="store_true", help="do not note in the file that a trained model has changed the image")
    add("--batch-size", type=int, default=8, metavar="N", help="images that are translated together (%(default)s)")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (%(default)s)")
    args = parser.parse_args(argv)
    if args.batch_size < 1:
        parser.error(f"argument --batch-size: must be at least 1, got {args.batch_size}")
    if "" in args.photos:
        parser.error("a photograph's name is empty")
    if "-" in args.photos and len(args.photos) > 1:
        parser.error("- stands alone: the result goes to the standard output")
    return args


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Translate what the command line names; 0 if nothing was skipped."""
    args = parse_args(argv)
    write = partial(write_photo, side_by_side=args.side_by_side, label=not args.no_metadata)
    translator = load_translator(args.weights, args.direction, device=args.device, crops=args.crops, like=args.like,
                                 batch_size=args.batch_size)  # fmt: skip
    if translator.template is None and not args.crops:
        reason = "the example images show no faces" if args.like else "these weights record no faces (see --like)"
        print(f"{reason}: whole images are translated", file=sys.stderr)
    if args.photos == ["-"]:
        if sys.stdin is None:
            raise UserError("the standard input is closed")
        translate_stream(translator, sys.stdin.buffer, sys.stdout.buffer, write)
        return 0
    jobs = find_jobs([Path(photo) for photo in args.photos], args.out)
    own_jobs = jobs[distributed.rank() :: distributed.count()]
    summary = translate_files(translator, own_jobs, write)
    print(f"{summary}\nin {printable(args.out)}")
    # torchrun would end the other processes if one of them failed
    return 1 if summary.skipped and distributed.count() == 1 else 0


if __name__ == "__main__":
    sys.exit(main())
