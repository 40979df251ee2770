"""The label that says that a trained model has changed an image or a video, by which this program knows its results."""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Any

from PIL import PngImagePlugin, TiffImagePlugin

# The IPTC defines this term for pictures that a trained model has changed in part.
TERM = "http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"
LABEL = (  # an XMP packet
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" Iptc4xmpExt:DigitalSourceType='
    f'"{TERM}"/></rdf:RDF></x:xmpmeta>'
)
# A video's label is written before its first frame, when nobody knows whether there will be faces.
VIDEO_LABEL = f"A trained model may have changed the faces in this video ({TERM})"


def label_options(kind: str) -> dict[str, Any]:
    """The options with which Pillow, or `save_gif`, stores LABEL in an image; none if the format cannot hold it."""
    if kind == "PNG":
        text = PngImagePlugin.PngInfo()
        text.add_itxt("XML:com.adobe.xmp", LABEL)
        return {"pnginfo": text}
    if kind == "TIFF":
        tags = TiffImagePlugin.ImageFileDirectory_v2()
        tags[TiffImagePlugin.XMP], tags.tagtype[TiffImagePlugin.XMP] = LABEL.encode(), 1
        return {"tiffinfo": tags}
    if kind == "JPEG2000":
        return {"comment": LABEL.encode()}
    return {"xmp": LABEL.encode()} if kind in ("JPEG", "WEBP", "AVIF", "HEIF", "GIF") else {}


def is_labelled(path: Path) -> bool:
    """Whether a file carries the label that this program writes into what it has translated."""
    if not path.is_file() or path.stat().st_size == 0:
        return False
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return any(content.find(label.encode()) >= 0 for label in (LABEL, VIDEO_LABEL))
