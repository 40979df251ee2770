"""A page in the browser around the translator, and the same as an HTTP API (docs/app.md).

python app.py [--weights RUN_OR_FILE] [--host ADDRESS] [--port N]
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from functools import partial
from pathlib import Path
from typing import Any

import startup  # noqa: F401

import numpy as np
from PIL import Image

from console import UserError, command, count, memory_advice, printable, some_count, some_text
from generator_model import MAX_STRENGTH
from images.colours import to_rgb
from photos.jobs import Summary, is_video
from photos.photo import Photo
from photos.picture_file import LOSSY_QUALITY, Picture, read_picture, write_picture
from photos.translator import Translator
from translate import MEMORY_ADVICE, add_translator_flags, build_translator, load_chosen_weights, translate_files
from weights.load import Direction, direction_names

PHOTOS = Path(__file__).parent / "assets" / "photos"
TITLE = "Face translation"
INTRO = f"""# {TITLE}
Choose a photograph. A trained network redraws the faces in it; everything else keeps its pixels."""
ADVICE = """A translated picture shows no real person as they are. Do not pass it off as a photograph, and ask people
before you translate their faces. The file to download says in its metadata that a trained model changed it. Pictures
stay on the computer that runs this page, and are deleted within the hour."""
MAX_UPLOAD = "50mb"
MAX_MEGAPIXELS = 50  # A shared page translates smaller photographs than the command line does.
MAX_WAITING = 64  # Further requests are refused while this many wait.
CACHE_SECONDS = (60, 3000)  # Every so often, files older than this are deleted.
PREVIEW_SIDE = 1280  # The page shows pictures of at most this many px; the file to download keeps its size.
STRENGTH_STEP = 0.05
FIRST_PORT, LAST_PORT = 7860, 65535
SETTINGS = {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_RUN_HISTORY": "False"}
REFUSAL: dict[str, Any] = {"title": "Not translated", "print_exception": False}
Page = Any  # This is `gradio.Blocks`; gradio is optional and slow to import.
Names = Mapping[Direction, str]  # what the page calls each direction


# --- One picture


def translate_upload(
    translator: Translator, upload: Path, folder: Path, *, side_by_side: bool, max_megapixels: float
) -> tuple[tuple[str, str], str, str, str]:
    """Translate an uploaded picture as translate.py does.

    Args:
        translator: what translates it.
        upload: the file, which keeps the name that the user gave it.
        folder: an empty folder; what is shown goes there, and the result to a folder in it.
        side_by_side: write the original next to the result.
        max_megapixels: refuse pictures with more pixels.

    Returns:
        Paths of JPEGs to show (before and after, and both in one), the path of the result, and what to say about it.

    Raises:
        UserError: the file cannot be translated here; the message says why.
    """
    pictures: list[Picture] = []

    def write(picture: Picture, target: Any) -> None:
        pictures.append(picture)
        write_picture(picture, target, side_by_side=side_by_side)

    if is_video(upload):
        raise UserError("this page translates pictures; for videos run translate.py")
    summary = translate_files(
        translator, [(upload, folder / "result" / upload.name)], write=write,
        read=lambda source: read_picture(source, max_megapixels=max_megapixels),
    )  # fmt: skip
    if summary.skipped:
        raise UserError(_without_folder(summary.skipped[0], upload))
    (result,) = (folder / "result").iterdir()
    before, after, pair = write_previews(pictures[-1].fullest, folder)
    return (before, after), pair, str(result), describe(summary, upload)


def write_previews(photo: Photo, folder: Path) -> list[str]:
    """Write what the page shows: before, after, and both side by side, small, and labelled like the result."""
    before, after = to_rgb(photo.original).copy(), to_rgb(photo.result).copy()
    for image in (before, after):
        image.thumbnail((PREVIEW_SIDE, PREVIEW_SIDE), Image.Resampling.LANCZOS)
        image.info = {}
    small = Photo(before, np.asarray(before), np.asarray(after), photo.regions)
    options: dict[str, Any] = {"quality": LOSSY_QUALITY}
    paths = [folder / f"{name}.jpg" for name in ("before", "after", "pair")]
    before.save(paths[0], **options)
    for path, side_by_side in zip(paths[1:], (False, True), strict=True):
        write_picture(Picture([small], "JPEG", options), path, side_by_side=side_by_side)
    return [str(path) for path in paths]


def describe(summary: Summary, upload: Path) -> str:
    """What has happened to a picture, in words."""
    if summary.num_faces:
        text = f"{count(summary.num_faces, 'face')} translated."
    elif summary.num_translated:
        text = "The whole picture was translated."
    else:
        text = "No face was found, so the picture is unchanged. Faces should be upright, and at least 80 px wide."
    return "\n\n".join([text, *(_without_folder(note, upload) for note in summary.notes)])


def _without_folder(line: str, upload: Path) -> str:
    """A line of a summary, which names the file by its path, with the name alone."""
    return line.strip().replace(printable(upload), printable(upload.name))


# --- The page


def button_function(translators: Mapping[Direction, Translator], max_megapixels: float) -> Callable[..., Any]:
    """What the button does; programs can call it as well."""
    import gradio as gr

    def translate(picture: str | None, direction: Direction, strength: float, side_by_side: bool) -> tuple[Any, ...]:
        """Translate the faces in a picture, and return before and after, both in one, the result, and a message."""
        if not picture:
            raise gr.Error("choose a photograph first", **REFUSAL)
        translator = copy(translators[direction])
        translator.strength = strength
        folder = Path(tempfile.mkdtemp(dir=os.environ["GRADIO_TEMP_DIR"]))
        try:
            return translate_upload(
                translator, Path(picture), folder, side_by_side=side_by_side, max_megapixels=max_megapixels
            )
        except Exception as error:
            shutil.rmtree(folder)
            if isinstance(error, UserError):
                raise gr.Error(str(error), **REFUSAL) from None
            raise

    return translate


def build_page(translators: Mapping[Direction, Translator], names: Names, *, max_megapixels: float) -> Page:
    """The page, which is not yet served; GRADIO_TEMP_DIR is where its files go."""
    import gradio as gr

    stored = {translator.strength for translator in translators.values()}
    first = next(iter(translators))
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=CACHE_SECONDS) as page:
        gr.Markdown(INTRO)
        with gr.Row():
            with gr.Column():
                picture = gr.Image(label="Photograph", sources=["upload", "webcam", "clipboard"], type="filepath",
                    image_mode=None, buttons=["fullscreen"], height=340)  # fmt: skip
                gr.Examples([[str(path)] for path in sorted(PHOTOS.glob("*.jpg"))], picture, label="Rendered examples")
                direction = gr.Radio([(names[d], d) for d in translators], value=first, label="Direction")
                strength = gr.Slider(0, MAX_STRENGTH, translators[first].strength, step=STRENGTH_STEP, label="Strength",
                    info="0 changes nothing, 1 is what the network gives, more exaggerates")  # fmt: skip
                side_by_side = gr.Checkbox(label="Save before and after side by side")
                button = gr.Button("Translate", variant="primary")
            with gr.Column():
                with gr.Tab("Slider"):
                    slider = gr.ImageSlider(label="Before and after", buttons=["fullscreen"], max_height=520)
                with gr.Tab("Side by side"):
                    pair = gr.Image(label="Before, after", buttons=["fullscreen"], interactive=False)
                message = gr.Markdown(elem_id="message")
                download = gr.DownloadButton("Download", interactive=False)
        gr.Markdown(ADVICE)

        results = [slider, pair, download, message]
        _take_uploads_as_they_are(picture)
        translate = button_function(translators, max_megapixels)
        done = button.click(translate, [picture, direction, strength, side_by_side], results, api_name="translate")
        hidden: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
        done.success(lambda: gr.update(interactive=True), None, download, **hidden)
        picture.change(lambda: (None, None, gr.update(value=None, interactive=False), ""), None, results, **hidden)
        if len(stored) > 1:  # The strength stored for the direction comes first, unless the user has chosen another.
            direction.input(
                lambda d, s: translators[d].strength if s in stored else s, [direction, strength], strength, **hidden
            )
    return page.queue(max_size=MAX_WAITING, default_concurrency_limit=1)


def _take_uploads_as_they_are(picture: Any) -> None:
    """Have gradio pass on the path of an upload, and only of one.

    By itself it opens the file with Pillow, whose errors are not ours, and downloads what an address names.
    """
    import gradio as gr

    move = picture.async_move_resource_to_block_cache

    async def move_upload(path: str | Path | None) -> str | None:
        if "://" in str(path):
            raise gr.Error("upload the picture: this page fetches nothing from other addresses", **REFUSAL)
        moved: str | None = await move(path)
        return moved

    picture.async_move_resource_to_block_cache = move_upload
    picture.preprocess = lambda upload: upload and upload.path


@contextmanager
def open_page(build: Callable[[], Page], *, host: str | None = None, port: int | None = None) -> Iterator[Page]:
    """Serve a page while the block runs; everything that it has written is deleted at the end.

    Args:
        build: makes the page, see `build_page`.
        host: the address to listen at; None is that in GRADIO_SERVER_NAME, or this computer alone.
        port: None is that in GRADIO_SERVER_PORT, or the first free one from 7860.
    """
    with tempfile.TemporaryDirectory(prefix="page_") as folder:
        os.environ |= SETTINGS | {"GRADIO_TEMP_DIR": folder}  # gradio makes folders as soon as it is imported.
        try:
            import gradio as gr
        except ImportError:
            raise UserError("the page needs gradio: pip install -r requirements-extra.txt") from None
        page = build()
        try:
            page.launch(
                server_name=host, server_port=port, share=False, prevent_thread_lock=True, quiet=True, inline=False,
                max_file_size=MAX_UPLOAD, enable_monitoring=False, ssr_mode=False, mcp_server=False, pwa=False,
                footer_links=["api"],
                theme=gr.themes.Default(primary_hue="teal", font=["system-ui", "sans-serif"], font_mono=["monospace"]),
            )  # fmt: skip
            yield page
        finally:
            page.close(verbose=False)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; exit with status 2 and a message if it is wrong."""
    parser = argparse.ArgumentParser(description="Serve a page in the browser that translates the faces in pictures.")
    parser.add_argument("--host", type=some_text, help="the address to listen at (127.0.0.1, so that only this "
        "computer sees the page); 0.0.0.0 lets every computer in the network in")  # fmt: skip
    parser.add_argument("--port", type=some_count, help=f"(the first free one from {FIRST_PORT})")
    add_translator_flags(parser, max_megapixels=MAX_MEGAPIXELS)
    args = parser.parse_args(argv)
    if args.port and args.port > LAST_PORT:
        parser.error(f"argument --port: must be at most {LAST_PORT}, got {args.port}")
    return args


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Serve the page until Ctrl-C or SIGTERM."""
    args = parse_args(argv)
    with memory_advice(MEMORY_ADVICE):
        loaded, template = load_chosen_weights(args)
        translators = {
            direction: build_translator(
                loaded, direction, template=template, device=args.device, batch_size=args.batch_size
            )
            for direction in loaded.generators
        }
    names = direction_names(loaded.config.domain_a.capitalize(), loaded.config.domain_b.capitalize())
    build = partial(build_page, translators, names, max_megapixels=args.max_megapixels)
    with open_page(build, host=args.host, port=args.port) as page:
        print(f"the page is at {page.local_url}; Ctrl-C ends it", flush=True)
        while page.is_running:
            time.sleep(1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
