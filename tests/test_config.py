"""The dashboard: flags, presets, checks."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from dataclasses import fields, replace
from pathlib import Path

import pytest

from config import BEFORE_THE_KNOB, PRESETS, Config, OnResume, from_dict, knobs_that, to_dict
from training.command_line import parse_args

ROOT = Path(__file__).parent.parent


def test_every_knob_is_a_flag_and_its_comment_is_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parse_args(["--help"])
    assert stop.value.code == 0
    shown = re.sub(r"[\s│]+", "", capsys.readouterr().out)
    source = (ROOT / "config.py").read_text()
    for field in fields(Config):
        comment = re.search(rf"^    {field.name}: .*?  # (.*)$", source, re.MULTILINE)
        assert comment, f"{field.name} has no comment"
        assert re.search(f"--(no-)?{field.name.replace('_', '-')}", shown), field.name
        assert re.sub(r"\s", "", comment[1]) in shown, field.name


def test_help_comes_within_three_seconds_and_without_torch() -> None:
    start = time.perf_counter()
    command = [sys.executable, "-X", "importtime", "train.py", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert time.perf_counter() - start < 3
    assert "--image-size" in done.stdout
    assert "torch" not in done.stderr


def test_flags_win_over_the_preset_wherever_it_stands() -> None:
    for argv in (["--image-size", "96", "--preset", "demo"], ["--preset=demo", "--image-size=96"]):
        assert parse_args(argv) == replace(PRESETS["demo"], image_size=96)


def write_json(path: Path, values: object) -> str:
    path.write_text(json.dumps(values, indent=2), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("name", PRESETS)
def test_a_file_of_values_repeats_a_run_and_flags_win_over_it_wherever_it_stands(name: str, tmp_path: Path) -> None:
    saved = replace(PRESETS[name], data_dir="Gesichter für später", image_size=96, compile=True, seed=7)
    path = write_json(tmp_path / "config.json", to_dict(saved))
    assert parse_args(["--config", path]) == saved
    for argv in (["--seed", "8", "--no-compile", f"--config={path}"], ["--config", path, "--no-compile", "--seed=8"]):
        assert parse_args(argv) == replace(saved, seed=8, compile=False)


def test_a_file_from_before_a_knob_existed_repeats_its_run(tmp_path: Path) -> None:
    values = {name: value for name, value in to_dict(Config()).items() if name not in BEFORE_THE_KNOB}
    assert parse_args(["--config", write_json(tmp_path / "old.json", values)]) == replace(Config(), **BEFORE_THE_KNOB)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"colour": 1, "seed": 3}', "unknown configuration fields: ['colour']"),
        (b'{"image_size": 30}', "image_size must be a multiple of 4, between 32 and 4096, got 30"),
        (b'{"image_size": "64"}', "image_size must be of type int, got '64'"),
        (b'{"seed": 3', "is not a JSON file: Expecting"),
        (b"\xff\xfe\x00", "is not a JSON file: 'utf-8' codec"),
        (b"[" * 100_000, "is not a JSON file: maximum recursion depth"),
        (b"[1, 2]", "holds no values by name"),
        (None, "No such file or directory; give the config.json of a run"),
    ],
)
def test_a_file_of_values_that_is_of_no_use_is_refused_in_a_line(
    content: bytes | None, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "config.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SystemExit) as stop:
        parse_args(["--config", str(path)])
    assert stop.value.code == 2
    printed = capsys.readouterr().err
    assert printed.startswith(f"error: --config {path}")
    assert printed.count("\n") == 1
    assert words in printed


def test_a_file_of_values_beside_a_preset_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_json(tmp_path / "config.json", to_dict(Config()))
    with pytest.raises(SystemExit):
        parse_args(["--config", path, "--preset", "demo"])
    assert "leave out one of them" in capsys.readouterr().err


def test_booleans_can_be_set_both_ways_whatever_the_preset_says_and_the_last_one_counts() -> None:
    for name in PRESETS:
        for value in (True, False):
            flag = "--global-skip" if value else "--no-global-skip"
            assert parse_args(["--preset", name, flag]).global_skip is value
    assert parse_args(["--no-compile", "--compile"]).compile
    assert not parse_args(["--compile", "--no-compile"]).compile


def test_help_groups_the_knobs_shows_each_boolean_once_and_fits_80_columns() -> None:
    command = [sys.executable, "train.py", "--help"]
    environment = {**os.environ, "COLUMNS": "80"}
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, env=environment).stdout
    titles = re.findall(r"─ (\w+) options ─", shown)
    assert titles == ["start", "data", "augmentation", "networks", "losses", "optimisation", "machine", "output"]
    for knob in (field.name for field in fields(Config) if isinstance(getattr(Config(), field.name), bool)):
        assert len(re.findall(f"--(?:no-)?{knob.replace('_', '-')}\\b", shown)) == 1, knob
    assert max(map(len, shown.splitlines())) <= 80


def test_the_default_preset_is_the_dashboard_itself() -> None:
    assert PRESETS["default"] == Config()


@pytest.mark.parametrize("name", PRESETS)
def test_presets_know_their_names(name: str) -> None:
    assert PRESETS[name].preset == name == PRESETS[name].run_name
    assert parse_args(["--preset", name]) == PRESETS[name]


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--image-size", "30"], "image_size must be a multiple of 4, between 32 and 4096, got 30"),
        (["--image-size", "abc"], "--image-size: invalid literal for int() with base 10: 'abc'"),
        (["--flip-prob", "1.5"], "flip_prob must be between 0 and 1, got 1.5"),
        (["--lambda-cycle", "nan"], "lambda_cycle must be between 0 and 1e+09, got nan"),
        (["--learning-rate", "inf"], "learning_rate must be between 1e-09 and 1, got inf"),
        (["--padding", "mirror"], "'mirror'"),
        (["--device", "gpu"], "device must be auto, cpu, cuda, cuda:N or mps, got 'gpu'"),
        (["--run-name", "a/b"], "run_name must be a plain folder name, got 'a/b'"),
        (["--domain-b", "European"], "domain_b must differ from domain_a"),
        (["--max-steps", "1" + "0" * 400], "max_steps must be between 0 and 1e+09, got 1000"),
        (["--device", "cuda:٣"], "device must be auto"),
        (["--run-name", "\udcff"], "run_name must be a plain folder name"),
        (["--seed", str(2**63)], "seed must be between 0 and"),
        (["--keep-checkpoints", "1"], "keep_checkpoints must be between 2 and 1e+09, got 1"),
        (["--image-sise", "64"], "Perhaps you meant: --image-size"),
        (["--preset", "papre"], "'papre'"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(
    argv: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        parse_args(argv)
    assert stop.value.code == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: ")
    assert printed.count("\n") == 1
    assert words in printed


def test_values_survive_json() -> None:
    for config in PRESETS.values():
        assert from_dict(json.loads(json.dumps(to_dict(config)))) == config


def test_a_knob_newer_than_the_file_gets_the_value_of_the_time_before_it() -> None:
    old = {name: value for name, value in to_dict(Config()).items() if name not in BEFORE_THE_KNOB}
    loaded = from_dict(json.loads(json.dumps(old)))
    assert loaded == replace(Config(), **BEFORE_THE_KNOB)
    assert loaded != Config()
    assert from_dict(to_dict(Config())) == Config()  # a file with these knobs keeps its own values


@pytest.mark.parametrize(
    "values",
    [
        {"image_size": "64"},
        {"image_size": True},
        {"colour": 1},
        {"compile": 1},
        {"padding": 3},
        {"padding": []},
        {"init_std": 10**400},
        {"lambda_cycle": float("inf")},
        {"beta1": float("nan")},
        {"domain_a": b"x" * 10**6},
        {"domain_a": "/" * 10**6},
        {"domain_a": "x" * 10**6, "domain_b": "X" * 10**6},
        {"device": "x" * 10**6},
    ],
)
def test_values_of_wrong_type_size_or_unknown_name_are_refused_in_a_line(values: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(values))) as error:
        from_dict(values)
    assert len(str(error.value)) < 200


def test_unknown_knobs_with_long_or_many_names_are_refused_in_a_line() -> None:
    for names in (["x" * 10**6], ["\33[2J"], [f"knob {number}" for number in range(1000)], [b"x", 5, ("a", None)]):
        with pytest.raises(ValueError, match="unknown configuration fields") as error:
            from_dict(dict.fromkeys(names, 1))  # type: ignore[arg-type]
        assert len(str(error.value)) < 300
        assert str(error.value).isprintable()


def test_places_and_hardware_may_change_on_resume_and_what_is_learned_may_not() -> None:
    free, growing = knobs_that(OnResume.MAY_DIFFER), knobs_that(OnResume.MAY_GROW)
    assert {"data_dir", "domain_a", "runs_dir", "run_name", "device", "num_workers", "compile", "preset"} <= free
    assert growing == {"num_epochs", "num_decay_epochs"}
    assert not (free | growing) & {"seed", "batch_size", "image_size", "lambda_cycle", "amp", "pool_size", "flip_prob"}


def test_residual_blocks_follow_the_image_size_unless_set() -> None:
    sizes = {64: 6, 128: 6, 256: 9, 512: 9}
    assert {size: Config(image_size=size).resolved_num_residuals for size in sizes} == sizes
    assert Config(image_size=64, num_residuals=3).resolved_num_residuals == 3


SAME_EVERYWHERE = {
    "domain_a": "european",
    "domain_b": "asian",
    "batch_size": 1,
    "beta1": 0.5,
    "max_steps": 0,
    "seed": 0,
}
REFERENCE = {  # Zhu et al.'s published settings
    "image_size": 256, "resize_scale": 286 / 256, "flip_prob": 0.5, "rotate_degrees": 0.0, "iso_noise_prob": 0.0,
    "jitter_brightness": 0.0, "jitter_contrast": 0.0, "jitter_saturation": 0.0, "jitter_hue": 0.0, "base_channels": 64,
    "resolved_num_residuals": 9, "padding": "reflect", "global_skip": False, "norm_first": True, "init_std": 0.02,
    "lambda_cycle": 10.0, "lambda_identity": 0.5, "gan_sigmoid": False, "pool_size": 50, "disc_first": False,
    "batch_size": 1, "num_epochs": 100, "num_decay_epochs": 100, "max_steps": 0, "learning_rate": 2e-4, "beta1": 0.5,
    "ema_decay": 0.0, "amp": "off", "upsampling": "transposed", "disc_norm": "instance", "disc_global": False,
    "disc_blur": 0.0, "source_negatives": False, "gan_loss": "lsgan", "r1_gamma": 0.0, "disc_learning_rate": 0.0,
}  # fmt: skip
ORIGIN = {  # how the European-to-Asian project of 2022-2023 differed from it
    "resize_scale": 1.0, "rotate_degrees": 10.0, "iso_noise_prob": 0.15, "jitter_brightness": 0.15,
    "jitter_contrast": 0.15, "jitter_saturation": 0.025, "jitter_hue": 0.02, "resolved_num_residuals": 8,
    "padding": "zero", "norm_first": False, "init_std": 0.0, "lambda_cycle": 3.0, "lambda_identity": 0.0,
    "gan_sigmoid": True, "pool_size": 0, "disc_first": True, "num_decay_epochs": 50, "learning_rate": 3e-4,
}  # fmt: skip
OURS = {"padding": "zero", "global_skip": True, "lambda_cycle": 5.0, "lambda_identity": 0.0, "ema_decay": 0.999,
        "num_decay_epochs": 50, "amp": "auto", "upsampling": "resize", "disc_norm": "none", "disc_global": True,
        "disc_blur": 1.0, "source_negatives": True, "gan_loss": "logistic", "r1_gamma": 1.0,
        "disc_learning_rate": 4e-4}  # fmt: skip


@pytest.mark.parametrize(("name", "differences"), [("paper", {}), ("origin", ORIGIN), ("default", OURS)])
def test_presets_reproduce_what_they_are_named_after(name: str, differences: dict[str, object]) -> None:
    expected = REFERENCE | differences
    assert {knob: getattr(PRESETS[name], knob) for knob in expected} == expected
