"""Look through a data set before training on it: what is in it, what is broken, what is there twice. Changes nothing.

python check_data.py FOLDER          a table, and a contact sheet in data_check.png
python check_data.py FOLDER --json    the same as JSON
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from tqdm import tqdm

from dataset import ImageFolder, class_folders, scan_folder, subfolders
from photos.faces import find_faces
from utils import UserError, atomic_write, command, printable, read_image

THUMBNAIL = 16  # px; of 1689 aligned faces two different ones correlate to 0.956 at most, re-encoded ones above 0.98
NEAR = 0.97  # correlation of two thumbnails from which on they count as the same picture
FACES_PER_CLASS = 300  # images in which faces are looked for, evenly spread; finding them takes the most time
CELL, SHEET_COLUMNS, ROWS, TITLE = 96, 12, 2, 20  # of the contact sheet: px, pictures a row, rows a class, px


@dataclass
class ClassCheck:
    """What was seen in one class folder."""

    split: str  # "train", "test" or "" where the data set has no splits
    domain: str  # the folder's name, or "a" and "b" for trainA and trainB
    folder: ImageFolder
    sizes: Counter[str] = field(default_factory=Counter)  # "256x256" to images
    formats: Counter[str] = field(default_factory=Counter)
    digests: list[str] = field(default_factory=list)  # SHA-256 of each file
    thumbnails: list[np.ndarray] = field(default_factory=list)  # of each file, see `thumbnail`
    faces: Counter[int] = field(default_factory=Counter)  # faces found to images

    @property
    def name(self) -> str:
        return "/".join(filter(None, (self.split, self.domain)))


def check_classes(folder: Path) -> list[ClassCheck]:
    """Look at every image of a data set once; UserError where there is none."""
    classes = [inspect(ClassCheck(split, domain, scan_folder(path))) for split, domain, path in find_classes(folder)]
    if not any(item.folder.files for item in classes):
        raise UserError(f"no images in {printable(folder)}")
    return classes


def find_classes(folder: Path) -> list[tuple[str, str, Path]]:
    """Class folders as (split, domain, path): those in train/ and test/, and trainA, testB and so on.

    Where there are none, each subfolder is a class, and a folder without subfolders is one.
    """
    if not folder.is_dir():
        raise UserError(f"{printable(folder)} is not a folder")
    found = [(split, domain, path) for (split, domain), path in class_folders(folder).items()]
    return found or [("", path.name, path) for path in subfolders(folder)] or [("", folder.name, folder)]


def inspect(item: ClassCheck) -> ClassCheck:
    """Fill in what the images of a class are like."""
    files = item.folder.files
    look_for_faces = set(np.linspace(0, len(files) - 1, min(len(files), FACES_PER_CLASS)).astype(int))
    for index, file in enumerate(tqdm(files, desc=item.name, unit=" images", leave=False, disable=None)):
        image = read_image(file)
        with Image.open(file) as header:
            item.formats[header.format or "unknown"] += 1
        item.sizes[f"{image.width}x{image.height}"] += 1
        item.digests.append(hashlib.sha256(file.read_bytes()).hexdigest())
        item.thumbnails.append(thumbnail(image))
        if index in look_for_faces:
            item.faces[len(find_faces(np.asarray(image), num_passes=2))] += 1
    return item


def thumbnail(image: Image.Image) -> np.ndarray:
    """A picture's rough layout of colours, (3 * THUMBNAIL**2,) float32 of unit length; the dot product of two is 1
    for pictures that differ in size, compression, brightness and contrast only."""
    small = np.asarray(image.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX), np.float32)
    centred = (small - small.mean(axis=(0, 1))).ravel()
    unit: np.ndarray = centred / max(float(np.linalg.norm(centred)), 1e-6)
    return unit


def same_pictures(classes: Sequence[ClassCheck]) -> Iterator[tuple[str, int, int]]:
    """Pairs of images, numbered through all classes, that are the same: ("exact" or "near", i, j) with i < j."""
    digests = [digest for item in classes for digest in item.digests]
    thumbnails = np.stack([vector for item in classes for vector in item.thumbnails])
    groups = defaultdict(list)
    for index, digest in enumerate(digests):
        groups[digest].append(index)
    for group in groups.values():
        yield from (("exact", group[0], other) for other in group[1:])
    firsts = sorted(group[0] for group in groups.values())  # each picture once
    for start in range(0, len(firsts), 1024):  # not all pairs at once: 10,000 images have 400 MB of correlations
        block = firsts[start : start + 1024]
        near = thumbnails[block] @ thumbnails[firsts].T > NEAR
        for row, column in np.argwhere(near):
            if start + row < column:
                yield "near", block[row], firsts[column]


def relation(one: ClassCheck, other: ClassCheck) -> str:
    """What the classes of two pictures have to do with each other."""
    said = ["in both classes"] * (one.domain != other.domain) + ["in train and test"] * (one.split != other.split)
    return " and ".join(said) or "in one class"


def as_report(folder: Path, classes: Sequence[ClassCheck]) -> dict[str, Any]:
    """All that was seen, as JSON values."""
    owners = [item for item in classes for _ in item.folder.files]
    files = [file for item in classes for file in item.folder.files]
    pairs = [
        {"kind": kind, "where": relation(owners[i], owners[j]),
         "files": [str(files[i].relative_to(folder)), str(files[j].relative_to(folder))]}
        for kind, i, j in same_pictures(classes)
    ]  # fmt: skip
    return {"folder": str(folder), "classes": {item.name: describe(item) for item in classes}, "same_pictures": pairs}


def describe(item: ClassCheck) -> dict[str, Any]:
    """A class as JSON values."""
    return {
        "images": len(item.folder.files),
        "sizes": dict(item.sizes.most_common()),
        "formats": dict(item.formats.most_common()),
        "left_out": {str(file.relative_to(item.folder.path)): why for file, why in item.folder.left_out},
        "looked_for_faces_in": item.faces.total(),
        "one_face": item.faces[1],
        "no_face": item.faces[0],
    }


def as_table(report: dict[str, Any], show: int = 10) -> str:
    """A report as text: a row a class, then what is wrong, the first few of each kind."""
    rows = [("class", "images", "left out", "size", "formats", "one face")]
    for name, seen in report["classes"].items():
        sizes = list(seen["sizes"].items())
        size = f"{sizes[0][0]}" + f" and {len(sizes) - 1} more" * (len(sizes) > 1) if sizes else "-"
        faces = seen["looked_for_faces_in"]
        rows.append((printable(name), f"{seen['images']}", f"{len(seen['left_out'])}", size, " ".join(seen["formats"]),
                     f"{100 * seen['one_face'] / faces:.0f} % of {faces}" if faces else "-"))  # fmt: skip
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lists = {"left out": [f"{name}/{file}: {why}" for name, seen in report["classes"].items()
                          for file, why in seen["left_out"].items()]}  # fmt: skip
    for pair in report["same_pictures"]:
        title = f"{'the same file' if pair['kind'] == 'exact' else 'nearly the same picture'} {pair['where']}"
        lists.setdefault(title, []).append(" = ".join(pair["files"]))
    for title, entries in lists.items():
        if entries:
            lines += ["", f"{title}: {len(entries)}", *(f"  {printable(entry)}" for entry in entries[:show])]
            lines += [f"  ... and {len(entries) - show} more (--json lists all)"] * (len(entries) > show)
    return "\n".join(lines)


def contact_sheet(classes: Sequence[ClassCheck]) -> Image.Image:
    """Pictures from every class, evenly spread, under the class's name."""
    height = TITLE + ROWS * CELL
    sheet = Image.new("RGB", (SHEET_COLUMNS * CELL, len(classes) * height), "white")
    for row, item in enumerate(classes):
        files = item.folder.files
        ImageDraw.Draw(sheet).text((4, row * height + 4), f"{printable(item.name)}: {len(files)} images", fill="black")
        indices = np.linspace(0, len(files) - 1, min(ROWS * SHEET_COLUMNS, len(files))).astype(int)
        for place, index in enumerate(indices):
            picture = read_image(files[index])
            picture.thumbnail((CELL - 2, CELL - 2))
            sheet.paste(picture, (place % SHEET_COLUMNS * CELL, row * height + TITLE + place // SHEET_COLUMNS * CELL))
    return sheet


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Check the data set that the command line names; 0 unless there is none."""
    parser = argparse.ArgumentParser(description="Look through a data set. Nothing in it is changed.")
    parser.add_argument("folder", type=Path, help="holds train/ and test/ with a folder a class, or trainA and so on")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--sheet", type=Path, default=Path("data_check.png"), help="the contact sheet (%(default)s)")
    args = parser.parse_args(argv)
    if not args.sheet.name or args.folder.resolve() in args.sheet.resolve().parents:
        raise UserError("--sheet must name a file outside the data set, which is not changed")
    classes = check_classes(args.folder)
    report = as_report(args.folder, classes)
    print(json.dumps(report, indent=2) if args.json else as_table(report))
    with atomic_write(args.sheet) as temporary:
        contact_sheet(classes).save(temporary, "PNG")
    print(f"\npictures of every class: {printable(args.sheet)}", file=sys.stderr if args.json else sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
