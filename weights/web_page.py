"""Assemble the page that translates in the browser: a folder that any web server can offer, and that needs no other.

The page itself is in web/, and its runtime comes from `npm ci` there. What is added here are the generators as ONNX
files, the face detector, and models.json: what `photos.translator.Translator` is given in Python.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from utils import UserError, atomic_write, printable
from weights.load import Weights, direction_names
from weights.onnx_file import check_packages, free_sides, write_onnx

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "web"
RUNTIME = PAGE / "node_modules" / "onnxruntime-web" / "dist"
RUNTIME_FILES = ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm")
DETECTOR = ROOT / "assets" / "face_detection_yunet_2023mar.onnx"
DETECTOR_LICENSE = ROOT / "assets" / "face_detection_yunet_2023mar.LICENSE.txt"
MODELS = "models"
SETTINGS = "models.json"  # It is written first, and marks a folder as one of ours.


def write_page(weights: Weights, folder: Path) -> None:
    """Write the whole page to a folder, which may hold an earlier one.

    Raises:
        UserError: the weights do not translate faces, the folder holds something else, npm has not been run, a package
            is missing, or an ONNX file differs from its network.
    """
    if weights.template is None:
        raise UserError(f"{printable(weights.path)} records no faces, and the page translates nothing else")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{printable(folder)} is not a folder")
    if folder.exists() and any(folder.iterdir()) and not (folder / MODELS / SETTINGS).exists():
        raise UserError(f"{printable(folder)} holds other files: name a new folder with --web")
    if not all((RUNTIME / name).exists() for name in RUNTIME_FILES):
        raise UserError(f"the page's runtime is missing; run: npm ci --prefix {printable(PAGE)}")
    check_packages()
    models, runtime = folder / MODELS, folder / "runtime"
    for path in (models, runtime):
        path.mkdir(parents=True, exist_ok=True)
    with atomic_write(models / SETTINGS) as temporary:
        temporary.write_text(json.dumps(settings(weights), indent=2), encoding="utf-8")
    for path in (*PAGE.glob("*.html"), *PAGE.glob("*.css"), *PAGE.glob("*.js")):
        shutil.copyfile(path, folder / path.name)
    for name in RUNTIME_FILES:
        shutil.copyfile(RUNTIME / name, runtime / name)
    shutil.copyfile(DETECTOR_LICENSE, models / DETECTOR_LICENSE.name)
    free_sides(DETECTOR, models / "yunet.onnx")
    for direction in weights.generators:
        write_onnx(weights, direction, models / f"gen_{direction}.onnx")


def settings(weights: Weights) -> dict[str, object]:
    """What the page needs to know of the generators, as JSON values."""
    config = weights.config
    names = direction_names(config.domain_a, config.domain_b)
    return {
        "image_size": config.image_size,
        "template": weights.template,
        "names": {direction: names[direction] for direction in weights.generators},
        "strength": {direction: weights.strength(direction) for direction in weights.generators},
    }
