"""Only the faces in a photograph change, whatever its mode, format, size and orientation."""

from __future__ import annotations

import io
import math
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT, SMALL, make_folders, run_train
from PIL import Image, ImageCms
from torch import Tensor, nn

from config import Config, to_dict
from dataset import DEMO_ZIP
from generator_model import MAX_SHIFT, Generator
from photos.crops import measure_template
from photos.faces import find_faces
from photos.jobs import find_jobs
from photos.label import LABEL
from photos.photo import open_photo
from photos.picture_file import read_picture, write_picture
from photos.translator import Translator
from translate import load_translator, main, translate_stream
from utils import UserError
from weights.load import export_weights, load_weights
from weights.safetensors_file import write_generators

TEMPLATE = ((0.36, 0.45), (0.64, 0.45), (0.5, 0.6), (0.4, 0.72), (0.6, 0.72))
BACKGROUND = (120, 130, 110)


class Brighter(nn.Module):
    """A generator that brightens every pixel: 0.2 in [-1, 1] is 25.5 grey levels."""

    def __init__(self, by: float = 0.2) -> None:
        super().__init__()
        self.by = by
        self.input_shapes: list[tuple[int, ...]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.input_shapes.append(tuple(x.shape))
        return (x + self.by).clamp(-1, 1)


def rendered(number: int, size: int) -> Image.Image:
    with zipfile.ZipFile(DEMO_ZIP) as archive, archive.open(f"test/european/{number:04d}.jpg") as file:
        return Image.open(file).convert("RGB").resize((size, size), Image.Resampling.BICUBIC)


def photograph(num_faces: int = 1, size: tuple[int, int] = (700, 400)) -> Image.Image:
    image = Image.new("RGB", size, BACKGROUND)
    for number in range(num_faces):
        image.paste(rendered(number, 220), (15 + 230 * number, 90))
    return image


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB")).astype(int)


def difference(image: Image.Image, other: Image.Image) -> np.ndarray:
    """The largest difference in any channel, (H, W)."""
    result: np.ndarray = np.abs(pixels(image) - pixels(other)).max(axis=2)
    return result


def write_weights(path: Path, template: object, strength: Any = None) -> Path:
    """Untrained weights of one direction; `strength` may be nonsense."""
    config = Config(image_size=64, base_channels=4, num_residuals=1)
    generators = {"gen_ab": Generator(**config.generator).state_dict()}
    write_generators(path, generators, config=to_dict(config), template=template, strength=strength)
    return path


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A file of untrained weights that record TEMPLATE."""
    return write_weights(tmp_path / "weights.safetensors", TEMPLATE)


@pytest.mark.parametrize("num_faces", [0, 1, 3])
def test_only_the_faces_change(num_faces: int) -> None:
    image = photograph(num_faces)
    photo = open_photo(image)
    Translator(Brighter(), 64, template=TEMPLATE).translate([photo])
    assert len(photo.regions) == num_faces
    changed = difference(photo.result, image)
    for face in find_faces(np.asarray(image)):
        x, y = face.landmarks.mean(axis=0).astype(int)
        assert changed[y, x] >= 24
    assert (changed > 0).mean() == pytest.approx(0.12 * num_faces, abs=0.06 * num_faces)
    assert (changed[:40] == 0).all()


def test_an_identity_generator_changes_nothing() -> None:
    image = photograph(3)
    result = Translator(Generator(1, 4, global_skip=True), 64, template=TEMPLATE)(image)
    squared = np.square(pixels(result) - pixels(image)).mean()
    assert 10 * np.log10(255**2 / max(squared, 1e-9)) > 60  # The skip itself costs an eighth of a grey level.


@pytest.mark.parametrize("size", [(1, 1), (3, 500), (60, 61), (801, 602), (6000, 4000)])
@pytest.mark.parametrize("whole", [False, True])
def test_images_of_any_size_keep_their_size_and_pixels(size: tuple[int, int], whole: bool) -> None:
    image = Image.radial_gradient("L").resize(size).convert("RGB")
    if size == (6000, 4000):
        image.paste(rendered(1, 1500), (2000, 1000))
    result = Translator(Brighter(0), 64, template=None if whole else TEMPLATE)(image)
    assert result.size == size
    assert difference(result, image).max() <= 1


def test_whole_images_keep_their_detail_and_aspect() -> None:
    image = Image.fromarray((np.indices((300, 900)).sum(axis=0) % 2 * 100 + 60).astype(np.uint8)).convert("RGB")
    generator = Brighter()
    result = Translator(generator, 64)(image)
    assert generator.input_shapes == [(1, 3, 64, 192)]
    assert np.abs(pixels(result) - pixels(image) - 25.5).max() <= 1


def test_very_long_images_are_squeezed_for_the_network() -> None:
    generator = Brighter()
    Translator(generator, 64)(Image.new("RGB", (5, 5000)))
    assert generator.input_shapes == [(1, 3, 256, 64)]


def test_weights_without_a_template_translate_whole_images() -> None:
    image = photograph(0)
    assert difference(Translator(Brighter(), 64)(image), image).min() >= 24


def test_crops_of_one_size_go_through_the_network_together() -> None:
    generator = Brighter()
    Translator(generator, 64, template=TEMPLATE, batch_size=4).translate(
        [open_photo(photograph(3)), open_photo(photograph(2))]
    )
    assert generator.input_shapes == [(4, 3, 64, 64), (1, 3, 64, 64)]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_gives_the_same_upright_image(orientation: int) -> None:
    image = photograph(1)
    undo = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_90",
            7: "TRANSVERSE", 8: "ROTATE_270"}.get(orientation)  # fmt: skip
    stored = image.transpose(Image.Transpose[undo]) if undo else image
    exif = Image.Exif()
    exif[0x112] = orientation
    buffer = io.BytesIO()
    stored.save(buffer, "PNG", exif=exif)
    (photo,) = read_picture(buffer).photos
    translator = Translator(Brighter(), 64, template=TEMPLATE)
    translator.translate([photo])
    assert difference(photo.result, translator(image)).max() == 0


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "CMYK", "1", "I;16", "YCbCr"])
def test_every_mode_is_translated(mode: str) -> None:
    image = photograph(1)
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    else:
        image = image.convert("RGB").convert(mode)
    assert image.mode == mode
    photo = open_photo(image)
    Translator(Brighter(), 64, template=None if mode == "1" else TEMPLATE).translate([photo])
    assert photo.regions
    assert photo.result.size == image.size


def test_transparency_and_the_colours_under_it_are_kept() -> None:
    image = photograph(1).convert("RGBA")
    alpha = np.full((400, 700), 255, np.uint8)
    alpha[:, 300:] = np.arange(400)[None] % 256
    image.putalpha(Image.fromarray(alpha))
    result = Translator(Brighter(), 64, template=TEMPLATE)(image)
    assert result.mode == "RGBA"
    assert (np.asarray(result)[..., 3] == alpha).all()
    assert (np.asarray(result)[:, 300:] == np.asarray(image)[:, 300:]).all()


def test_an_image_without_a_face_is_returned_unchanged() -> None:
    image = Image.fromarray(np.arange(60000, dtype=np.uint16).reshape(200, 300))
    assert Translator(Brighter(), 64, template=TEMPLATE)(image) is image


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.tif", "a.webp"])
def test_lossless_files_keep_every_pixel_outside_the_faces(name: str, tmp_path: Path, weights: Path) -> None:
    image = photograph(1)
    image.save(tmp_path / name, lossless=True)
    assert main([str(tmp_path / name), "--weights", str(weights), "--out", str(tmp_path / "out")]) == 0
    written = Image.open(tmp_path / "out" / name)
    assert written.format == Image.open(tmp_path / name).format
    assert difference(written, image)[:, 300:].max() == 0


def test_a_jpeg_keeps_its_compression(tmp_path: Path) -> None:
    photograph(1).save(tmp_path / "a.jpg", quality=71, subsampling=1)
    write_picture(read_picture(tmp_path / "a.jpg"), tmp_path / "b.jpg")
    before, after = Image.open(tmp_path / "a.jpg"), Image.open(tmp_path / "b.jpg")
    assert after.quantization == before.quantization  # type: ignore[attr-defined]
    assert difference(before, after).max() <= 4


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("label", [True, False])
def test_metadata_is_replaced_by_a_label_of_the_change(kind: str, label: bool, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x010F] = "SecretCamera"
    exif.get_ifd(0x8825)[2] = (48.0, 8.0, 15.0)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    photograph(1).save(tmp_path / "in", kind, exif=exif, icc_profile=profile)
    picture = read_picture(tmp_path / "in")
    Translator(Brighter(), 64, template=TEMPLATE).translate(picture.photos)
    write_picture(picture, tmp_path / "out", label=label)
    written = Image.open(tmp_path / "out")
    data = (tmp_path / "out").read_bytes()
    assert (LABEL.encode() in data) is label
    assert (b"compositeWithTrainedAlgorithmicMedia" in data) is label
    assert written.info["icc_profile"] == profile
    assert not written.getexif()
    assert b"SecretCamera" not in data


def test_an_unchanged_photograph_has_no_label(tmp_path: Path) -> None:
    photograph(0).save(tmp_path / "in.png")
    picture = read_picture(tmp_path / "in.png")
    Translator(Brighter(), 64, template=TEMPLATE).translate(picture.photos)
    write_picture(picture, tmp_path / "out.png")
    assert LABEL.encode() not in (tmp_path / "out.png").read_bytes()


def test_the_original_and_the_result_side_by_side(tmp_path: Path, weights: Path) -> None:
    photograph(1).save(tmp_path / "a.png")
    flags = ["--weights", str(weights), "--out", str(tmp_path / "out"), "--side-by-side"]
    assert main([str(tmp_path / "a.png"), *flags]) == 0
    pair = Image.open(tmp_path / "out" / "a.png")
    assert pair.size == (1400, 400)
    assert difference(pair.crop((0, 0, 700, 400)), photograph(1)).max() == 0


def test_damaged_files_in_a_folder_are_skipped_and_listed(
    tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "many" / "deep"
    folder.mkdir(parents=True)
    for number in range(95):
        Image.new("RGB", (20, 20), (number, 0, 0)).save(folder / f"{number}.png")
    for number in range(5):
        (folder / f"broken{number}.jpg").write_bytes(b"\xff\xd8\xff" + bytes(number))
    assert main([str(tmp_path / "many"), "--weights", str(weights), "--out", str(tmp_path / "out"), "--crops"]) == 1
    printed = capsys.readouterr().out
    assert printed.startswith("translated 95 files\nskipped 5 files:\n")
    assert all(f"broken{number}.jpg: " in printed for number in range(5))
    assert len(list((tmp_path / "out" / "deep").iterdir())) == 95


def test_files_that_cannot_be_read_or_written_do_not_stop_the_others(
    tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    os.mkfifo(folder / "a.jpg")
    Image.new("RGB", (40_000, 10)).save(folder / "b.jpg")  # Two of these side by side are too wide for a JPEG.
    photograph(1).save(folder / "c.jpg")
    out.mkdir()
    (out / "c.jpg.tmp").write_text("mine")
    flags = ["--weights", str(weights), "--out", str(out), "--side-by-side"]
    assert main([str(folder), *flags, "--crops"]) == 1
    printed = capsys.readouterr().out
    assert printed.startswith("translated 1 file\nskipped 2 files:\n")
    assert "a.jpg: not a regular file" in printed
    assert "b.jpg: " in printed
    assert sorted(path.name for path in out.iterdir()) == ["c.jpg", "c.jpg.tmp"]


def test_an_untranslated_palette_image_keeps_its_transparent_colour(tmp_path: Path, weights: Path) -> None:
    image = Image.linear_gradient("L").convert("RGB").quantize(16)
    image.info["transparency"] = 3
    image.save(tmp_path / "a.png")
    assert main([str(tmp_path / "a.png"), "--weights", str(weights), "--out", str(tmp_path / "out")]) == 0
    before, after = (np.asarray(Image.open(x / "a.png").convert("RGBA")) for x in (tmp_path, tmp_path / "out"))
    assert set(np.unique(before[..., 3])) == {0, 255}
    assert np.array_equal(before, after)


def test_a_camera_file_with_two_images_becomes_a_labelled_jpeg(tmp_path: Path, weights: Path) -> None:
    photograph(1).save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[photograph(0)])
    assert Image.open(tmp_path / "a.jpg").format == "MPO"
    assert main([str(tmp_path / "a.jpg"), "--weights", str(weights), "--out", str(tmp_path / "out")]) == 0
    assert "xmp" in Image.open(tmp_path / "out" / "a.jpg").info


def test_a_decompression_bomb_on_standard_input_is_an_error(
    weights: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    buffer = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(buffer, "PNG")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(buffer.getvalue())))
    assert main(["-", "--weights", str(weights)]) == 1
    assert "not a readable image: too large" in capsys.readouterr().err


def test_a_result_that_its_format_cannot_hold_is_an_error(
    weights: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (9000, 8)).save(buffer, "WEBP")  # side by side it would be wider than WebP allows
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(buffer.getvalue())))
    assert main(["-", "--weights", str(weights), "--crops", "--side-by-side", "--device", "cpu"]) == 1
    assert "error: the result cannot be written as WEBP" in capsys.readouterr().err


def test_an_image_on_standard_input_is_translated_to_standard_output(tmp_path: Path, weights: Path) -> None:
    buffer = io.BytesIO()
    photograph(1).save(buffer, "PNG")
    done = subprocess.run(
        [sys.executable, str(ROOT / "translate.py"), "-", "--weights", str(weights)],
        input=buffer.getvalue(), capture_output=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr.decode().splitlines()[-1] == "reading an image from the standard input, until that ends"
    assert Image.open(io.BytesIO(done.stdout)).size == (700, 400)


def test_results_never_replace_their_sources_or_each_other(tmp_path: Path) -> None:
    for name in ("a/x.png", "b/x.png"):
        (tmp_path / name).parent.mkdir()
        photograph(0).save(tmp_path / name)
    with pytest.raises(UserError, match="would be overwritten"):
        find_jobs([tmp_path / "a" / "x.png"], tmp_path / "a")
    for out in (tmp_path / "a", tmp_path / "a" / "new" / ".."):  # The second path names it too.
        with pytest.raises(UserError, match="would be overwritten"):
            find_jobs([tmp_path / "a"], out)
    with pytest.raises(UserError, match="would both become"):
        find_jobs([tmp_path / "a" / "x.png", tmp_path / "b" / "x.png"], tmp_path / "out")
    assert [target for _, target in find_jobs([tmp_path], tmp_path / "out")[0]] == [
        tmp_path / "out" / "a" / "x.png", tmp_path / "out" / "b" / "x.png"
    ]  # fmt: skip


def test_earlier_results_inside_a_folder_are_not_translated_again(tmp_path: Path) -> None:
    for name in ("x.png", "out/x.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        photograph(0).save(tmp_path / name)
    jobs, passed_over = find_jobs([tmp_path], tmp_path / "out")
    assert jobs == [(tmp_path / "x.png", tmp_path / "out" / "x.png")]
    assert str(passed_over) == f"passed over 1 other file: 1 in {tmp_path / 'out'}, where the results go"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing.jpg"], "nothing.jpg does not exist"),
        (["-", "a.jpg"], "- cannot be combined with other inputs"),
        (["a.jpg", "--batch-size", "0"], "at least 1"),
        (["a.jpg", "--strength", "3.1"], "the strength must be between 0 and 3, got 3.1"),
        (["a.jpg", "--strength", "-1"], "the strength must be between 0 and 3, got -1"),
        (["a.jpg", "--strength", "nan"], "the strength must be between 0 and 3, got nan"),
        (["a.jpg", "--device", "cuda:7"], "device cuda:7 is not available"),
        (["a.jpg", "--device", "foo"], "device must be auto"),
        (["a.jpg", "--like", "nowhere"], "no usable images in nowhere"),
        ([""], "PHOTO: must not be empty"),
        (["a.jpg", "--weights", "nowhere"], "nowhere"),
    ],
)
def test_mistakes_on_the_command_line_are_explained_in_one_line(
    arguments: list[str], message: str, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        status: Any = main(["--weights", str(weights), *arguments])
    except SystemExit as stop:
        status = stop.code
    assert status in (1, 2)
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_a_run_records_the_template_of_its_training_images(tmp_path: Path) -> None:
    with zipfile.ZipFile(DEMO_ZIP) as archive:
        for domain in ("european", "asian"):
            for number in range(3):
                archive.extract(f"train/{domain}/{number:04d}.jpg", tmp_path / "data")
    run = [*SMALL, "--data-dir", "data", "--run-name", "faces", "--max-steps", "2", "--num-workers", "0"]
    assert run_train(*run, cwd=tmp_path).returncode == 0
    files = sorted((tmp_path / "data").rglob("*.jpg"))
    expected = measure_template(np.asarray(Image.open(file).convert("RGB").resize((256, 256))) for file in files)
    run_dir = tmp_path / "runs" / "faces"
    template = load_weights(run_dir).template
    assert template is not None
    assert expected is not None
    assert np.allclose(template, expected, atol=0.01)
    export_weights(run_dir, tmp_path / "faces.safetensors")
    assert load_translator(tmp_path / "faces.safetensors", "ba").template == template
    run[run.index("--max-steps") + 1] = "3"
    assert run_train(*run, cwd=tmp_path).returncode == 0
    assert load_weights(run_dir).template == template


def test_a_run_on_images_without_faces_has_no_template(tmp_path: Path) -> None:
    make_folders(tmp_path / "data", 2, 2)
    done = run_train(*SMALL, "--data-dir", "data", "--max-steps", "1", "--num-workers", "0", cwd=tmp_path)
    assert done.returncode == 0
    assert load_weights(tmp_path / "runs" / "default").template is None


def test_the_template_can_come_from_a_folder_of_examples(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = write_weights(tmp_path / "w.safetensors", None)
    (tmp_path / "like").mkdir()
    for number in range(3):
        rendered(number, 128).save(tmp_path / "like" / f"{number}.png")
    photograph(2).save(tmp_path / "a.png")
    arguments = [str(tmp_path / "a.png"), "--weights", str(weights), "--out", str(tmp_path / "out")]
    assert main(arguments) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith("translated 1 file\n")
    assert "translating whole images" in printed.err
    assert main([*arguments, "--like", str(tmp_path / "like")]) == 0
    assert capsys.readouterr().out.startswith("translated 1 file, 2 faces\n")


def test_an_invalid_template_in_a_file_is_an_error(tmp_path: Path) -> None:
    for template in ("here", [[0.1, 0.2]] * 5, [[0.1, 0.2]], [[float("nan"), n] for n in range(5)]):
        with pytest.raises(UserError, match=r"w\.safetensors has an invalid face template"):
            load_translator(write_weights(tmp_path / "w.safetensors", template))


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0, 2.0, 3.0])
def test_the_strength_weakens_or_exaggerates_the_change(strength: float) -> None:
    grey = Image.new("RGB", (64, 64), (120, 120, 120))  # where the change before tanh is nearly linear
    result = Translator(Brighter(0.05), 64, strength=strength)(grey)
    assert pixels(result)[32, 32, 0] - 120 == pytest.approx(strength * 0.05 * 127.5, abs=1)


def test_strength_one_is_what_the_generator_gives_bit_for_bit() -> None:
    image = photograph(1)
    plain, explicit = (Translator(Brighter(), 64, template=TEMPLATE, **knobs)(image) for knobs in ({}, {"strength": 1}))  # type: ignore[arg-type]
    assert difference(plain, explicit).max() == 0


def test_the_strength_stored_with_the_weights_counts_unless_another_is_given(tmp_path: Path) -> None:
    weights = write_weights(tmp_path / "w.safetensors", None, {"ab": 1.5, "ba": 2})
    assert load_weights(weights).strength("ba") == 2
    assert load_translator(weights).strength == 1.5
    assert load_translator(weights, strength=0.5).strength == 0.5
    assert load_translator(write_weights(weights, None)).strength == 1
    assert load_translator(write_weights(weights, None, {"ba": 2})).strength == 1


@pytest.mark.parametrize("strength", [{"ab": -0.1}, {"ab": 3.1}, {"ab": float("nan")}, {"ab": True}, {"b": 1}, 2, "x"])
def test_an_invalid_strength_in_a_file_is_an_error(strength: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the strength must be a number between 0 and 3 for each of ab and ba"):
        load_translator(write_weights(tmp_path / "w.safetensors", None, strength))


def test_the_command_line_sets_the_strength(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: Path) -> None:
    photograph(1).save(tmp_path / "a.png")
    seen: list[float] = []

    def note(generator: nn.Module, image: Tensor, strength: float) -> tuple[Tensor, None]:
        seen.append(strength)
        return image, None

    monkeypatch.setattr("photos.translator.edit_at_strength", note)
    flags = [str(tmp_path / "a.png"), "--weights", str(weights), "--out", str(tmp_path / "out")]
    for strength in ([], ["--strength", "0"], ["--strength", "2.5"]):
        assert main([*flags, *strength]) == 0
    assert seen == [1, 0, 2.5]


@pytest.mark.parametrize("size", [(640, 480), (60, 80)])
def test_whole_images_are_moved_at_their_own_size(size: tuple[int, int]) -> None:
    """So they stay as sharp as they are, and are not drawn again at the network's size."""
    generator = Generator(1, 4, global_skip=True, appearance_flow=True)
    generator.get_parameter("flow.bias").data[0] = math.atanh(0.5)
    photo = photograph(1).resize(size)
    moved_by = round(0.5 * MAX_SHIFT * size[0])
    expected = np.roll(pixels(photo), -moved_by, axis=1)[:, : -moved_by - 4]
    off = pixels(Translator(generator, 64)(photo))[:, : -moved_by - 4] - expected
    assert np.abs(off).max() <= 8  # bfloat16 rounds the distance


@pytest.mark.parametrize(
    ("content", "said"), [(b"", "is empty: expected an image"), (b"text", "is not a readable image: not an image of")]
)
def test_a_standard_input_without_an_image_is_described_without_words_of_python(content: bytes, said: str) -> None:
    with pytest.raises(UserError, match=f"^the standard input {said}") as caught:
        translate_stream(
            Translator(nn.Identity(), 32), io.BytesIO(content), target=io.BytesIO(), read=read_picture,
            write=write_picture,
        )  # fmt: skip
    assert "BytesIO" not in str(caught.value)
