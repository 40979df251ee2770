"""The table says what is true of generators whose worth is known."""

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
from evaluate import Domain, Scorers, main
from evaluation.scorers import train_domain_classifier


class Shift(nn.Module):
    """Adds a number to every pixel."""

    def __init__(self, by: float) -> None:
        super().__init__()
        self.by = nn.Parameter(torch.tensor(float(by)))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.by


def dark_and_bright() -> tuple[Domain, Domain]:
    """Two domains whose true translation is to add or take 0.8, and whose test images are pairs."""
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


def test_a_perfect_model_is_found_to_be_one(scorers: Scorers) -> None:
    dark, bright = dark_and_bright()
    rows, picture = evaluate.evaluate({"ab": Shift(0.8), "ba": Shift(-0.8)}, "ab", dark, bright, scorers, paired=True)
    model, nothing, real = rows["this model"], rows["no change"], rows["real against real"]
    assert scorers.domain_accuracy == 1
    assert (model["domain"].value, nothing["domain"].value, real["domain"].value) == (1, 0, 1)
    assert model["truth_l1"].value == pytest.approx(0, abs=1e-6)
    assert nothing["truth_l1"].value == pytest.approx(0.4, abs=1e-6)
    assert model["truth_ssim"].value == pytest.approx(1, abs=1e-6)
    assert model["cycle_l1"].value == pytest.approx(0, abs=1e-6)
    assert abs(model["feature_distance"].value) < 0.1 * nothing["feature_distance"].value
    assert picture.shape[0] == 3


def test_a_model_that_does_nothing_equals_no_change(scorers: Scorers) -> None:
    dark, bright = dark_and_bright()
    rows, _ = evaluate.evaluate({"ab": Shift(0), "ba": Shift(0)}, "ba", bright, dark, scorers, paired=False)
    for column, estimate in rows["no change"].items():
        assert rows["this model"][column] == estimate
    assert rows["this model"]["domain"].value == 0
    assert "truth_l1" not in rows["this model"]


def test_a_stand_in_for_inception_is_judged_by_and_named_as_told(scorers: Scorers) -> None:
    dark, bright = dark_and_bright()
    with_features = Scorers(scorers.domain, scorers.domain_accuracy, features=mean_colour, features_name="mean colour")
    rows, _ = evaluate.evaluate({"ab": Shift(0.8), "ba": Shift(0)}, "ab", dark, bright, with_features, paired=False)
    assert rows["this model"]["kid"].value < 0.01 < rows["no change"]["kid"].value
    table = evaluate.as_markdown("dark to bright", rows, with_features.features_name)
    assert "kernel distance of mean colour" in table
    assert "FID" not in table
    assert "KID" not in table


def test_the_command_writes_a_table_a_json_file_and_pictures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_folders(tmp_path / "data", 12, 10)
    run = [*SMALL, "--data-dir", str(tmp_path / "data"), "--max-steps", "2", "--num-workers", "0"]
    assert run_train(*run, cwd=tmp_path).returncode == 0
    weights, out = tmp_path / "runs" / "default", tmp_path / "out"
    assert main(["--weights", str(weights), "--out", str(out), "--inception-weights", "/nowhere.pth"]) == 0
    shown = capsys.readouterr().out
    assert "### european to asian" in shown
    assert "### asian to european" in shown
    assert "Left out: KID and FID need" in shown
    report = json.loads((out / "evaluation.json").read_text())
    for direction in ("ab", "ba"):
        assert set(report[direction]) == {"this model", "no change", "real against real"}
        assert report[direction]["this model"]["cycle_l1"]["count"] in (10, 12)
        assert (out / f"sheet_{direction}.png").exists()
    assert (out / "evaluation.md").read_text() in shown


def test_what_is_missing_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--weights", str(tmp_path / "nothing")]) == 1
    assert capsys.readouterr().err.startswith("error: ")


def test_too_few_images_and_unequal_pairs_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_folders(tmp_path / "data", 4, 3)
    make_folders(tmp_path / "one", 1, 1)
    run = [*SMALL, "--data-dir", str(tmp_path / "data"), "--max-steps", "1", "--num-workers", "0"]
    assert run_train(*run, cwd=tmp_path).returncode == 0
    weights = str(tmp_path / "runs" / "default")
    assert main(["--weights", weights, "--data-dir", str(tmp_path / "one"), "--out", str(tmp_path / "out")]) == 1
    assert "needs two training images" in capsys.readouterr().err
    assert main(["--weights", weights, "--paired", "--out", str(tmp_path / "out")]) == 1
    assert "as many test images of both domains, found 4 and 3" in capsys.readouterr().err


def test_all_checkpoints_are_ranked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_folders(tmp_path / "data", 12, 10)
    run = [*SMALL, "--data-dir", str(tmp_path / "data"), "--max-steps", "6", "--num-workers", "0"]
    assert run_train(*run, "--checkpoint-every-steps", "2", cwd=tmp_path).returncode == 0
    out, folder = tmp_path / "out", tmp_path / "runs" / "default" / "checkpoints"
    (folder / "step_00000003.pt").write_bytes((folder / "step_00000002.pt").read_bytes()[:1000])
    assert main(["--weights", str(tmp_path / "runs" / "default"), "--out", str(out), "--all-checkpoints"]) == 0
    found = json.loads((out / "checkpoints.json").read_text())
    assert set(found) == {"2", "4", "6"}
    scores = [found[step]["score"] for step in re.findall(r"^\| (\d+) ", capsys.readouterr().out, re.MULTILINE)]
    assert scores == sorted(scores, reverse=True)
    assert Image.open(out / "curves.png").width == evaluate.CURVE[0]
