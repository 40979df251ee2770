"""The tables are right about generators whose quality is known."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from conftest import SMALL, make_folders, make_image, run_train
from PIL import Image
from test_bundled_weights import faces_of
from torch import Tensor, nn

import evaluate
from config import Config
from dataset import load_images
from evaluate import main
from evaluation import report, scoring
from evaluation.classifier import train_domain_classifier
from evaluation.distortions import DISTORTIONS
from evaluation.report import check_folder
from evaluation.scorers import Scorers
from evaluation.scoring import Domain, Task, warning_of_framing
from evaluation.validation import Validation, strengths_in
from generator_model import Generator, moved
from photos.crops import Edit, measure_template, paste, paste_mask
from photos.faces import Face
from utils import UserError, denormalize, image_to_tensor, tensor_to_image

LANDMARKS = ((0.3, 0.3), (0.7, 0.3), (0.5, 0.5), (0.35, 0.7), (0.65, 0.7))


class Shift(nn.Module):
    """A generator that adds a number to every pixel."""

    def __init__(self, by: float) -> None:
        super().__init__()
        self.by = nn.Parameter(torch.tensor(float(by)))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.by


def dark_and_bright() -> tuple[Domain, Domain]:
    """Two domains whose true translation adds or subtracts 0.8, and whose test images are true pairs."""
    torch.manual_seed(0)
    noise = [0.1 * torch.randn(count, 3, 16, 16) for count in (40, 40, 12)]
    dark = Domain("dark", lambda: torch.split(noise[0] - 0.4, 16), noise[2] - 0.4)
    return dark, Domain("bright", lambda: torch.split(noise[1] + 0.4, 16), noise[2] + 0.4)


@pytest.fixture(scope="module")
def scorers() -> Scorers:
    dark, bright = dark_and_bright()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("evaluation.classifier.NUM_STEPS", 20)
        return Scorers(*train_domain_classifier(*(torch.cat([*x.read_train()]) for x in (dark, bright))))


@pytest.fixture
def scorers_with_identity(scorers: Scorers) -> Scorers:
    return Scorers(scorers.domain, scorers.domain_accuracy, identity=pattern)  # type: ignore[arg-type]


def pattern(images: Tensor) -> np.ndarray:
    """Stands in for the identity: an image without its brightness and contrast; NaN where nothing remains."""
    flat = images.flatten(1).double().numpy()
    flat = flat - flat.mean(axis=1, keepdims=True)
    norm = np.linalg.norm(flat, axis=1, keepdims=True)
    return np.where(norm > 1e-3, flat / np.maximum(norm, 1e-3), np.nan)


def mean_colour(images: Tensor) -> np.ndarray:
    colours: np.ndarray = images.mean(dim=(2, 3)).double().numpy()
    return colours


def test_a_perfect_model_gets_perfect_scores(scorers: Scorers) -> None:
    dark, bright = dark_and_bright()
    task = Task("ab", dark, bright, paired=True)
    rows, sheet = evaluate.evaluate({"ab": Shift(0.8), "ba": Shift(-0.8)}, task, scorers=scorers)
    model, unchanged, real = rows["this model"], rows["no change"], rows["real images"]
    assert scorers.domain_accuracy == 1
    assert (model["domain"].value, unchanged["domain"].value, real["domain"].value) == (1, 0, 1)
    assert model["truth_l1"].value == pytest.approx(0, abs=1e-6)
    assert unchanged["truth_l1"].value == pytest.approx(0.4, abs=1e-6)
    assert model["truth_ssim"].value == pytest.approx(1, abs=1e-6)
    assert model["cycle_l1"].value == pytest.approx(0, abs=1e-6)
    assert abs(model["feature_distance"].value) < 0.1 * unchanged["feature_distance"].value
    assert sheet.shape[0] == 3


def test_a_model_that_does_nothing_scores_like_its_inputs(scorers: Scorers) -> None:
    dark, bright = dark_and_bright()
    task = Task("ba", bright, dark, paired=False)
    rows, _ = evaluate.evaluate({"ab": Shift(0), "ba": Shift(0)}, task, scorers=scorers)
    for column, estimate in rows["no change"].items():
        assert rows["this model"][column] == estimate
    assert rows["this model"]["domain"].value == 0
    assert "truth_l1" not in rows["this model"]
    assert "as pasted" not in rows
    assert "change_outside" not in rows["this model"]  # without a template there is no face to be outside of


def values_of(row: report.Row) -> dict[str, float]:
    return {key: row[key].value for key in ("joint", "domain", "rank_one", "face_found")}


def test_success_means_the_target_domain_and_the_same_person(scorers_with_identity: Scorers) -> None:
    dark, bright = dark_and_bright()
    task = Task("ab", dark, bright, paired=False, template=LANDMARKS)
    rows, _ = evaluate.evaluate({"ab": Shift(0.8), "ba": Shift(-0.8)}, task, scorers=scorers_with_identity)
    model, unchanged = rows["this model"], rows["no change"]
    assert values_of(model) == {"joint": 1, "domain": 1, "rank_one": 1, "face_found": 1}
    assert values_of(unchanged) == {"joint": 0, "domain": 0, "rank_one": 1, "face_found": 1}
    assert model["sharpness"].value == pytest.approx(1, rel=1e-3)
    assert model["change_outside"].value == pytest.approx(1, rel=1e-3)  # it changes all pixels alike
    assert rows["as pasted"]["change_outside"].value < 0.5
    assert rows["as pasted"]["identity"].value < 1  # the edge of what is pasted is not in the input


def test_the_rate_of_the_classifier_is_measured_on_images_that_it_has_not_seen(scorers: Scorers) -> None:
    dark, bright = dark_and_bright()
    rows, _ = evaluate.evaluate({"ab": Shift(0), "ba": Shift(0)}, Task("ab", dark, bright, False), scorers=scorers)
    rate = rows["real images"]["domain"]
    assert (rate.value, rate.count) == (1, len(bright.test))


class Constant(nn.Module):
    """A generator that returns the same image for every input."""

    def __init__(self, image: Tensor) -> None:
        super().__init__()
        self.image = nn.Parameter(image)

    def forward(self, x: Tensor) -> Tensor:
        return self.image.expand_as(x)


def test_one_face_for_everybody_and_no_face_at_all_are_no_success(scorers_with_identity: Scorers) -> None:
    dark, bright = dark_and_bright()
    task = Task("ab", dark, bright, paired=False)
    for image, expected in (
        (bright.test[3:4], {"joint": 1 / 12, "domain": 1, "rank_one": 1 / 12, "face_found": 1}),
        (torch.full((1, 3, 16, 16), 0.4), {"joint": 0, "domain": 1, "rank_one": 0, "face_found": 0}),
    ):
        rows, _ = evaluate.evaluate({"ab": Constant(image), "ba": Shift(0)}, task, scorers=scorers_with_identity)
        assert values_of(rows["this model"]) == pytest.approx(expected)


def test_the_strength_applies_to_the_evaluated_translations(scorers: Scorers) -> None:
    dark, bright = dark_and_bright()
    rows, _ = evaluate.evaluate(
        {"ab": Shift(0.8), "ba": Shift(-0.8)}, Task("ab", dark, bright, False, strength=0.0), scorers=scorers
    )
    assert rows["this model"]["domain"] == rows["no change"]["domain"]


def test_the_curve_scores_weaker_and_stronger_translations(scorers_with_identity: Scorers) -> None:
    dark, bright = dark_and_bright()
    task = Task("ab", dark, bright, paired=False)
    curve = scoring.strength_curve(Shift(0.4), task, scorers=scorers_with_identity)
    shares = [row["domain"].value for row in curve.values()]
    assert tuple(curve) == scoring.STRENGTHS
    assert shares[0] == 0  # no change
    assert shares[-1] == 1
    assert shares == sorted(shares)
    best = scoring.best_strength(curve)
    assert curve[best]["joint"].value == max(row["joint"].value for row in curve.values())
    assert all(row["joint"].value < curve[best]["joint"].value for strength, row in curve.items() if strength < best)


@pytest.mark.parametrize("appearance_flow", [False, True])
def test_the_curve_runs_the_generator_once_over_the_images(appearance_flow: bool, scorers: Scorers) -> None:
    dark, bright = dark_and_bright()
    generator = Generator(1, 4, padding="zero", global_skip=True, appearance_flow=appearance_flow)
    runs: list[int] = []
    generator.stem.register_forward_hook(lambda module, inputs, output: runs.append(len(output)))
    scoring.strength_curve(generator, Task("ab", dark, bright, paired=False), scorers=scorers)
    assert sum(runs) == len(dark.test)


def test_as_pasted_translations_change_in_the_face_only() -> None:
    inputs, images = torch.zeros(2, 3, 64, 64), torch.ones(2, 3, 64, 64)
    pasted = scoring.as_pasted(images, inputs, LANDMARKS)
    assert torch.equal(pasted, torch.from_numpy(paste_mask(64, LANDMARKS)).expand_as(pasted))
    assert scoring.as_pasted(images, inputs, None) is images


def test_as_pasted_translations_move_as_photographs_do() -> None:
    face = Face(np.array(LANDMARKS) * 64, 1.0)
    photo = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8), (0, 0), 3)
    inputs = image_to_tensor(Image.fromarray(photo))[None]
    shift = torch.tensor([0.05, -0.03]).view(1, 2, 1, 1).expand(1, 2, 64, 64)
    before = moved(inputs, shift)
    images = (before + 0.2).clamp(-1, 1)
    pasted = np.asarray(tensor_to_image(scoring.as_pasted(images, inputs, LANDMARKS, shift)[0])).astype(int)
    before_pixels, after_pixels, distance = (
        x[0].permute(1, 2, 0).numpy() for x in (denormalize(before), denormalize(images), shift)
    )
    paste(photo, face, template=LANDMARKS, edit=Edit(before_pixels, after_pixels, distance))
    assert np.abs(pasted - photo).mean() < 1


def test_the_curve_is_plotted(scorers: Scorers, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is in requirements-extra.txt")
    dark, bright = dark_and_bright()
    curve = scoring.strength_curve(Shift(0.4), Task("ab", dark, bright, paired=False), scorers=scorers)
    report.plot_strengths(tmp_path / "curve.png", curve, title="dark to bright", classifier_rate=0.95)
    assert Image.open(tmp_path / "curve.png").size == (768, 480)


def test_features_other_than_inceptions_are_named_in_the_table_and_not_called_kid_or_fid(scorers: Scorers) -> None:
    dark, bright = dark_and_bright()
    with_features = Scorers(scorers.domain, scorers.domain_accuracy, features=mean_colour, features_name="mean colour")
    task = Task("ab", dark, bright, paired=False)
    rows, _ = evaluate.evaluate({"ab": Shift(0.8), "ba": Shift(0)}, task, scorers=with_features)
    assert rows["this model"]["kid"].value < 0.01 < rows["no change"]["kid"].value
    table = report.evaluation_table("dark to bright", rows, features_name=with_features.features_name)
    assert "kernel distance of mean colour" in table
    assert "FID" not in table
    assert "KID" not in table


def test_the_command_writes_tables_a_json_file_and_sheets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_folders(tmp_path / "data", 12, 10)
    run = [*SMALL, "--data-dir", str(tmp_path / "data"), "--max-steps", "2", "--num-workers", "0"]
    assert run_train(*run, cwd=tmp_path).returncode == 0
    weights, out = tmp_path / "runs" / "default", tmp_path / "out"
    assert main(["--weights", str(weights), "--out", str(out), "--inception-weights", "/nowhere.pth"]) == 0
    printed = capsys.readouterr().out
    assert "### european to asian" in printed
    assert "### asian to european" in printed
    assert "Left out: KID and FID need" in printed
    saved = json.loads((out / "evaluation.json").read_text())
    assert saved["step"] == 2
    for direction in ("ab", "ba"):
        assert set(saved[direction]) == {
            "strength", "this model", "no change", "real images", "best_strength", "by_strength"
        }  # fmt: skip
        assert saved[direction]["strength"] == 1
        assert saved[direction]["best_strength"] in scoring.STRENGTHS
        assert [*saved[direction]["by_strength"]] == ["0", "0.5", "1", "1.5", "2", "2.5", "3"]
        assert saved[direction]["this model"]["cycle_l1"]["count"] in (10, 12)
        assert (out / f"sheet_{direction}.png").exists()
    assert (out / "evaluation.md").read_text() in printed


def test_a_strength_out_of_range_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["--weights", "run", "--strength", "3.5"])
    assert "--strength: must be between 0 and 3, got 3.5" in capsys.readouterr().err


OURS = {"weights": "run", "data_dir": "data", "classifier_accuracy": 1.0}


@pytest.mark.parametrize(
    "files",
    [
        {"evaluation.json": "[1, 2]"},
        {"evaluation.json": "{}"},
        {"evaluation.json": "not JSON"},
        {"evaluation.md": "my notes"},
        {"sheet_ab.png": "my picture"},
        {"evaluation.json": json.dumps(OURS), "checkpoints.json": '{"a": 1}'},
    ],
)
def test_files_that_others_wrote_are_not_replaced(
    files: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert main(["--weights", "nothing", "--out", str(tmp_path)]) == 1
    assert "exists and was not written by this program: choose another folder with --out" in capsys.readouterr().err
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == files


@pytest.mark.parametrize("report", [OURS, {"200": {"score": 0.5}}])
def test_the_results_of_an_earlier_evaluation_may_be_replaced(report: dict[str, object], tmp_path: Path) -> None:
    check_folder(tmp_path)
    (tmp_path / "my notes.txt").touch()
    check_folder(tmp_path)
    (tmp_path / ("evaluation.json" if "weights" in report else "checkpoints.json")).write_text(json.dumps(report))
    (tmp_path / "sheet_ab.png").touch()
    check_folder(tmp_path)


def test_missing_weights_are_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--weights", str(tmp_path / "nothing")]) == 1
    assert capsys.readouterr().err.startswith("error: ")


def test_images_that_are_left_out_are_reported(data_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (data_dir / "test" / "asian" / "empty.png").touch()
    (data_dir / "test" / "asian" / "a.txt").touch()
    evaluate.load_domain(Config(data_dir=str(data_dir), image_size=32), 1, torch.device("cpu"))
    where = data_dir / "test" / "asian"
    line = f"in {where}: left out 1; first reason: empty file; passed over 1 other file: 1 .txt\n"
    assert line in capsys.readouterr().err


def test_a_full_memory_is_an_error_with_advice(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(args: object) -> str:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    monkeypatch.setattr(evaluate, "run", run)
    assert evaluate.main(["--weights", "x"]) == 1
    assert capsys.readouterr().err.startswith("error: the GPU is full: end other programs, try --device cpu")


def test_too_few_images_and_unequal_pairs_are_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_folders(tmp_path / "data", 4, 3)
    make_folders(tmp_path / "one", 1, 1)
    run = [*SMALL, "--data-dir", str(tmp_path / "data"), "--max-steps", "1", "--num-workers", "0"]
    assert run_train(*run, cwd=tmp_path).returncode == 0
    weights = str(tmp_path / "runs" / "default")
    assert main(["--weights", weights, "--data-dir", str(tmp_path / "one"), "--out", str(tmp_path / "out")]) == 1
    assert "needs at least two training images" in capsys.readouterr().err
    assert main(["--weights", weights, "--paired", "--out", str(tmp_path / "out")]) == 1
    assert "needs equally many test images of both domains, found 4 and 3" in capsys.readouterr().err


def test_the_curves_of_checkpoints_have_axes_units_and_a_legend(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figure_class = pytest.importorskip("matplotlib.figure", reason="matplotlib is in requirements-extra.txt").Figure
    figures, write = [], figure_class.savefig

    def savefig(figure: Any, *arguments: Any, **options: Any) -> None:
        figures.append(figure)
        write(figure, *arguments, **options)

    monkeypatch.setattr(figure_class, "savefig", savefig)
    measures = {"domain_ab": 0.5, "cycle_l1_ab": 0.1, "domain_ba": 0.25, "cycle_l1_ba": 0.2, "score": 0.9}
    report.plot_curves(tmp_path / "curves.png", {200: measures, 100: dict.fromkeys(measures, 0.0)})
    (figure,) = figures
    assert [axes.get_xlabel() for axes in figure.axes] == ["training step"] * 3
    assert [axes.get_ylabel() for axes in figure.axes] == ["share of the images", "of images in [0, 1]", "1 is best"]
    legends = [[text.get_text() for text in axes.get_legend().get_texts()] for axes in figure.axes]
    assert legends == [["a to b", "b to a"], ["a to b", "b to a"], ["both directions"]]
    assert [list(line.get_xdata()) for line in figure.axes[0].lines] == [[100, 200]] * 2
    assert [list(line.get_ydata()) for line in figure.axes[0].lines] == [[0.0, 0.5], [0.0, 0.25]]
    assert Image.open(tmp_path / "curves.png").width == 768


@pytest.mark.slow
def test_all_checkpoints_that_can_be_read_are_ranked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_folders(tmp_path / "data", 12, 10)
    run = [*SMALL, "--data-dir", str(tmp_path / "data"), "--max-steps", "6", "--num-workers", "0"]
    assert run_train(*run, "--checkpoint-every-steps", "2", cwd=tmp_path).returncode == 0
    out, folder = tmp_path / "out", tmp_path / "runs" / "default" / "checkpoints"
    (folder / "step_00000003.pt").write_bytes((folder / "step_00000002.pt").read_bytes()[:1000])
    assert main(["--weights", str(tmp_path / "runs" / "default"), "--out", str(out), "--all-checkpoints"]) == 0
    ranking = json.loads((out / "checkpoints.json").read_text())
    assert set(ranking) == {"2", "4", "6"}
    scores = [ranking[step]["score"] for step in re.findall(r"^\| (\d+) ", capsys.readouterr().out, re.MULTILINE)]
    assert scores == sorted(scores, reverse=True)
    assert Image.open(out / "curves.png").width == 768


def test_a_domain_holds_no_training_images_in_memory_and_uses_at_most_so_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate, "MAX_TRAINING_IMAGES", 5)
    monkeypatch.setattr(evaluate, "READ_BATCH", 2)
    make_folders(tmp_path / "data", 9, 3)
    config = Config(data_dir=str(tmp_path / "data"), image_size=32)
    domain = evaluate.load_domain(config, 0, torch.device("cpu"))
    files = sorted((tmp_path / "data" / "train" / "european").iterdir())
    batches = [*domain.read_train()]
    assert [len(batch) for batch in batches] == [2, 2, 1]
    assert torch.equal(torch.cat(batches), load_images(files[::2], 32))
    assert torch.equal(torch.cat([*domain.read_train()]), torch.cat(batches))  # it can be read again


@pytest.mark.parametrize("name", DISTORTIONS)
def test_damage_is_small_but_not_nothing(name: str) -> None:
    images = torch.stack([image_to_tensor(make_image(seed, (64, 64))) for seed in range(4)])
    damaged = DISTORTIONS[name](images)
    assert damaged.shape == images.shape
    assert damaged.dtype == torch.float32
    change = (damaged - images).abs().mean(dim=(1, 2, 3))
    assert change.min() > 0.001
    assert change.max() < 0.15


def test_the_shift_moves_pixels_right_and_down() -> None:
    image = image_to_tensor(make_image(0, (64, 64)))[None]
    assert torch.equal(DISTORTIONS["shift"](image)[..., 2:, 2:], image[..., :-2, :-2])


def test_a_change_that_jpeg_removes_is_not_read_after_it() -> None:
    """A classifier that reads the finest checkerboard is fooled by it, and only until the picture is saved."""
    checkerboard = 0.03 * (1 - 2 * ((torch.arange(32)[:, None] + torch.arange(32)) % 2).float())
    inputs = torch.full((2, 3, 32, 32), -0.2)
    scorers = Scorers(ReadsCheckerboards(), 1.0)  # type: ignore[arg-type]
    domain = Domain("grey", lambda: [inputs], inputs)
    row = scoring.score_damaged(inputs + checkerboard, Task("ab", domain, domain, False), scorers=scorers)
    assert {key: estimate.value for key, estimate in row.items()} == {
        "domain_jpeg": 0, "domain_blur": 0, "domain_shift": 1
    }  # fmt: skip


class ReadsCheckerboards(nn.Module):
    """A classifier that assigns an image to b if neighbouring pixels differ."""

    def forward(self, images: Tensor) -> Tensor:
        return (images[..., 1:] - images[..., :-1]).abs().mean(dim=(1, 2, 3)) - 0.02


# --- Validation


def validation(monkeypatch: pytest.MonkeyPatch, identity: object, *, paired: bool = False) -> Validation:
    """A validation of the two domains, with `identity` in place of SFace."""
    monkeypatch.setattr("evaluation.scorers.FaceEmbedder", identity)
    dark, bright = dark_and_bright()
    train_dark, train_bright = (torch.cat([*domain.read_train()]) for domain in (dark, bright))
    return Validation(train_dark, train_bright, dark.test, bright.test, paired=paired, template=None)


def no_identity() -> None:
    raise UserError("SFace is not installed")


def test_a_validation_finds_the_best_strength_and_scores_the_success_there(monkeypatch: pytest.MonkeyPatch) -> None:
    values = validation(monkeypatch, lambda: pattern).measure(Shift(0.2), Shift(-0.8))
    assert values["domain_ab"] == values["joint_ab"] == values["rank_one_ab"] == 1
    assert values["strength_ab"] > values["strength_ba"]  # the weaker generator needs more strength
    assert values["score"] == (values["joint_ab"] + values["joint_ba"]) / 2
    assert values["real_domain_ab"] == values["real_domain_ba"] == 1
    assert strengths_in(values) == {"ab": values["strength_ab"], "ba": values["strength_ba"]}


@pytest.mark.parametrize("identity", [no_identity, lambda: lambda images: np.full((len(images), 2), np.nan)])
def test_without_faces_a_validation_scores_the_domain_and_the_cycle(
    monkeypatch: pytest.MonkeyPatch, identity: object
) -> None:
    values = validation(monkeypatch, identity).measure(Shift(0.8), Shift(-0.8))
    assert "joint_ab" not in values
    assert values["score"] == pytest.approx(1, abs=1e-3)
    assert validation(monkeypatch, identity).measure(Shift(0), Shift(0))["score"] == 0
    assert strengths_in(values) is None


def test_on_true_pairs_a_validation_scores_the_error_to_the_truth(monkeypatch: pytest.MonkeyPatch) -> None:
    values = validation(monkeypatch, lambda: pattern, paired=True).measure(Shift(0.8), Shift(-0.7))
    assert values["score"] == pytest.approx(1 - (0 + 0.05) / 2, abs=1e-6)
    assert "joint_ab" in values


def test_faces_that_are_cropped_in_another_way_than_those_of_the_training_are_noticed() -> None:
    faces = faces_of("asian", 4)
    template = measure_template(np.asarray(tensor_to_image(face)) for face in faces_of("european", 8))
    assert warning_of_framing(faces, template) is None
    closer = warning_of_framing(faces[..., 16:-16, 16:-16], template)
    assert closer is not None
    assert "by up to" in closer
    assert warning_of_framing(torch.zeros(4, 3, 64, 64), template) is None
    assert warning_of_framing(faces[..., 16:-16, 16:-16], None) is None
