"""Exported files translate like the weights that they come from, and the card beside them tells the truth."""

from __future__ import annotations

import builtins
import json
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT, Tiny
from fake_hub import COMMIT, TOKEN, Hub, running_hub
from PIL import Image
from test_checkpoint import tiny_state
from test_translate import TEMPLATE, photograph, write_weights
from torch import nn

import check_data
import translate
from export import DATA_CHECK, current_commit, main
from generator_model import Generator, edit_at_strength
from training.checkpoint import save_checkpoint
from utils import UserError
from weights.hub import WEIGHTS_NAME
from weights.load import load_weights
from weights.onnx_file import Blended, largest_difference, write_onnx


@pytest.fixture
def run(tiny: Tiny, tmp_path: Path) -> Path:
    """A run's folder with one checkpoint."""
    counted = {"data": {"a": "6 images, names 1, content 2", "b": "4 images, names 3, content 4"}}
    state = tiny_state(tiny(init_from="/home/somebody/secret/earlier"), step=7) | counted
    save_checkpoint(tmp_path / "run" / "checkpoints", state | {"template": TEMPLATE, "strength": {"ab": 1.5}})
    return tmp_path / "run"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "exported"


def card_in(folder: Path) -> tuple[dict[str, Any], str]:
    """A card's metadata and its text, as the Hub's client reads them."""
    card = pytest.importorskip("huggingface_hub").ModelCard.load(folder / "README.md")
    return card.data.to_dict(), card.text


def assert_same_translations(one: Path | str, other: Path | str) -> None:
    """Assert that two files of weights translate alike, bit for bit, and agree in all else that translating needs."""
    before, after = load_weights(one), load_weights(other)
    image = torch.rand(1, 3, 32, 32) * 2 - 1
    assert before.generators.keys() == after.generators.keys()
    for direction, generator in before.generators.items():
        assert torch.equal(generator(image), after.generator(direction)(image))
    assert (before.template, before.strengths) == (after.template, after.strengths)


# --- .safetensors and the card


def test_an_exported_run_translates_like_the_run_and_names_no_folder_of_this_machine(run: Path, out: Path) -> None:
    assert main([str(run), "--out", str(out)]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["README.md", WEIGHTS_NAME]
    assert_same_translations(run, out / WEIGHTS_NAME)
    for path in out.iterdir():
        assert str(run.parent).encode() not in path.read_bytes()
        assert b"secret" not in path.read_bytes()


def test_files_of_one_direction_are_exported_too(tmp_path: Path, out: Path) -> None:
    weights = write_weights(tmp_path / "weights.safetensors", None, {"ab": 2})
    assert main([str(weights), "--out", str(out)]) == 0
    assert_same_translations(weights, out / WEIGHTS_NAME)
    assert "at strength 2" in card_in(out)[1]


def test_weights_that_are_not_finite_are_not_exported(
    run: Path, out: Path, tiny: Tiny, capsys: pytest.CaptureFixture[str]
) -> None:
    state = tiny_state(tiny(), step=8)
    state["ema_gen_ba"]["last.0.bias"][0] = torch.inf
    save_checkpoint(run / "checkpoints", state)
    assert main([str(run), "--out", str(out)]) == 1
    assert "holds numbers that are not finite" in capsys.readouterr().err
    assert not out.exists()


def test_the_card_says_what_the_weights_are_and_were_trained_on(run: Path, out: Path) -> None:
    assert main([str(run), "--out", str(out), "--license", "cc0-1.0"]) == 0
    metadata, text = card_in(out)
    assert metadata["license"] == "cc0-1.0"
    assert metadata["pipeline_tag"] == "image-to-image"
    assert "Trained on 6 images of european and 4 images of asian." in text
    assert "Trained for 7 steps of batch size 1." in text
    assert "Started from the trained networks of earlier." in text
    assert f"Exported by commit {current_commit()}" in text
    assert '"lambda_cycle": 5.0' in text
    assert "ask people before you translate their faces" in text
    assert "No evaluation came with these weights." in text


def test_a_card_of_other_images_does_not_speak_of_faces(tmp_path: Path, out: Path) -> None:
    assert main([str(write_weights(tmp_path / "horses.safetensors", None)), "--out", str(out)]) == 0
    assert "face" not in card_in(out)[1]


def test_the_commit_is_that_of_git() -> None:
    found = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    assert current_commit().split(",")[0] == found.stdout.strip()


def test_the_card_repeats_the_data_check_of_the_run(
    run: Path, out: Path, data_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    check_data.main([str(data_dir), "--json", "--sheet", str(run / "sheet.png")])
    (run / DATA_CHECK).write_text(capsys.readouterr().out)
    assert main([str(run), "--out", str(out)]) == 0
    text = card_in(out)[1]
    assert "train/european  6       0         40x40  PNG" in text
    assert str(data_dir) not in text
    (run / DATA_CHECK).write_text('{"classes": 5}')
    assert main([str(run), "--out", str(out)]) == 1
    assert "is not what check_data.py --json prints" in capsys.readouterr().err


def write_evaluation(folder: Path, weights: Path, step: int | None) -> Path:
    """What evaluate.py leaves in a folder, without its pictures."""
    folder.mkdir(exist_ok=True)
    (folder / "evaluation.md").write_text("### European to Asian\n\n| measure |\n")
    (folder / "evaluation.json").write_text(json.dumps({"weights": str(weights), "step": step}))
    return folder


def test_the_card_shows_the_evaluation_of_these_weights(run: Path, out: Path, tmp_path: Path) -> None:
    evaluated = write_evaluation(tmp_path / "evaluated", run, 7)
    assert main([str(run), "--out", str(out), "--evaluation", str(evaluated)]) == 0
    assert "## Evaluation\n\n### European to Asian\n\n| measure |\n" in card_in(out)[1]


def test_an_evaluation_of_other_weights_is_refused(
    run: Path, out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluated = tmp_path / "evaluated"
    for weights, step, words in (
        (run, 6, "after 6 steps, not of"),
        (tmp_path / "other", 7, "is of " + str(tmp_path / "other")),
    ):
        write_evaluation(evaluated, weights, step)
        assert main([str(run), "--out", str(out), "--evaluation", str(evaluated)]) == 1
        printed = capsys.readouterr().err
        assert words in printed
        assert f"run: python evaluate.py --weights {run}" in printed
    assert main([str(run), "--out", str(out), "--evaluation", str(run)]) == 1
    assert "does not hold what evaluate.py writes" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize("name", ["README.md", "model.safetensors"])
def test_only_files_of_this_program_are_replaced(
    name: str, run: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out.mkdir()
    (out / name).write_text("my own")
    assert main([str(run), "--out", str(out)]) == 1
    assert "was not written by this program: name another folder with --out" in capsys.readouterr().err
    assert (out / name).read_text() == "my own"
    (out / name).unlink()
    assert [main([str(run), "--out", str(out)]) for _ in range(2)] == [0, 0]


def test_a_missing_package_is_named_before_anything_is_written(
    run: Path, out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hide_package(monkeypatch, "huggingface_hub")
    for arguments in (["--out", str(out)], ["--out", str(out), "--push", "user/faces"]):
        assert main([str(run), *arguments]) == 1
        assert "pip install -r requirements-extra.txt" in capsys.readouterr().err
    assert not out.exists()
    with pytest.raises(UserError, match="huggingface_hub is missing; run: pip install"):
        load_weights("hf://user/faces")


def hide_package(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Make a package appear not to be installed."""
    actual = builtins.__import__

    def import_others(wanted: str, *arguments: Any) -> Any:
        if wanted.split(".")[0] == name:
            raise ImportError(f"No module named {name!r}")
        return actual(wanted, *arguments)

    monkeypatch.setattr(builtins, "__import__", import_others)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--push", "faces"], "must be USER/NAME, got 'faces'"),
        (["--private"], "is about --push"),
        (["--half", "--onnx"], "is about --safetensors"),
    ],
)
def test_mistakes_on_the_command_line_are_explained(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert words in capsys.readouterr().err


# --- ONNX: tracing even a tiny network takes seconds


@pytest.fixture(scope="module")
def onnx_export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the ONNX file of untrained weights of one direction, and these weights beside it."""
    pytest.importorskip("onnxscript")
    folder = tmp_path_factory.mktemp("onnx")
    weights = write_weights(folder / "weights.safetensors", TEMPLATE, {"ab": 1.5})
    assert main([str(weights), "--onnx", "--out", str(folder / "out")]) == 0
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(("shape", "strength"), [((1, 3, 64, 64), 1.0), ((3, 3, 20, 84), 0.0), ((2, 3, 8, 12), 2.5)])
def test_an_onnx_file_translates_any_batch_at_any_strength(
    onnx_export: Path, shape: tuple[int, int, int, int], strength: float
) -> None:
    session = session_of(onnx_export / "out" / "gen_ab.onnx")
    image = torch.rand(shape) * 2 - 1
    result, *_ = session.run(None, {"image": image.numpy(), "strength": np.array(strength, np.float32)})
    with torch.inference_mode():
        generator = load_weights(onnx_export / "weights.safetensors").generator("ab")
        expected = edit_at_strength(generator, image, strength)[0]
    assert np.abs(result - expected.numpy()).max() < 1e-4


@pytest.mark.slow
def test_an_onnx_file_says_how_faces_are_aligned(onnx_export: Path) -> None:
    session = session_of(onnx_export / "out" / "gen_ab.onnx")
    stored = {name: json.loads(value) for name, value in session.get_modelmeta().custom_metadata_map.items()}
    assert stored == {"image_size": 64, "template": [list(point) for point in TEMPLATE], "strength": 1.5}
    assert sorted(path.name for path in (onnx_export / "out").iterdir()) == ["README.md", "gen_ab.onnx"]
    text = card_in(onnx_export / "out")[1]
    assert "The inputs of an ONNX file are" in text
    assert "translate.py" not in text


@pytest.mark.slow
def test_an_onnx_file_of_other_weights_is_noticed(onnx_export: Path) -> None:
    torch.manual_seed(1)
    other = Generator(num_residuals=1, base_channels=4)
    path = onnx_export / "out" / "gen_ab.onnx"
    assert largest_difference(path, other.eval(), shapes=[(1, 3, 32, 32)]) > 1e-3


@pytest.mark.parametrize("difference", [2e-4, float("nan")])
def test_an_onnx_file_that_differs_from_the_network_is_not_written(
    run: Path, out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], difference: float
) -> None:
    program = SimpleNamespace(model=SimpleNamespace(metadata_props={}), save=Path.touch)
    monkeypatch.setattr("weights.onnx_file._exported", lambda generator: program)
    monkeypatch.setattr("weights.onnx_file.largest_difference", lambda *arguments, **options: difference)
    assert main([str(run), "--onnx", "--out", str(out)]) == 1
    assert f"would differ by {difference:.1g} from those of PyTorch, expected at most 0.0001" in capsys.readouterr().err
    assert list(out.iterdir()) == []


@pytest.mark.parametrize("appearance_flow", [False, True])
def test_strength_is_an_input_that_means_the_same_as_everywhere(appearance_flow: bool) -> None:
    network = Generator(num_residuals=1, base_channels=4, global_skip=appearance_flow, appearance_flow=appearance_flow)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    image = torch.rand(1, 3, 32, 32) * 2 - 1
    for strength in (0.0, 0.5, 1.0, 2.5):
        translation, *shift = Blended(network)(image, torch.tensor(strength))
        expected, expected_shift = edit_at_strength(network, image, strength)
        assert torch.equal(translation, expected)
        assert len(shift) == appearance_flow
        if expected_shift is not None:
            assert torch.equal(shift[0], expected_shift)


@pytest.mark.slow
@pytest.mark.parametrize(
    "knobs",
    [
        {"padding": "reflect"},
        {"padding": "reflect-all", "upsampling": "transposed", "global_skip": False},
        {"norm_first": False, "num_residuals": 2, "appearance_flow": False},
    ],
)
def test_every_kind_of_generator_becomes_an_onnx_file(tmp_path: Path, knobs: dict[str, Any]) -> None:
    weights = load_weights(write_weights(tmp_path / "weights.safetensors", None))
    config = replace(weights.config, init_std=0.1, **knobs)
    changed = replace(weights, config=config, generators={"ab": Generator(**config.generator).eval()})
    assert write_onnx(changed, "ab", tmp_path / "x.onnx") < 1e-4


def session_of(path: Path) -> Any:
    return pytest.importorskip("onnxruntime").InferenceSession(path, providers=["CPUExecutionProvider"])


# --- The Hub


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with running_hub(tmp_path / "cache", monkeypatch) as hub:
        yield hub


def test_pushed_weights_translate_from_the_hub(
    run: Path, out: Path, hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out.mkdir()
    (out / "notes.txt").write_text("not to be uploaded")
    assert main([str(run), "--out", str(out), "--push", "somebody/faces"]) == 0
    assert f"uploaded to {hub.address}/somebody/faces" in capsys.readouterr().out
    assert {name for _, name in hub.files} == {"README.md", WEIGHTS_NAME}
    assert hub.private == {"somebody/faces": False}
    assert "python translate.py photo.jpg --weights hf://somebody/faces" in card_in(out)[1]
    assert_same_translations(run, "hf://somebody/faces")
    assert_same_translations(run, f"hf://somebody/faces@{COMMIT}")
    photograph().save(tmp_path / "photo.png")
    arguments = ["--weights", "hf://somebody/faces", "--out", str(tmp_path / "new.png")]
    assert translate.main([str(tmp_path / "photo.png"), *arguments]) == 0
    assert "translated 1 file, 1 face" in capsys.readouterr().out


def test_a_model_is_private_if_asked_to(run: Path, out: Path, hub: Hub) -> None:
    assert main([str(run), "--out", str(out), "--push", "somebody/faces", "--private"]) == 0
    assert hub.private == {"somebody/faces": True}


def test_weights_on_the_hub_are_downloaded_once(run: Path, out: Path, hub: Hub) -> None:
    assert main([str(run), "--out", str(out), "--push", "somebody/faces"]) == 0
    for _ in range(2):
        load_weights("hf://somebody/faces")
    assert sum(request.startswith("GET") for request in hub.requests) == 1


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("hf://somebody/else", "could not get model.safetensors of somebody/else from the Hub: "),
        ("hf://somebody", "expected weights on the Hub as hf://USER/NAME or hf://USER/NAME@REVISION, got hf:/somebody"),
        ("hf://somebody/faces@old/branch", "could not get model.safetensors of somebody/faces from the Hub: "),
    ],
)
def test_weights_that_the_hub_does_not_have_are_an_error(address: str, words: str, hub: Hub) -> None:
    hub.files["somebody/faces", "README.md"] = b""
    with pytest.raises(UserError, match=words.replace("(", r"\(")):
        load_weights(address)


def test_a_refused_upload_is_an_error_in_a_few_lines(
    run: Path, out: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN[::-1])
    assert main([str(run), "--out", str(out), "--push", "somebody/faces"]) == 1
    printed = capsys.readouterr().err
    assert "error: could not upload to somebody/faces: " in printed
    assert "401" in printed
    assert len(printed.strip().splitlines()) <= 5
    assert hub.files == {}


# --- torch.hub


def from_torch_hub(name: str, **options: Any) -> Any:
    return torch.hub.load(str(ROOT), name, source="local", **options)  # type: ignore[no-untyped-call]


@pytest.mark.parametrize(("name", "direction"), [("european_to_asian", "ab"), ("asian_to_european", "ba")])
def test_torch_hub_gives_a_translator_with_the_bundled_weights(name: str, direction: str) -> None:
    translator = from_torch_hub(name)
    image = Image.open(ROOT / "assets" / "photos" / "portrait.jpg")
    expected = translate.load_translator(ROOT / "assets" / "weights_rendered_128.safetensors", direction)  # type: ignore[arg-type]
    assert translator.strength == expected.strength
    assert np.array_equal(np.asarray(translator(image)), np.asarray(expected(image)))


def test_torch_hub_takes_weights_and_options(run: Path) -> None:
    translator = from_torch_hub("european_to_asian", weights=run, strength=0.5, crops=True)
    assert (translator.image_size, translator.strength, translator.template) == (32, 0.5, None)
