"""Results keep the format, frames, pages and colours of the original, and none of its metadata."""

from __future__ import annotations

import io
import re
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import make_image
from fuzzing import bounded
from PIL import GifImagePlugin, Image, ImageSequence, TiffImagePlugin
from test_images import encode, in_profile, make_profile
from test_translate import TEMPLATE, Brighter, difference, photograph, rendered, write_weights

from photos.gif import to_palette
from photos.label import LABEL, is_labelled
from photos.picture_file import Picture, choose_format, read_picture, write_picture
from photos.translator import Translator, translate_pictures
from translate import main, translate_files


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A file of untrained weights that record TEMPLATE."""
    return write_weights(tmp_path / "weights.safetensors", TEMPLATE)


SECRETS = ("SECRETTEXT", "SECRETARTIST", "2001:01:01 00:00:00", "SECRETXMP", "SECRETIPTC")


def translated(data: bytes, translator: Translator | None = None, **options: Any) -> tuple[Picture, bytes]:
    """Read, translate and write a file."""
    picture = read_picture(io.BytesIO(data))
    if translator:
        translate_pictures(translator, [picture])
    written = io.BytesIO()
    write_picture(picture, written, **options)
    return picture, written.getvalue()


def through(data: bytes, translator: Translator | None = None, **options: Any) -> tuple[Picture, Image.Image]:
    """What `translated` returns, with the result as an image."""
    picture, result = translated(data, translator, **options)
    return picture, Image.open(io.BytesIO(result))


def frames_of(image: Image.Image) -> list[np.ndarray]:
    """All frames as they appear, RGBA; the colours of transparent pixels are black."""
    frames = [np.array(frame.convert("RGBA")) for frame in ImageSequence.Iterator(image)]
    for frame in frames:
        frame[frame[..., 3] == 0] = 0
    return frames


def timing(image: Image.Image) -> list[tuple[Any, Any]]:
    """The duration and disposal of all frames."""
    result = []
    for frame in ImageSequence.Iterator(image):
        frame.load()  # Only then do WebP and AVIF know the duration.
        result.append((frame.info.get("duration"), getattr(frame, "disposal_method", frame.info.get("disposal"))))
    return result


# --- Formats


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "AVIF", "JPEG2000", "PPM", "HEIF"])
@pytest.mark.parametrize("side_by_side", [False, True])
def test_every_format_comes_back_as_itself(kind: str, side_by_side: bool) -> None:
    if kind == "HEIF":
        pytest.importorskip("pillow_heif").register_heif_opener()
    image = photograph(1)
    data = encode(image, kind)
    _, written = through(data, Translator(Brighter(), 64, template=TEMPLATE), side_by_side=side_by_side)
    assert written.format == kind
    assert written.size == ((1400, 400) if side_by_side else (700, 400))
    lossy = kind in ("JPEG", "AVIF", "HEIF")
    assert difference(
        written.crop((320, 0, 700, 400)), Image.open(io.BytesIO(data)).crop((320, 0, 700, 400))
    ).max() <= (4 if lossy else 0)
    assert difference(written.crop((written.width - 700, 0, written.width, 400)), image).max() >= 24


def test_heic_that_cannot_be_written_becomes_a_jpeg_and_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heif = pytest.importorskip("pillow_heif")
    heif.register_heif_opener()
    (tmp_path / "a.heic").write_bytes(encode(photograph(1), "HEIF"))
    monkeypatch.delitem(Image.SAVE, "HEIF")
    monkeypatch.setitem(sys.modules, "pillow_heif", type(sys)("pillow_heif"))
    sys.modules["pillow_heif"].register_heif_opener = lambda: None  # type: ignore[attr-defined]
    jobs = [(tmp_path / "a.heic", tmp_path / "out" / "a.heic")]
    summary = translate_files(Translator(Brighter(), 64, template=TEMPLATE), jobs, write=write_picture)
    assert Image.open(tmp_path / "out" / "a.heic.jpg").format == "JPEG"
    assert "a.heic: written as JPEG, because HEIF cannot be written here" in str(summary)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "JPEG2000", "PPM"])
def test_a_black_and_white_photograph_of_sixteen_bits_keeps_them(kind: str) -> None:
    image = Image.fromarray(np.asarray(photograph(1).convert("L")).astype(np.uint16) * 257 - 3)
    _, written = through(encode(image, kind), Translator(Brighter(), 64, template=TEMPLATE))
    after, before = (np.asarray(x).astype(int) for x in (written, image))
    assert written.mode in ("I;16", "I")
    assert (after[:, 320:] == before[:, 320:]).all()
    assert abs(np.abs(after - before).max() - 25.5 * 257) < 300


def test_grey_of_sixteen_bits_in_the_other_byte_order_keeps_them_too() -> None:
    values = (np.arange(1600, dtype=np.uint16) * 40).reshape(40, 40)
    image = Image.frombytes("I;16B", (40, 40), values.astype(">u2").tobytes())
    data = encode(image, "TIFF", icc_profile=make_profile(1.8))
    for side_by_side in (False, True):
        _, written = through(data, Translator(Brighter(0), 32), side_by_side=side_by_side)
        assert (np.asarray(written)[:, -40:] == values).all()
        assert written.info["icc_profile"] == make_profile(1.8)


def test_a_black_and_white_avif_stays_one() -> None:
    _, written = through(encode(photograph(1).convert("L"), "AVIF"), Translator(Brighter(), 64, template=TEMPLATE))
    assert written.mode == "L"


def test_a_jpeg_in_grey_or_for_print_keeps_its_mode_and_compression() -> None:
    for mode in ("L", "CMYK"):
        data = encode(photograph(1).convert(mode), "JPEG", quality=60)
        _, written = through(data, Translator(Brighter(), 64, template=TEMPLATE))
        original = Image.open(io.BytesIO(data))
        assert written.mode == mode
        assert written.quantization == original.quantization  # type: ignore[attr-defined]
        assert difference(written.crop((320, 0, 700, 400)), original.crop((320, 0, 700, 400))).max() <= 4


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "JPEG", "AVIF"])
def test_a_colour_profile_stays_with_the_colours_that_it_describes(kind: str) -> None:
    profile = make_profile(2.2, ((0.5151, 0.2412, -0.0011), (0.2920, 0.6922, 0.0419), (0.1571, 0.0666, 0.7841)))
    options: dict[str, Any] = {"quality": 95} if kind == "JPEG" else {"lossless": True} if kind == "WEBP" else {}
    data = encode(in_profile(photograph(1), profile), kind, icc_profile=profile, **options)
    _, written = through(data, Translator(Brighter(), 64, template=TEMPLATE))
    assert written.info["icc_profile"] == profile
    original = Image.open(io.BytesIO(data))
    assert difference(written, original)[:, 320:].max() <= (4 if kind in ("JPEG", "AVIF") else 0)
    assert difference(written, original).max() >= 20


def test_deep_colours_are_said_to_lose_their_depth() -> None:
    raw = struct.pack(">II", 2, 2) + bytes((16, 2, 0, 0, 0))
    parts = [b"\x89PNG\r\n\x1a\n"]
    for kind, body in ((b"IHDR", raw), (b"IDAT", zlib.compress((b"\0" + bytes(12)) * 2)), (b"IEND", b"")):
        parts.append(struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)))
    picture = read_picture(io.BytesIO(b"".join(parts)))
    assert picture.notes == ["left out: all but the first 8 bits of each colour channel"]


# --- Results with a name of their own


def converted(data: bytes, name: str, tmp_path: Path) -> tuple[Picture, Image.Image]:
    """Translate a file to one of another name; returns the picture that has been written, and the result."""
    (tmp_path / "source").write_bytes(data)
    pictures = []

    def write(picture: Picture, target: Any) -> None:
        pictures.append(picture)
        write_picture(picture, target)

    jobs = [(tmp_path / "source", tmp_path / name)]
    summary = translate_files(Translator(Brighter(), 64), jobs, write=write, overwrite=True)
    assert not summary.skipped, summary.skipped
    return pictures[0], Image.open(tmp_path / name)


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "JPEG2000"])
def test_other_programs_find_the_label_and_the_same_picture(kind: str) -> None:
    translator = Translator(Brighter(), 64)
    _, written = through(encode(make_image(1), kind), translator)
    _, plain = through(encode(make_image(1), kind), translator, label=False)
    where = {"GIF": "extension", "TIFF": "xmp", "JPEG2000": "comment"}[kind]
    expected = (b"XMP DataXMP", 27) if kind == "GIF" else LABEL.encode()
    assert written.info[where] == expected
    assert plain.info.get(where) != expected
    assert difference(written, plain).max() == 0


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "avif", "heic", "jp2", "bmp", "ppm", "tif", "gif"])
def test_images_of_every_mode_can_be_written_in_every_format(suffix: str, tmp_path: Path) -> None:
    name = f"x.{suffix}"
    if suffix == "heic":
        pytest.importorskip("pillow_heif").register_heif_opener()
    deep = Image.fromarray(np.full((40, 40), 40_000, np.uint16))
    sources = [deep, *(make_image(1).convert(mode) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK"))]
    for image in sources:
        _, written = converted(encode(image, "TIFF"), name, tmp_path)
        assert written.size == (40, 40)
        assert written.format == {"x.heic": "HEIF", "x.tif": "TIFF"}.get(name, Image.registered_extensions()[name[1:]])
        assert is_labelled(tmp_path / name) is (suffix not in ("bmp", "ppm"))


def test_a_change_of_format_keeps_colours_and_transparency(tmp_path: Path) -> None:
    wide = make_profile(2.2, ((0.5151, 0.2412, -0.0011), (0.2920, 0.6922, 0.0419), (0.1571, 0.0666, 0.7841)))
    image = make_image(1)
    clear = image.copy()
    clear.putalpha(Image.linear_gradient("L").resize(clear.size))
    _, written = converted(encode(clear, "PNG"), "x.webp", tmp_path)
    assert (difference(written.getchannel("A"), clear.getchannel("A")) == 0).all()
    _, written = converted(encode(in_profile(image, wide), "PNG", icc_profile=wide), "x.webp", tmp_path)
    assert written.info["icc_profile"] == wide
    _, written = converted(encode(image.convert("L"), "PNG", icc_profile=make_profile(1.8)), "x.webp", tmp_path)
    assert not written.info.get("icc_profile")


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "AVIF"])
@pytest.mark.parametrize("suffix", [".gif", ".png", ".webp", ".avif"])
def test_an_animation_may_become_one_of_another_format(kind: str, suffix: str, tmp_path: Path) -> None:
    picture, written = converted(animation(kind), f"x{suffix}", tmp_path)
    assert [duration for duration, _ in timing(written)] == [100, 250, 40, 90]
    assert len(frames_of(written)) == 4
    assert not picture.notes


def test_a_format_of_single_images_gets_the_first_frame_or_page_and_that_is_said(tmp_path: Path) -> None:
    pages = encode(make_image(1), "TIFF", save_all=True, append_images=[make_image(2)])
    for data, name, number in ((animation("GIF"), "x.jpg", 3), (pages, "x.gif", 1)):
        picture, written = converted(data, name, tmp_path)
        assert getattr(written, "n_frames", 1) == 1
        assert picture.notes == [f"left out: {number} further frames or pages of the file"]
    picture, written = converted(animation("GIF"), "x.tif", tmp_path)
    assert (written.n_frames, picture.notes) == (4, [])  # type: ignore[attr-defined]


# --- Animations and pages


def animation(kind: str) -> bytes:
    stills = [make_image(i, (96, 80)) for i in range(4)]
    options = {} if kind == "AVIF" else {"loop": 3}
    durations = [100, 250, 40, 90]
    return encode(stills[0], kind, save_all=True, append_images=stills[1:], duration=durations, **options)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "AVIF"])
@pytest.mark.parametrize("side_by_side", [False, True])
def test_every_frame_of_an_animation_is_translated_and_lasts_as_long(kind: str, side_by_side: bool) -> None:
    original = Image.open(io.BytesIO(animation(kind)))
    _, written = through(animation(kind), Translator(Brighter(), 32), side_by_side=side_by_side)
    assert timing(written) == timing(original)
    assert written.info.get("loop") == original.info.get("loop")
    for before, after in zip(frames_of(original), frames_of(written), strict=True):
        change = after[:, -96:, :3].astype(int) - before[..., :3]
        assert np.median(change) == pytest.approx(25, abs=3)


SPRITES = [(1, 1, 1, 1), (1, 2, 2, 2), (1, 3, 3, 3), (1, 2, 3, 1, 3, 2), (0, 3, 1, 2, 1)]


def sprites(disposals: tuple[int, ...]) -> bytes:
    """A GIF of small frames with palettes of their own, drawn over a larger first one."""
    blocks = [b"GIF89a" + struct.pack("<HHBBB", 96, 80, 0, 0, 0) + b"\x21\xff\x0bNETSCAPE2.0\x03\x01\0\0\0"]
    for index, disposal in enumerate(disposals):
        frame = Image.new("P", (20, 20) if index else (96, 80), 0)
        frame.putpalette([0, 0, 0, 200, 50, 40, 10, 120, 60, 250 - index * 5, 0, index * 9])
        frame.paste(1 + 2 * (index % 2) if index else 2, (3, 3, 15, 15) if index else (0, 0, 96, 20))
        settings = {"duration": 100 + 10 * index, "disposal": disposal, "transparency": 0, "include_color_table": True}
        blocks += GifImagePlugin.getdata(frame, (index * 12, 18) if index else (0, 0), **settings)
    return b"".join([*blocks, b";"])


@pytest.mark.parametrize("disposals", SPRITES)
def test_a_gif_looks_and_lasts_the_same_whatever_becomes_of_its_frames(disposals: tuple[int, ...]) -> None:
    original = Image.open(io.BytesIO(sprites(disposals)))
    _, written = through(sprites(disposals))
    assert timing(written) == timing(original)
    assert all(map(np.array_equal, frames_of(written), frames_of(original)))


@pytest.mark.parametrize("disposals", [[0] * 5, [0, 1, 1, 1, 1], [0, 2, 2, 2, 2], [0, 1, 2, 0, 2]])
def test_an_animated_png_looks_the_same_whatever_becomes_of_its_frames(disposals: list[int]) -> None:
    background = Image.new("RGBA", (60, 40))
    background.paste((10, 120, 60, 255), (0, 0, 60, 10))
    stills = [background, *(background.copy() for _ in disposals[1:])]
    for index, still in enumerate(stills[1:]):
        still.paste((200, 50, 40, 255), (12 * index, 20, 12 * index + 8, 30))
    options = {"disposal": disposals, "blend": 1, "duration": 70, "loop": 2}
    data = encode(stills[0], "PNG", save_all=True, append_images=stills[1:], **options)
    _, written = through(data)
    assert all(map(np.array_equal, frames_of(written), frames_of(Image.open(io.BytesIO(data)))))


def test_the_still_of_an_animated_png_is_translated_as_well() -> None:
    stills = [make_image(i) for i in range(3)]
    options = {"save_all": True, "append_images": stills[1:], "default_image": True, "duration": [100, 200]}
    _, written = through(encode(stills[0], "PNG", **options), Translator(Brighter(), 32))
    assert (written.n_frames, written.default_image) == (3, True)  # type: ignore[attr-defined]
    assert difference(written.convert("RGB"), stills[0]).max() >= 24


def test_only_the_face_changes_its_colours_in_a_gif() -> None:
    stills = [photograph(1).quantize(200), photograph(1).rotate(3, fillcolor=(120, 130, 110)).quantize(200)]
    data = encode(stills[0], "GIF", save_all=True, append_images=stills[1:], duration=100)
    _, written = through(data, Translator(Brighter(), 64, template=TEMPLATE))
    for before, after in zip(frames_of(Image.open(io.BytesIO(data))), frames_of(written), strict=True):
        changed = np.abs(after.astype(int) - before).max(axis=2)
        assert changed[:, 320:].max() == 0
        assert np.median(changed[150:250, 90:160]) >= 15


def test_a_frame_with_too_many_colours_keeps_those_of_what_has_not_changed() -> None:
    before = make_image(1, (64, 64)).quantize(200).convert("RGBA")
    after = before.copy()
    after.paste(make_image(2, (64, 32)).convert("RGBA"))
    reduced = np.asarray(to_palette(after, before).convert("RGB")).astype(int)
    assert len(np.unique(reduced.reshape(-1, 3), axis=0)) <= 256
    assert (reduced[32:] == np.asarray(before)[32:, :, :3]).all()
    assert np.abs(reduced[:32] - np.asarray(after)[:32, :, :3]).mean() < 12


def test_all_pages_of_a_tiff_are_translated_in_their_own_size_and_mode() -> None:
    pages = [make_image(1, (96, 80)), make_image(2, (40, 60)).convert("L"), make_image(3).convert("CMYK")]
    data = encode(pages[0], "TIFF", save_all=True, append_images=pages[1:])
    picture, written = through(data, Translator(Brighter(), 32))
    assert not picture.notes
    for page, before in zip(ImageSequence.Iterator(written), pages, strict=True):
        assert (page.mode, page.size) == (before.mode, before.size)
        assert np.median(difference(page, before)) == pytest.approx(25, abs=3)


def test_further_images_that_are_not_translated_are_said_to_be_left_out() -> None:
    data = encode(photograph(1), "MPO", save_all=True, append_images=[photograph(0)])
    assert read_picture(io.BytesIO(data)).notes == ["left out: 1 further images in the file (such as previews)"]


def test_the_limit_counts_the_pixels_of_all_frames_and_pages() -> None:
    pages = [make_image(i, (100, 100)) for i in range(5)]
    tiff = encode(pages[0], "TIFF", save_all=True, append_images=pages[1:])
    for data in (tiff, encode(pages[0], "GIF", save_all=True, append_images=pages[1:])):
        assert len(read_picture(io.BytesIO(data), max_megapixels=0.05).photos) == 5
        with pytest.raises(ValueError, match="too large"):
            read_picture(io.BytesIO(data), max_megapixels=0.049)


# --- Metadata


def secret_tiff(image: Image.Image) -> bytes:
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[270], tags[315], tags[306] = SECRETS[:3]
    tags[700], tags.tagtype[700] = SECRETS[3].encode(), 1
    tags[33723], tags.tagtype[33723] = SECRETS[4].encode(), 7
    return encode(image, "TIFF", tiffinfo=tags)


def secret_exif() -> Image.Exif:
    exif = Image.Exif()
    exif[270], exif[315], exif[306] = SECRETS[:3]
    exif.get_ifd(0x8825)[29] = SECRETS[2]
    return exif


def secret_png(image: Image.Image) -> bytes:
    from PIL.PngImagePlugin import PngInfo

    text = PngInfo()
    text.add_text("Comment", SECRETS[0])
    return encode(image, "PNG", exif=secret_exif(), pnginfo=text)


KEEPERS: dict[str, Callable[[Image.Image], bytes]] = {
    "TIFF": secret_tiff,
    "PNG": secret_png,
    "JPEG": lambda image: encode(image, "JPEG", exif=secret_exif(), xmp=b"SECRETXMP", comment=b"SECRETTEXT"),
    "WEBP": lambda image: encode(image, "WEBP", exif=secret_exif(), xmp=b"SECRETXMP"),
    "AVIF": lambda image: encode(image, "AVIF", exif=secret_exif(), xmp=b"SECRETXMP"),
    "GIF": lambda image: encode(image, "GIF", comment=b"SECRETTEXT"),
    "JPEG2000": lambda image: encode(image, "JPEG2000", comment="SECRETTEXT"),
    "HEIF": lambda image: encode(image, "HEIF", exif=secret_exif(), xmp=b"SECRETXMP"),
}


@pytest.mark.parametrize("kind", KEEPERS)
@pytest.mark.parametrize("num_faces", [0, 1])
def test_no_metadata_survive_with_or_without_a_face(kind: str, num_faces: int) -> None:
    if kind == "HEIF":
        pytest.importorskip("pillow_heif").register_heif_opener()
    data = KEEPERS[kind](photograph(num_faces))
    assert b"SECRET" in data
    picture, result = translated(data, Translator(Brighter(), 64, template=TEMPLATE))
    assert bool(picture.fullest.regions) is bool(num_faces)
    assert not [secret for secret in SECRETS if secret.encode() in result]


def test_no_metadata_survive_on_the_pages_of_a_tiff() -> None:
    data = io.BytesIO(secret_tiff(make_image(1)))
    pages = [Image.open(data), make_image(2)]
    _, result = translated(encode(pages[0], "TIFF", save_all=True, append_images=pages[1:]))
    assert b"SECRET" not in result


# --- The command


def test_the_summary_says_what_a_result_lacks(
    tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photograph(1).save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[photograph(0)])
    assert main([str(tmp_path / "a.jpg"), "--weights", str(weights), "--out", str(tmp_path / "out")]) == 0
    assert "notes:\n" in capsys.readouterr().out


def test_the_command_line_sets_the_largest_image(
    tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rendered(1, 200).save(tmp_path / "a.png")
    flags = [str(tmp_path / "a.png"), "--weights", str(weights), "--out", str(tmp_path / "out")]
    assert main([*flags, "--max-megapixels", "0.04"]) == 0
    assert main([*flags, "--max-megapixels", "0.03"]) == 1
    assert "too large: 200x200 px, over 30000 pixels" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main([*flags, "--max-megapixels", "nan"])


def test_images_are_read_a_few_at_a_time_if_they_are_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("translate.PIXELS_AT_ONCE", 3000)
    jobs = []
    for number in range(5):
        make_image(number).save(tmp_path / f"{number}.png")  # 1600 pixels each
        jobs.append((tmp_path / f"{number}.png", tmp_path / "out" / f"{number}.png"))
    generator = Brighter()
    translate_files(Translator(generator, 32), jobs, write=write_picture)
    assert [shape[0] for shape in generator.input_shapes] == [2, 2, 1]


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_an_animation_that_was_cut_off_keeps_the_frames_before_and_that_is_said(kind: str) -> None:
    frames = [make_image(seed, (200, 200)) for seed in range(3)]
    data = encode(frames[0], kind, save_all=True, append_images=frames[1:], duration=[100, 200, 300])
    picture, result = through(data[: len(data) * 5 // 6])
    assert getattr(result, "n_frames", 1) == 2
    assert picture.options["duration"] == [100, 200]
    assert any("frame" in note and note.startswith("left out") for note in picture.notes)


def test_a_gif_that_was_cut_off_where_pillow_cannot_count_its_frames_keeps_those_before() -> None:
    frames = [make_image(seed, (200, 200)) for seed in range(3)]
    data = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    *_, third = (match.start() for match in re.finditer(rb"!\xf9\x04.{5},", data, re.DOTALL))
    cut = data[: third + 20]  # in the third frame's table of colours
    picture, result = through(cut)
    assert getattr(result, "n_frames", 1) == 2
    assert picture.notes == ["left out: 1 frame that cannot be read"]
    with pytest.raises(ValueError, match="too large: its frames have over"):
        read_picture(io.BytesIO(cut), max_megapixels=0.05)


@pytest.mark.parametrize("page", [0, 1])
def test_a_damaged_page_costs_the_others_only_if_it_is_the_first(page: int) -> None:
    pages = [make_image(seed) for seed in range(3)]
    data = bytearray(encode(pages[0], "TIFF", save_all=True, append_images=pages[1:], compression="tiff_lzw"))
    with Image.open(io.BytesIO(data)) as image:
        image.seek(page)
        start = image.tag_v2[273][0]  # type: ignore[attr-defined]
    data[start : start + 200] = bytes([0x55]) * 200
    if page == 0:
        with pytest.raises(OSError):
            through(bytes(data))
        return
    picture, result = through(bytes(data))
    assert picture.notes == ["left out: 1 page that cannot be read"]
    assert [np.asarray(frame).tolist() for frame in ImageSequence.Iterator(result)] == [
        np.asarray(pages[index]).tolist() for index in (0, 2)
    ]


def test_an_animation_that_is_whole_has_no_notes() -> None:
    frames = [make_image(seed) for seed in range(3)]
    for kind in ("GIF", "PNG", "WEBP", "AVIF"):
        picture, _ = through(encode(frames[0], kind, save_all=True, append_images=frames[1:], duration=100))
        assert len(picture.photos) == 3
        assert not picture.notes


def test_an_incomplete_colour_profile_is_said_to_be_left_out() -> None:
    jpeg, png = encode(make_image(0), "JPEG"), encode(make_image(0), "PNG")
    part = b"\xff\xe2" + struct.pack(">H", 36) + b"ICC_PROFILE\0" + bytes([1, 3]) + bytes(20)  # one part of three
    chunk = b"iCCPname\0\0not packed"
    broken = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    for data in (jpeg[:2] + part + jpeg[2:], png[:33] + broken + png[33:]):
        assert through(data)[0].notes == ["left out: a damaged colour profile"]


def test_a_frame_that_claims_to_be_huge_takes_no_memory() -> None:
    written = io.BytesIO()
    make_image(0).save(written, "GIF", save_all=True, append_images=[make_image(1)])
    data = bytearray(written.getvalue())
    frame = data.index(b",", data.index(b",\0\0\0\0") + 1)  # the second frame's place and size
    while data[frame + 1 : frame + 5] != bytes(4):
        frame = data.index(b",", frame + 1)
    data[frame + 5 : frame + 9] = struct.pack("<HH", 40_000, 40_000)
    with bounded():
        picture = read_picture(io.BytesIO(bytes(data)))
    assert len(picture.photos) == 1
    assert picture.notes == ["left out: 1 frame that cannot be read"]


def test_of_a_damaged_animation_the_still_may_be_all_that_is_left() -> None:
    written = io.BytesIO()
    frames = [make_image(seed) for seed in (1, 2)]
    make_image(0).save(written, "PNG", save_all=True, append_images=frames, default_image=True)
    data = written.getvalue()
    cut = data[: data.index(b"fcTL") + 30] + bytes(40)
    picture = read_picture(io.BytesIO(cut))
    assert len(picture.photos) == 1
    assert not picture.is_animation
    choose_format(picture, source=Path("a.png"), target=Path("a.avif"))
    write_picture(picture, io.BytesIO())
