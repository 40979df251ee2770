"""Translators for torch.hub: `torch.hub.load(FOLDER_OR_REPOSITORY, "european_to_asian")`."""

from __future__ import annotations

import os
from typing import Any

from photos.translator import Translator
from translate import load_translator
from weights.load import BUNDLED_WEIGHTS

dependencies = ["albumentations", "cv2", "filelock", "numpy", "PIL", "safetensors", "torch", "tqdm", "tyro"]


def european_to_asian(weights: str | os.PathLike[str] | None = None, **options: Any) -> Translator:
    """A translator from domain a to b: call it with a PIL image, and it returns the translated image.

    Args:
        weights: as for `translate.load_translator`; None for the bundled weights, which know rendered faces only.
        options: the other arguments of `translate.load_translator`.

    Raises:
        UserError: the weights or the device do not exist or cannot be used.
    """
    return load_translator(weights or BUNDLED_WEIGHTS, "ab", **options)


def asian_to_european(weights: str | os.PathLike[str] | None = None, **options: Any) -> Translator:
    """A translator from domain b to a; see `european_to_asian`."""
    return load_translator(weights or BUNDLED_WEIGHTS, "ba", **options)
