"""The tables are right about generators whose quality is known."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SMALL, make_folders, run_train
from PIL import Image
from torch import Tensor, nn

import evaluate
from evaluate import Domain, Task, main
from evaluation import report
from evaluation.classifier import train_domain_classifier
from evaluation.scorers import Scorers


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
    dark = Domain("dark", noise[0] - 0.4, noise[2] - 0.4)
    return dark, Domain("bright", noise[1] + 0.4, noise[2] + 0.4)


@pytest.fixture(scope="module")
def scorers() -> Scorers:
    dark, bright = dark_and_bright()
    return Scorers(*train_domain_classifier(dark.train, bright.train))


def mean_colour(images: Tensor) -> np.ndarray:
    colours: np.ndarray = images.mean(dim=(2, 3)).double().numpy()
    return colours


def test_a_perfect_model_gets_perfect_scores(scorers: Scorers) -> None:
    dark, bright = dark_and_bright()
    task = Task("ab", dark, bright, paired=True)
    rows, sheet = evaluate.evaluate({"ab": Shift(0.8), "ba": Shift(-0.8)}, task, scorers=scorers)
    model, unchanged, real = rows["this model"], rows["no change"], rows["real against real"]
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
    for direction in ("ab", "ba"):
        assert set(saved[direction]) == {"this model", "no change", "real against real"}
        assert saved[direction]["this model"]["cycle_l1"]["count"] in (10, 12)
        assert (out / f"sheet_{direction}.png").exists()
    assert (out / "evaluation.md").read_text() in printed


def test_missing_weights_are_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--weights", str(tmp_path / "nothing")]) == 1
    assert capsys.readouterr().err.startswith("error: ")


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
    assert Image.open(out / "curves.png").width == report.CURVE_SIZE[0]
