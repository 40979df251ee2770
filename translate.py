"""Photographs in, the same photographs with the faces translated out.

python translate.py PHOTO... --weights RUN_OR_FILE [--direction ab|ba] [--out DIR]
"""

from __future__ import annotations

import argparse
import io
import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, JpegImagePlugin, PngImagePlugin
from torch import Tensor, nn
from tqdm import tqdm

import processes
from checkpoint import Direction, load_trained
from dataset import IMAGE_SUFFIXES, measure_faces, scan_folder, visible_files
from faces import Face, Template, align, find_faces, paste
from utils import (
    UserError,
    atomic_write,
    fast_layout,
    has_fast_bf16,
    open_image,
    pick_device,
    printable,
    to_rgb,
    turn_upright,
)
from video import VIDEO_SUFFIXES, FaceSmoother, translate_video

MAX_ASPECT = 4  # of what the network sees of a whole image: longer ones are seen squeezed, and come out whole
LABEL = (  # https://cv.iptc.org/newscodes/digitalsourcetype/
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" Iptc4xmpExt:DigitalSourceType='
    '"http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"/></rdf:RDF></x:xmpmeta>'
)
Pixels = np.ndarray  # (H, W, 3) uint8 RGB
Crop = np.ndarray  # (h, w, 3) RGB, 0 to 255


@dataclass
class Photo:
    """A photograph while it is translated: its own pixels, what the network is shown of it, and the result."""

    original: Image.Image  # upright
    seen: Pixels  # transparency on white
    colours: Pixels  # what changes are added to: `seen` itself, or the colours that a transparent file has in truth
    alpha: Image.Image | None
    faces: list[Face | None] = field(default_factory=list)  # None stands for the whole image

    @property
    def result(self) -> Image.Image:
        if not self.faces:
            return self.original
        image = Image.fromarray(self.colours)
        if self.alpha:
            image.putalpha(self.alpha)
        return image


class Translator:
    """Translates the faces in photographs, or whole images.

    Args:
        generator: takes and gives (N, 3, H, W) in [-1, 1], H and W multiples of 4; moved to `device`.
        image_size: side of the images it was trained on, px.
        template: where the landmarks lay in these, see `faces.measure_template`; None if they showed no faces.
        device: where to run; in bfloat16 where the hardware has it.
        whole: take every image for one that is cropped like the training images already.
        batch_size: crops that the generator takes at a time.
    """

    def __init__(
        self,
        generator: nn.Module,
        image_size: int,
        template: Template | None = None,
        device: torch.device | str = "cpu",
        whole: bool = False,
        batch_size: int = 8,
    ) -> None:
        self.device = torch.device(device)
        self.bf16 = has_fast_bf16(self.device)
        layout = fast_layout(self.device, self.bf16)
        self.generator = generator.to(self.device).to(memory_format=layout).eval()  # type: ignore[call-overload]
        self.image_size, self.template, self.batch_size = image_size, template, batch_size
        self.whole = whole or template is None

    def __call__(self, image: Image.Image) -> Image.Image:
        """The translated image, upright, of the same size; without a face in it, the image as it is.

        Raises:
            ValueError: a colour mode whose range is unknown (32 bits a channel).
        """
        photo = open_photo(image)
        self.translate([photo])
        return photo.result

    def translate(self, photos: Sequence[Photo], find: Callable[[Pixels], Sequence[Face]] = find_faces) -> None:
        """Translate photographs in place, those of all crops that have the same size together.

        `find` finds the faces in (H, W, 3) uint8 RGB pixels.
        """
        for photo in photos:
            photo.faces = [None] if self.whole else [*find(photo.seen)]
        jobs = [(photo, face, self._crop(photo, face)) for photo in photos for face in photo.faces]
        for shape in sorted({crop.shape for *_, crop in jobs}):
            alike = [job for job in jobs if job[2].shape == shape]
            for start in range(0, len(alike), self.batch_size):
                batch = alike[start : start + self.batch_size]
                results = self._run(np.stack([before for *_, before in batch]))
                for (photo, face, before), after in zip(batch, results, strict=True):
                    self._put_back(photo, face, before, after)

    def _crop(self, photo: Photo, face: Face | None) -> Crop:
        if face is None:
            height, width = self._network_size(*photo.seen.shape[:2])
            return resize(photo.seen, height, width).clip(0, 255)  # bicubic swings beyond
        assert self.template is not None
        return align(photo.seen, face, self.template, self.image_size)

    def _put_back(self, photo: Photo, face: Face | None, before: Crop, after: Crop) -> None:
        if face is None:
            photo.colours = add_everywhere(photo.colours, after - before)
        else:
            assert self.template is not None
            paste(photo.colours, before, after, face, self.template)

    def _network_size(self, height: int, width: int) -> tuple[int, int]:
        """The size at which the network sees a whole image: the short side as in training, multiples of 4."""
        short = min(height, width)
        sides = [min(self.image_size * side / short, self.image_size * MAX_ASPECT) for side in (height, width)]
        return max(4, round(sides[0] / 4) * 4), max(4, round(sides[1] / 4) * 4)

    @torch.inference_mode()
    def _run(self, crops: np.ndarray) -> np.ndarray:
        """(N, H, W, 3) float32, 0 to 255, through the generator."""
        images = torch.from_numpy(crops).permute(0, 3, 1, 2).to(self.device) / 127.5 - 1
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            translated: Tensor = self.generator(images)
        result: np.ndarray = ((translated.float() + 1) * 127.5).permute(0, 2, 3, 1).cpu().numpy()
        return result


def load_translator(
    weights: str | os.PathLike[str], direction: Direction = "ab", device: str = "auto", **options: Any
) -> Translator:
    """A translator with a run's newest checkpoint, a checkpoint or a .safetensors file; `options` as for `Translator`.

    Raises:
        UserError: no such weights, or no such device.
    """
    trained, place = load_trained(weights, direction), pick_device(device, processes.local_rank())
    return Translator(trained.generator, trained.config.image_size, trained.template, place, **options)


def open_photo(image: Image.Image) -> Photo:
    """A PIL image of any mode, turned upright, as the translator works on it; ValueError for 32-bit modes."""
    upright = turn_upright(image)
    seen = np.array(to_rgb(upright))
    if not upright.has_transparency_data:
        return Photo(upright, seen, seen, None)
    rgba = upright.convert("RGBA")
    return Photo(upright, seen, np.array(rgba)[..., :3].copy(), rgba.getchannel("A"))


def resize(pixels: np.ndarray, height: int, width: int) -> Crop:
    """Resize (H, W, 3) to (height, width, 3) float32, without aliasing when it shrinks."""
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None].float()
    resized = F.interpolate(image, (height, width), mode="bicubic", antialias=True, align_corners=False)
    result: Crop = resized[0].permute(1, 2, 0).contiguous().numpy()
    return result


def add_everywhere(pixels: Pixels, change: Crop) -> Pixels:
    """Add a change, given at a lower or higher resolution, to a whole image: the image's own detail stays sharp."""
    changed = pixels + resize(change, *pixels.shape[:2])
    rounded: Pixels = np.rint(changed, out=changed).clip(0, 255, out=changed).astype(np.uint8)
    return rounded


# --- Files


@dataclass(frozen=True)
class Storage:
    """How a file stored its image, so that the result is stored alike."""

    format: str
    options: dict[str, Any]


Writer = Callable[[Photo, Path | io.BytesIO, Storage], None]  # `write_photo`, with the user's wishes


def read_photo(source: str | os.PathLike[str] | IO[bytes]) -> tuple[Photo, Storage]:
    """An image file's first frame, and how it was stored; errors as of `utils.open_image`."""
    image = open_image(source)
    assert image.format is not None
    options: dict[str, Any] = {}
    if image.mode in ("RGB", "RGBA", "P"):
        options["icc_profile"] = image.info.get("icc_profile")
    if isinstance(image, JpegImagePlugin.JpegImageFile) and image.mode == "RGB":
        # The same compression again: what is not translated hardly changes.
        options |= {"qtables": image.quantization, "subsampling": JpegImagePlugin.get_sampling(image)}
    elif image.format == "JPEG":
        options["quality"] = 95
    elif image.format == "WEBP":
        options["lossless"] = True
    elif image.format == "TIFF":
        options["compression"] = "tiff_deflate"
    # cameras' MPO is a JPEG with further pictures behind it
    return open_photo(image), Storage("JPEG" if image.format == "MPO" else image.format, options)


def write_photo(
    photo: Photo, target: Path | io.BytesIO, storage: Storage, side_by_side: bool = False, label: bool = True
) -> None:
    """Write the result as the original was stored, without the original's metadata: neither place nor time are copied.

    With `side_by_side`, the original is to the left of it. With `label`, a JPEG, PNG or WebP file says in its XMP
    metadata that a trained model has changed the photograph, if it has.
    """
    image = beside(photo.original, photo.result) if side_by_side else photo.result
    options, label = dict(storage.options), label and bool(photo.faces)
    if label and storage.format == "PNG":
        options["pnginfo"] = PngImagePlugin.PngInfo()
        options["pnginfo"].add_itxt("XML:com.adobe.xmp", LABEL)
    elif label and storage.format in ("JPEG", "WEBP"):
        options["xmp"] = LABEL.encode()
    untouched = not photo.faces and not side_by_side  # then a palette's transparent colour is what it was
    image.info = {key: image.info[key] for key in ("transparency",) if untouched and key in image.info}
    image.save(target, storage.format, **options)


def beside(before: Image.Image, after: Image.Image) -> Image.Image:
    """Two images of one size in one picture."""
    picture = Image.new(after.mode, (2 * after.width, after.height))
    picture.paste(before.convert(after.mode), (0, 0))
    picture.paste(after, (after.width, 0))
    return picture


# --- The command line


@dataclass
class Summary:
    """What happened to the files of the command line."""

    num_translated: int = 0
    num_faces: int = 0
    num_faceless: int = 0
    skipped: list[str] = field(default_factory=list)

    def add(self, faces: Sequence[Face | None]) -> None:
        self.num_translated += bool(faces)
        self.num_faces += sum(face is not None for face in faces)
        self.num_faceless += not faces

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
                    summary.add(photo.faces)
                except (ValueError, OSError) as error:  # this one cannot be written; others may
                    summary.skip(source, error)
            bar.update(len(batch))
    return summary


def translate_frames(translator: Translator, source: Path, target: Path) -> list[Face | None]:
    """Translate a video; returns the faces of the frame that showed most."""
    smoother = FaceSmoother()
    most: list[Face | None] = []

    def change(pixels: Pixels) -> Pixels:
        nonlocal most
        photo = open_photo(Image.fromarray(pixels))
        translator.translate([photo], lambda seen: smoother(find_faces(seen)))
        most = max(most, photo.faces, key=len)
        return photo.colours

    translate_video(source, target, change)
    return most


def translate_stream(translator: Translator, source: IO[bytes], target: IO[bytes], write: Writer) -> None:
    """Translate one image from a stream to another; errors as of `read_photo`."""
    photo, storage = read_photo(io.BytesIO(source.read()))
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


def main(argv: Sequence[str] | None = None) -> int:
    """Translate what the command line names; 0 if nothing was skipped."""
    args = parse_args(argv)
    write = partial(write_photo, side_by_side=args.side_by_side, label=not args.no_metadata)
    try:
        translator = load_translator(args.weights, args.direction, args.device, whole=args.crops,
                                     batch_size=args.batch_size)  # fmt: skip
        if args.like:
            examples = scan_folder(args.like).files
            if not examples:
                raise UserError(f"no usable images in {printable(args.like)}")
            translator.template = measure_faces(examples)
            translator.whole = args.crops or translator.template is None
        if translator.template is None and not args.crops:
            source = "the example images show" if args.like else "these weights know of"
            print(f"{source} no faces (see --like): whole images are translated", file=sys.stderr)
        if args.photos == ["-"]:
            if sys.stdin is None:
                raise UserError("the standard input is closed")
            translate_stream(translator, sys.stdin.buffer, sys.stdout.buffer, write)
            return 0
        jobs = find_jobs([Path(photo) for photo in args.photos], args.out)
        summary = translate_files(translator, jobs[processes.rank() :: processes.count()], write)  # its share of them
        print(f"{summary}\nin {printable(args.out)}")
        # torchrun would end the other processes if one of them failed
        return 1 if summary.skipped and processes.count() == 1 else 0
    except (ValueError, OSError, SyntaxError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


if __name__ == "__main__":
    sys.exit(main())
