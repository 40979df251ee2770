"""Which files are taken from folders, what is said of the others, and which files a result may replace."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Tiny, make_folders, make_image, train_here
from PIL import Image
from test_translate import write_weights

import translate
from config import Config
from dataset import domain_names, report_left_out, scan_folder
from photos.files import PassedOver, find_files
from photos.jobs import find_jobs
from photos.label import is_labelled
from photos.photo import Photo
from photos.translator import Translator
from utils import UserError


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """Untrained weights that translate whole images."""
    return write_weights(tmp_path / "weights.safetensors", None)


def save(path: Path, seed: int = 1, mode: str = "RGB", kind: str | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    make_image(seed).convert(mode).save(path, kind)
    return path


def names(files: Sequence[Path], top: Path) -> list[str]:
    return [str(file.relative_to(top)) for file in files]


# --- Folders


def test_linked_folders_are_read_once_and_circles_are_named(tmp_path: Path) -> None:
    top = tmp_path / "top"
    for name in ("b/1", "c/2", ".hidden/3", "__MACOSX/4", ".5"):
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).touch()
    (tmp_path / "elsewhere" / "deep").mkdir(parents=True)
    (tmp_path / "elsewhere" / "deep" / "6").touch()
    (top / "a").symlink_to("b")  # It comes before b by name, but must not take b's place.
    (top / "c" / "circle").symlink_to("..")
    (top / "far").symlink_to("../elsewhere/deep")
    (top / "farther").symlink_to("../elsewhere")
    (top / "out").symlink_to("..")
    files, passed_over = find_files(top)
    assert names(files, top) == ["b/1", "c/2", "far/6"]
    assert passed_over.kinds == Counter(hidden=3)
    assert {link.name: reason for link, reason in passed_over.links} == {
        "a": f"it leads to {top / 'b'}, which is read already",
        "circle": f"a circle, it leads back to {top}",
        "out": f"a circle, it leads back to {tmp_path}",
    }


def test_a_folder_that_is_a_link_to_itself_holds_nothing(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    assert find_files(tmp_path / "loop") == ([], PassedOver())
    assert find_files(tmp_path / "absent") == ([], PassedOver())


def test_the_report_counts_by_kind_in_a_few_lines(tmp_path: Path) -> None:
    found = PassedOver(links=[(Path(f"link{number}"), "a circle") for number in range(5)])
    for number in range(30):
        found.add_file(Path(f"a.s{number % 12:02d}"))
    found.add_file(Path("a"))
    found.add_file(Path("b.S00\n"))
    lines = str(found).splitlines()
    assert lines[0].startswith("passed over 32 other files: 3 .s00, 3 .s01, ")
    assert lines[0].endswith(", 10 of 6 other kinds")
    assert lines[1:] == [*(f"did not follow link{i}: a circle" for i in range(2)),
                         "did not follow 3 more links to folders read already"]  # fmt: skip


def test_training_says_what_it_passes_over(tiny: Tiny, data_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(9):
        (data_dir / "train" / "asian" / f"{number}.raw").write_bytes(b"no image")
    assert train_here(tiny(max_steps=1)) == 0
    asian = data_dir / "train" / "asian"
    line = f"in {asian}: passed over 9 other files: 9 .raw\n"
    assert line in capsys.readouterr().out
    assert (Path(tiny().runs_dir) / "tiny" / "left_out.txt").read_text() == line


def test_names_of_any_bytes_are_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / os.fsdecode(b"\xff\n.jpg")).write_bytes(b"")
    report_left_out([scan_folder(tmp_path)], tmp_path / "left_out.txt")
    text = f"  {tmp_path}/\\udcff\\n.jpg: empty file\n"
    assert capsys.readouterr().out.endswith(text)
    assert (tmp_path / "left_out.txt").read_text(encoding="utf-8") == text


# --- Domains


def test_domains_without_a_name_are_called_by_their_letter(tiny: Tiny, tmp_path: Path, capsys: Any) -> None:
    for name in ("trainA", "trainB"):
        save(tmp_path / "letters" / name / "1.png")
    letters = str(tmp_path / "letters")
    assert domain_names(Config(data_dir=letters)) == ("A", "B")
    assert domain_names(Config(data_dir=letters, domain_a="horse", domain_b="zebra")) == ("horse", "zebra")
    assert domain_names(Config(data_dir=tiny().data_dir)) == ("european", "asian")
    assert train_here(tiny(data_dir=letters, max_steps=1)) == 0
    assert capsys.readouterr().out.startswith("1 A and 1 B image; ")


# --- Jobs


def test_a_folder_gives_all_its_pictures_whatever_their_names(tmp_path: Path) -> None:
    save(tmp_path / "in" / "from_browser.jfif", kind="JPEG")
    save(tmp_path / "in" / "no_suffix", kind="PNG")
    for name in ("notes.txt", "table.XLSX", "list", ".hidden"):
        (tmp_path / "in" / name).write_text("no image")
    os.mkfifo(tmp_path / "in" / "pipe")
    jobs, passed_over = find_jobs([tmp_path / "in"], tmp_path / "out")
    assert [target.name for _, target in jobs] == ["from_browser.jfif", "no_suffix"]
    assert str(passed_over) == (
        "passed over 5 other files: 2 without a suffix, 1 hidden, 1 .txt, 1 .xlsx"
    )  # fmt: skip


def test_a_folder_without_pictures_is_an_error_that_names_its_files(
    tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.docx").write_text("no image")
    flags = ["--weights", str(weights), "--out", str(tmp_path / "out")]
    assert translate.main([str(tmp_path / "in"), *flags]) == 1
    assert capsys.readouterr().err.endswith(
        f"error: there is nothing to translate in {tmp_path / 'in'}\npassed over 1 other file: 1 .docx\n"
    )
    (tmp_path / "in" / "a.png").write_bytes(b"")
    assert translate.main([str(tmp_path / "in"), *flags]) == 1
    printed = capsys.readouterr().out
    assert printed.startswith("translated 0 files\nskipped 1 file:\n")
    assert printed.endswith("passed over 1 other file: 1 .docx\n")


def test_a_source_is_never_a_target(tmp_path: Path) -> None:
    for number, name in enumerate(("a/sub/x.png", "b/sub/x.png")):
        save(tmp_path / name, number)
    with pytest.raises(UserError, match=r"a/sub/x\.png would be overwritten"):
        find_jobs([tmp_path / "b", tmp_path / "a" / "sub"], tmp_path / "a")
    (tmp_path / "out").symlink_to("b")
    with pytest.raises(UserError, match=r"b/sub/x\.png would be overwritten"):
        find_jobs([tmp_path / "b"], tmp_path / "out")
    (tmp_path / "c").mkdir()
    os.link(tmp_path / "a" / "sub" / "x.png", tmp_path / "c" / "x.png")  # another name of the same file
    with pytest.raises(UserError, match=r"a/sub/x\.png would be overwritten"):
        find_jobs([tmp_path / "a" / "sub" / "x.png"], tmp_path / "c")


def test_a_file_that_is_named_twice_is_translated_once(tmp_path: Path) -> None:
    photo = save(tmp_path / "in" / "x.png")
    assert find_jobs([tmp_path / "in", photo], tmp_path / "out")[0] == [(photo, tmp_path / "out" / "x.png")]


def test_links_to_themselves_are_reasons_and_not_tracebacks(tmp_path: Path, weights: Path, capsys: Any) -> None:
    save(tmp_path / "in" / "x.png")
    for name in ("in/loop.png", "loop"):
        (tmp_path / name).symlink_to(Path(name).name)
    flags = ["--weights", str(weights), "--out"]
    assert translate.main([str(tmp_path / "in"), *flags, str(tmp_path / "in" / "out")]) == 1
    assert "loop.png: not a regular file" in capsys.readouterr().out
    assert translate.main([str(tmp_path / "in" / "x.png"), *flags, str(tmp_path / "loop")]) == 1
    assert "loop is not a folder" in capsys.readouterr().err


def test_one_photograph_may_be_written_to_a_file_of_any_name_and_format(tmp_path: Path, weights: Path) -> None:
    photo = save(tmp_path / "photo.jpg")
    for name, kind in (("result.jpg", "JPEG"), ("result.PNG", "PNG"), ("new/result.webp", "WEBP")):
        assert translate.main([str(photo), "--weights", str(weights), "--out", str(tmp_path / name)]) == 0
        assert Image.open(tmp_path / name).format == kind
        assert is_labelled(tmp_path / name)


@pytest.mark.parametrize(
    ("sources", "out", "message"),
    [
        (["a.png", "b.png"], "result.jpg", "names one file, which takes one photograph or video: name a folder"),
        (["folder"], "result.jpg", "names one file, which takes one photograph or video: name a folder"),
        (["a.png"], "result.mp4", "one is a video, and the other is not"),
        (["a.mp4"], "result.jpg", "one is a video, and the other is not"),
        (["a.png"], "notes.txt", "notes.txt is not a folder"),
        (["a.png"], "result.pdf", r"not written as \.pdf\nchoose another name, such as result\.jpg"),
        (["a.mp4"], "result.ICO", r"not written as \.ICO\nchoose another name"),
        (["absent.png"], "out", "absent.png does not exist"),
    ],
)
def test_an_output_that_cannot_be_meant_is_an_error(sources: list[str], out: str, message: str, tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "a.mp4", "folder/c.png", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(UserError, match=message):
        find_jobs([tmp_path / source for source in sources], tmp_path / out)


# --- What may be replaced


def run(folder: Path, weights: Path, *flags: str) -> int:
    return translate.main([str(folder), "--weights", str(weights), "--device", "cpu", *flags])


def test_a_result_replaces_no_original(tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, name in enumerate(("p/x.png", "p/y.bmp", "p/2024/x.png", "p/2024/y.bmp")):
        save(tmp_path / name, number)
    before = {name: (tmp_path / "p" / "2024" / name).read_bytes() for name in ("x.png", "y.bmp")}
    assert run(tmp_path / "p", weights, "--out", str(tmp_path / "p" / "2024")) == 1
    assert {name: (tmp_path / "p" / "2024" / name).read_bytes() for name in before} == before
    printed = capsys.readouterr().out
    assert f"{tmp_path}/p/2024/x.png exists and does not carry this program's label; --overwrite replaces" in printed
    assert f"passed over 2 other files: 2 in {tmp_path}/p/2024, where the results go" in printed
    assert sorted(path.name for path in (tmp_path / "p" / "2024").iterdir()) == ["x.png", "y.bmp"]
    assert run(tmp_path / "p", weights, "--out", str(tmp_path / "p" / "2024"), "--overwrite") == 0
    assert is_labelled(tmp_path / "p" / "2024" / "x.png")


def test_a_rerun_replaces_its_own_results(tmp_path: Path, weights: Path) -> None:
    for number, name in enumerate(("a.jpg", "b.png", "c.webp", "d.bmp", "e.tif", "f.gif", "g.jp2")):
        save(tmp_path / "in" / name, number)
    out = tmp_path / "out"
    assert run(tmp_path / "in", weights, "--out", str(out)) == 0
    first = {path.name: path.read_bytes() for path in out.iterdir()}
    assert run(tmp_path / "in", weights, "--out", str(out)) == 0
    assert {path.name: path.read_bytes() for path in out.iterdir()} == first
    # Side by side the results differ, and only those that carry the label may be replaced.
    assert run(tmp_path / "in", weights, "--out", str(out), "--side-by-side") == 1
    changed = {path.name for path in out.iterdir() if path.read_bytes() != first[path.name]}
    assert changed == {name for name in first if is_labelled(out / name)}
    assert changed == {"a.jpg", "b.png", "c.webp", "e.tif", "f.gif", "g.jp2"}


def test_a_link_among_the_results_is_not_followed(tmp_path: Path, weights: Path) -> None:
    save(tmp_path / "in" / "x.png")
    assert run(tmp_path / "in", weights, "--out", str(tmp_path / "elsewhere")) == 0
    before = (tmp_path / "elsewhere" / "x.png").read_bytes()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "x.png").symlink_to(tmp_path / "elsewhere" / "x.png")
    assert run(tmp_path / "in", weights, "--out", str(tmp_path / "out"), "--side-by-side") == 1
    assert (tmp_path / "elsewhere" / "x.png").read_bytes() == before


def test_a_terminated_translation_leaves_no_half_file(
    tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path / "in" / "x.png")

    def write(photo: Photo, target: Path, *arguments: object, **options: object) -> None:
        target.write_bytes(b"half")
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(translate, "write_picture", write)
    with pytest.raises(SystemExit) as stop:
        run(tmp_path / "in", weights, "--out", str(tmp_path / "out"))
    assert stop.value.code == 128 + signal.SIGTERM
    assert not list((tmp_path / "out").iterdir())


# --- Streams and memory


def test_an_endless_standard_input_is_refused(
    weights: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(translate, "MAX_STREAM", 3 << 20)
    with open("/dev/zero") as endless:
        monkeypatch.setattr("sys.stdin", endless)
        assert translate.main(["-", "--weights", str(weights), "--device", "cpu"]) == 1
    assert "not a readable image: it holds more than 3 MiB" in capsys.readouterr().err


def test_images_that_do_not_fit_into_memory_together_are_translated_one_by_one(
    tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(3):
        save(tmp_path / "in" / f"{number}.png", number)
    make_image(3, (300, 300)).save(tmp_path / "in" / "large.png")
    assert run(tmp_path / "in", weights, "--out", str(tmp_path / "expected")) == 0
    original = Translator.translate

    def translate_a_little(self: Translator, photos: Sequence[Photo], *arguments: Any) -> None:
        original(self, photos[:1], *arguments)  # The first image is changed before the memory is full.
        if len(photos) > 1 or photos[0].pixels.shape[0] == 300:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 B")

    monkeypatch.setattr(Translator, "translate", translate_a_little)
    capsys.readouterr()
    assert run(tmp_path / "in", weights, "--out", str(tmp_path / "out")) == 1
    printed = capsys.readouterr().out
    assert printed.startswith("translated 3 files\nskipped 1 file:\n")
    assert "large.png: the memory is full: lower --batch-size" in printed
    for number in range(3):
        before, after = (np.asarray(Image.open(tmp_path / x / f"{number}.png"), int) for x in ("expected", "out"))
        assert np.abs(before - after).max() <= 1  # The size of a batch may change the rounding.


def test_several_processes_say_which_share_they_have_done(
    tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_folders(tmp_path / "in", 2, 1)
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "3")
    assert run(tmp_path / "in" / "train", weights, "--out", str(tmp_path / "out")) == 0
    assert "this was process 3 of 4, which share the files" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("RANK", "x", "RANK=x in the environment is not a number"),
        ("RANK", "-1", "RANK=-1 in the environment is not a number"),
        ("RANK", "1", "RANK=1 must be less than WORLD_SIZE=1"),
        ("WORLD_SIZE", "", "WORLD_SIZE= in the environment is not a number"),
        ("LOCAL_RANK", "1.5", "LOCAL_RANK=1.5 in the environment is not a number"),
    ],
)
def test_an_environment_that_torchrun_has_not_made_is_an_error(
    name: str, value: str, message: str, tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv(name, value)
    assert run(save(tmp_path / "x.png"), weights, "--out", str(tmp_path / "out")) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("flags", [["--out", ""], ["--weights", ""], ["--like", ""]])
def test_an_empty_path_is_a_mistake(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        translate.parse_args(["a.jpg", *flags])
    assert f"argument {flags[0]}: must not be empty" in capsys.readouterr().err


def test_the_standard_input_has_no_file_to_go_to(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        translate.parse_args(["-", "--out", "x.jpg"])
    assert "write > FILE instead of --out FILE" in capsys.readouterr().err


def test_two_results_are_not_written_to_one_file_through_a_link_in_the_results(tmp_path: Path) -> None:
    for folder in ("x", "y"):
        save(tmp_path / "photos" / folder / "face.png")
    (tmp_path / "out" / "x").mkdir(parents=True)
    (tmp_path / "out" / "y").symlink_to("x")
    with pytest.raises(UserError, match=r"x.face\.png and .*y.face\.png would both become"):
        find_jobs([tmp_path / "photos"], tmp_path / "out")


def test_two_results_are_not_written_to_one_file_where_case_makes_no_difference(tmp_path: Path) -> None:
    sources = [tmp_path / "x" / "face.png", tmp_path / "y" / "Face.png"]
    for source in sources:
        source.parent.mkdir()
        make_image(0).save(source)
    (tmp_path / "out").mkdir()
    assert len(find_jobs(sources, tmp_path / "out")[0]) == 2
    if not (tmp_path / "OUT").exists():
        (tmp_path / "OUT").symlink_to("out")  # now both names are one folder, as on a disk that ignores case
    with pytest.raises(UserError, match=r"x.face\.png and .*y.Face\.png would both become"):
        find_jobs(sources, tmp_path / "out")
