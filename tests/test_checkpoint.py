"""Files that survive, files that are refused, and generators rebuilt from files alone."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT, Tiny
from safetensors import safe_open

from config import Config, to_dict
from generator_model import Generator
from training import checkpoint
from training.checkpoint import CheckpointError, read_checkpoint, save_checkpoint, saved_config
from training.model import CycleGAN
from training.torch_file import UnusableFileError
from utils import UserError, seed_everything
from weights.load import (
    BUNDLED_WEIGHTS,
    default_weights,
    export_weights,
    find_weights,
    load_generator,
    load_weights,
)
from weights.safetensors_file import write_generators


def tiny_state(config: Config, step: int = 3) -> dict[str, Any]:
    model = CycleGAN(config, torch.device("cpu"))
    for average in (model.ema_gen_ab, model.ema_gen_ba):
        for parameter in average.parameters():
            torch.nn.init.normal_(parameter, 0, 0.02)
    state = {"step": step, "epoch": 0, "config": to_dict(config), "data": {"a": "x", "b": "y"}}
    return state | {"random": checkpoint.random_state()} | model.state_dict()


@pytest.fixture
def saved(tiny: Tiny, tmp_path: Path) -> Path:
    """A checkpoint in a run's folder."""
    return save_checkpoint(tmp_path / "run" / "checkpoints", tiny_state(tiny(global_skip=False, padding="reflect")))


# --- Saving


def test_what_is_saved_is_what_is_read(saved: Path, tiny: Tiny) -> None:
    seed_everything(0)
    state = tiny_state(tiny(), step=7)
    path = save_checkpoint(saved.parent, state)
    assert path.name == "step_00000007.pt"
    read = read_checkpoint(path)
    assert read.keys() == state.keys()
    assert {"gen_ab", "gen_ba", "ema_gen_ab", "ema_gen_ba", "disc_a", "disc_b", "opt_gen", "opt_disc", "pool_a",
            "pool_b", "random", "step", "epoch", "data", "config"} == read.keys()  # fmt: skip
    for key, tensor in state["gen_ab"].items():
        assert torch.equal(read["gen_ab"][key], tensor)


def test_random_generators_continue_from_a_checkpoint(saved: Path) -> None:
    seed_everything(5)
    state = read_checkpoint(saved) | {"random": checkpoint.random_state(), "step": 9}

    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), torch.rand(1).item()

    expected = draw()
    draw()
    checkpoint.restore_random_state(read_checkpoint(save_checkpoint(saved.parent, state))["random"])
    assert draw() == expected


def test_the_newest_and_the_milestones_stay(tmp_path: Path) -> None:
    for step in range(1, 11):
        save_checkpoint(tmp_path, {"step": step})
        checkpoint.prune_checkpoints(tmp_path, step, keep=2, keep_every_steps=4)
    assert [checkpoint.checkpoint_step(path) for path in checkpoint.list_checkpoints(tmp_path)] == [4, 8, 9, 10]


def test_a_broken_checkpoint_from_the_future_does_not_push_out_whole_ones(tmp_path: Path) -> None:
    for step in (10, 20, 30):
        save_checkpoint(tmp_path, {"step": step})
    save_checkpoint(tmp_path, {"step": 15})
    checkpoint.prune_checkpoints(tmp_path, step=15, keep=2, keep_every_steps=0)
    assert [checkpoint.checkpoint_step(path) for path in checkpoint.list_checkpoints(tmp_path)] == [10, 15, 20, 30]


def save_with_little_room(folder: Path, room: int, report: Any) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
    try:
        save_checkpoint(folder, {"step": 2, "weights": torch.zeros(100_000)})
    except UserError as error:
        report.send(str(error))


@pytest.mark.parametrize("room", [0, 1_000, 300_000])
def test_a_full_disk_leaves_old_checkpoints_and_no_incomplete_file(tmp_path: Path, room: int) -> None:
    old = save_checkpoint(tmp_path, {"step": 1}).read_bytes()
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=save_with_little_room, args=(tmp_path, room, sender))
    process.start()
    process.join(30)
    assert receiver.poll(), "saving did not fail with a message"
    message = receiver.recv()
    assert "could not write" in message
    assert "File too large" in message
    assert os.listdir(tmp_path) == ["step_00000001.pt"]
    assert (tmp_path / "step_00000001.pt").read_bytes() == old


def save_and_die(folder: Path, call: str, fatal: int) -> None:
    """Save until the `fatal`-th time that os.`call` is called, then die as by SIGKILL just before it."""
    original, calls = getattr(os, call), [0]

    def wrapped(*arguments: Any) -> Any:
        calls[0] += 1
        if calls[0] == fatal:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments)

    setattr(os, call, wrapped)
    for step in range(1, 10):
        save_checkpoint(folder, {"step": step, "weights": torch.full((1000,), step)})


@pytest.mark.parametrize(("call", "fatal"), [("fsync", 5), ("replace", 3), ("fsync", 6)])
def test_a_kill_inside_a_save_leaves_only_whole_files(tmp_path: Path, call: str, fatal: int) -> None:
    process = multiprocessing.get_context("fork").Process(target=save_and_die, args=(tmp_path, call, fatal))
    process.start()
    process.join(30)
    assert process.exitcode == -signal.SIGKILL
    checkpoint.remove_leftovers(tmp_path)
    assert not list(tmp_path.glob("*.tmp"))
    whole = checkpoint.list_checkpoints(tmp_path)
    assert len(whole) >= 2
    for path in whole:
        assert torch.load(path, weights_only=True)["weights"][0] == checkpoint.checkpoint_step(path)


# --- Refusing


def damage(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "flipped bit":
        content[len(content) // 2] ^= 1
    elif how == "truncated":
        del content[len(content) // 2 :]
    elif how == "empty":
        content.clear()
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["gen_ab", "disc_a", "pool_a", "random"])
def test_a_checkpoint_without_one_of_its_entries_is_refused(saved: Path, name: str) -> None:
    state = read_checkpoint(saved)
    del state[name]
    save_checkpoint(saved.parent, state)
    with pytest.raises(CheckpointError, match="not a checkpoint of this program"):
        read_checkpoint(saved)


def test_an_archive_without_content_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "step_00000001.pt", "w") as archive:
        archive.writestr("archive/data.pkl", b"")
    with pytest.raises(CheckpointError, match="is damaged or not a PyTorch file"):
        read_checkpoint(tmp_path / "step_00000001.pt")


@pytest.mark.parametrize("how", ["flipped bit", "truncated", "empty"])
def test_damage_is_detected_and_the_checkpoint_before_is_used(saved: Path, tiny: Tiny, how: str) -> None:
    newer = save_checkpoint(saved.parent, tiny_state(tiny(), step=5))
    damage(newer, how)
    with pytest.raises(CheckpointError, match=r"step_00000005\.pt is"):
        read_checkpoint(newer)
    state, broken = checkpoint.newest_checkpoint(saved.parent)
    assert state is not None
    assert state["step"] == 3
    assert len(broken) == 1
    assert str(newer) in str(broken[0])


class Hostile:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (self.command,)


@pytest.mark.parametrize("container", ["torch zip", "bare pickle"])
def test_a_hostile_pickle_is_refused_and_not_executed(tmp_path: Path, container: str) -> None:
    path, trace = tmp_path / "hostile.pt", tmp_path / "executed"
    payload = {"step": 1, "config": {}, "ema_gen_ab": Hostile(f"touch {trace}"), "ema_gen_ba": {}}
    if container == "torch zip":
        torch.save(payload, path)
    else:
        path.write_bytes(pickle.dumps(payload))
    with pytest.raises(
        CheckpointError, match=r"hostile\.pt (refers to '(posix|nt)\.system'|.*holds more than tensors)"
    ):
        load_generator(path, "ab")
    assert not trace.exists()


def test_weights_that_are_not_finite_are_refused(tmp_path: Path, saved: Path) -> None:
    state = torch.load(saved, weights_only=True)
    next(iter(state["ema_gen_ab"].values()))[0] = torch.nan
    torch.save(state, tmp_path / "sick.pt")
    with pytest.raises(CheckpointError, match=r"sick\.pt holds numbers that are not finite"):
        load_generator(tmp_path / "sick.pt", "ab")
    assert load_generator(tmp_path / "sick.pt", "ba")


def test_other_files_are_refused_with_a_clear_reason(tmp_path: Path, saved: Path) -> None:
    torch.save({"state_dict": {}}, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match="not a checkpoint of this program"):
        load_generator(tmp_path / "other.pt", "ab")
    with pytest.raises(CheckpointError, match=r"there is no file or folder .*missing\.pt"):
        load_generator(tmp_path / "missing.pt", "ab")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="no checkpoint in"):
        load_generator(tmp_path / "empty", "ab")
    with pytest.raises(UserError, match='direction must be "ab" or "ba"'):
        load_generator(saved, "a to b")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "change", [{"base_channels": 8}, {"num_residuals": 2}, {"base_channels": 10**9}, {"base_channels": "4"}, {"new": 1}]
)
def test_a_configuration_that_does_not_fit_the_weights_is_refused(saved: Path, change: dict[str, Any]) -> None:
    state = read_checkpoint(saved)
    save_checkpoint(saved.parent, state | {"config": state["config"] | change})
    with pytest.raises(CheckpointError):
        load_generator(saved, "ab")


def test_every_difference_is_named_when_a_run_is_resumed(tiny: Tiny) -> None:
    state, data = tiny_state(tiny()), {"a": "x", "b": "y"}
    for allowed in (
        {"num_epochs": 9}, {"num_decay_epochs": 4}, {"num_workers": 3}, {"log_every_steps": 1},
        {"sample_every_steps": 5}, {"checkpoint_every_steps": 5}, {"keep_checkpoints": 9}, {"keep_every_epochs": 1},
        {"run_name": "moved"}, {"max_steps": 5}, {"init_from": "runs/first"}, {"data_dir": "/elsewhere/"},
        {"domain_a": "European"}, {"device": "auto"}, {"device": "cuda:1"}, {"compile": True},
    ):  # fmt: skip
        checkpoint.check_resumable(state, tiny(**allowed), data)
    for refused in ({"num_decay_epochs": 0}, {"seed": 4}, {"lambda_cycle": 1.0}, {"batch_size": 2}):
        (name, value), *_ = refused.items()
        old = to_dict(tiny())[name]
        with pytest.raises(UserError, match=f"{name} {old} -> {value}"):
            checkpoint.check_resumable(state, tiny(**refused), data)
    with pytest.raises(UserError, match="images of b 'y' -> 'z'"):
        checkpoint.check_resumable(state, tiny(), data | {"b": "z"})
    checkpoint.check_resumable(state, tiny(), {"a": "x, content 5", "b": "y, content 6"})  # saved without the content
    with pytest.raises(UserError, match="images of a 'x, content 5' -> 'x, content 7'"):
        checkpoint.check_resumable(state | {"data": {"a": "x, content 5"}}, tiny(), {"a": "x, content 7"})
    with pytest.raises(UserError, match=r"image_size 32 -> 64.*seed 0 -> 1"):
        checkpoint.check_resumable(state, tiny(image_size=64, seed=1), data)


@pytest.mark.parametrize(
    ("check", "values"),
    [
        (checkpoint.checked_step, ["x", -5, 1.0, True, None, 10**30, torch.tensor(3)]),
        (checkpoint.checked_score, ["x", float("nan"), float("inf"), 1e300, True, 10**400, [1]]),
        (
            checkpoint.checked_template,
            ["x", 5, [[0.5, 0.5]] * 5, [[float("nan"), i] for i in range(5)], [[10**400, 0]]],
        ),
        (checkpoint.checked_strength, ["x", 1.0, {"ab": float("nan")}, {"ab": -1}, {"ab": 10**400}, {"cd": 1}, {5: 1}]),
    ],
)
def test_absurd_values_beside_the_networks_are_refused(check: Callable[[Any], Any], values: list[Any]) -> None:
    for value in values:
        with pytest.raises(UnusableFileError, match="has an invalid"):
            check(value)


def test_a_position_outside_the_state_of_a_random_generator_is_refused() -> None:
    state = checkpoint.random_state()
    name, keys, _, *rest = state["numpy"]
    with pytest.raises(UnusableFileError, match="position 625"):
        checkpoint.restore_random_state(state | {"numpy": (name, keys, 625, *rest)})


# --- Generators


@pytest.mark.parametrize("direction", ["ab", "ba"])
def test_a_generator_comes_from_a_run_a_checkpoint_or_an_exported_file_alone(saved: Path, direction: Any) -> None:
    exported = saved.parent.parent / "weights.safetensors"
    export_weights(saved, exported)
    state = read_checkpoint(saved)
    expected = Generator(**checkpoint.saved_config(state).generator)
    expected.load_state_dict(state[f"ema_gen_{direction}"])
    x = torch.rand(1, 3, 32, 32) * 2 - 1
    for path in (saved.parent.parent, saved, exported):
        generator = load_generator(path, direction)
        assert not generator.training
        assert torch.equal(generator(x), expected(x))
    raw = load_generator(saved, direction, ema=False)
    assert torch.equal(raw.state_dict()["last.1.weight"], state[f"gen_{direction}"]["last.1.weight"])
    with pytest.raises(UserError, match="only the averaged weights"):
        load_generator(exported, direction, ema=False)


def test_exported_weights_carry_their_configuration(saved: Path) -> None:
    exported = saved.parent / "weights.safetensors"
    export_weights(saved.parent.parent, exported)
    with safe_open(exported, framework="pt") as file:
        assert json.loads(file.metadata()["config"]) == read_checkpoint(saved)["config"]


def test_weights_exported_in_half_precision_take_half_the_room_and_translate_alike(saved: Path) -> None:
    exact, half = saved.parent / "exact.safetensors", saved.parent / "half.safetensors"
    export_weights(saved, exact)
    export_weights(saved, half, half=True)
    assert half.stat().st_size < 0.6 * exact.stat().st_size
    image = torch.rand(1, 3, 32, 32) * 2 - 1
    difference = load_generator(half, "ab")(image) - load_generator(exact, "ab")(image)
    assert 0 < difference.abs().max() < 0.01


def test_the_newest_run_is_the_default_and_without_a_run_the_bundled_weights_are(saved: Path, tmp_path: Path) -> None:
    assert default_weights(tmp_path / "nowhere") == BUNDLED_WEIGHTS
    older = tmp_path / "runs" / "older"
    shutil.copytree(saved.parent, older / "checkpoints")
    os.utime(older / "checkpoints" / saved.name, (1, 1))
    (tmp_path / "runs" / "not a run").mkdir()
    shutil.copytree(saved.parent, tmp_path / "runs" / "newer" / "checkpoints")
    assert default_weights(tmp_path / "runs") == tmp_path / "runs" / "newer"


def test_a_folder_is_searched_for_its_weights_and_several_are_named(saved: Path, tmp_path: Path) -> None:
    run = saved.parent.parent
    best = checkpoint.save_best(run, read_checkpoint(saved) | {"step": 2})
    for folder, place in (
        (run, saved.parent),
        (saved.parent, saved.parent),
        (run / "best", best.parent),
        (saved, saved),
    ):
        assert find_weights(folder) == place
    assert find_weights(tmp_path) == saved.parent  # the only run in it
    shutil.copytree(saved.parent, tmp_path / "group" / "other" / "checkpoints")
    export_weights(run / "best", tmp_path / "exported.safetensors")
    with pytest.raises(CheckpointError, match=r"several .*: give one of .*/other, .*/run, .*/exported\.safetensors$"):
        find_weights(tmp_path)
    with pytest.raises(CheckpointError, match=r"no file or folder .*/missing; runs that exist: .*/other, .*/run$"):
        find_weights(tmp_path / "missing")
    shutil.rmtree(saved.parent)
    assert find_weights(run) == best.parent


def test_weights_are_known_by_their_content_whatever_their_name(saved: Path, tmp_path: Path) -> None:
    export_weights(saved, tmp_path / "exported.safetensors")
    odd, strange = tmp_path / "odd.pt", tmp_path / "strange.safetensors"
    (tmp_path / "exported.safetensors").rename(odd)
    shutil.copy(saved, strange)
    for path in (odd, strange):
        for tensor, other in zip(
            load_generator(path, "ab").parameters(), load_generator(saved, "ab").parameters(), strict=True
        ):
            assert torch.equal(tensor, other)
    with pytest.raises(UserError, match=r"is a \.safetensors file already"):
        export_weights(odd, tmp_path / "again.safetensors")


@pytest.mark.parametrize("kind", ["checkpoint", "safetensors"])
@pytest.mark.parametrize(
    "change", [{"base_channels": 1024, "num_residuals": 64}, {"init_std": 10**400}, {"beta1": None}]
)
def test_a_small_file_that_describes_an_absurd_network_is_refused_at_once(
    saved: Path, tmp_path: Path, kind: str, change: dict[str, Any]
) -> None:
    state = read_checkpoint(saved)
    config, path = state["config"] | change, tmp_path / "absurd"
    if kind == "checkpoint":
        torch.save(state | {"config": config}, path)
    else:
        write_generators(path, {"gen_ab": state["gen_ab"]}, config=config)
    start = time.perf_counter()
    with pytest.raises(CheckpointError, match=r"absurd( holds a gen_ab that does not fit|: this version cannot use)"):
        load_generator(path, "ab")
    assert time.perf_counter() - start < 5  # building the network would take tens of gigabytes


def test_weights_of_wrapped_networks_are_loaded(saved: Path, tmp_path: Path) -> None:
    state = read_checkpoint(saved)
    wrapped = {f"module._orig_mod.{key}": tensor for key, tensor in state["ema_gen_ab"].items()}
    torch.save(state | {"ema_gen_ab": wrapped}, tmp_path / "wrapped.pt")
    for key, tensor in load_generator(tmp_path / "wrapped.pt", "ab").state_dict().items():
        assert torch.equal(tensor, state["ema_gen_ab"][key])


def test_exported_weights_carry_the_best_strength_of_each_direction(saved: Path) -> None:
    exported = saved.parent / "weights.safetensors"
    export_weights(saved, exported)
    assert (load_weights(exported).strength("ab"), load_weights(exported).strength("ba")) == (1, 1)
    export_weights(saved, exported, strength={"ab": 1.5})
    assert (load_weights(exported).strength("ab"), load_weights(exported).strength("ba")) == (1.5, 1)
    with pytest.raises(UserError, match="strength must be a number between 0 and 3"):
        export_weights(saved, exported, strength={"ab": 4})
    assert load_weights(exported).strength("ab") == 1.5  # the file stays as it was


def test_a_checkpoint_may_hold_a_strength_and_its_export_keeps_it(saved: Path) -> None:
    save_checkpoint(saved.parent, read_checkpoint(saved) | {"strength": {"ab": 0.5, "ba": 2.0}})
    exported = saved.parent / "weights.safetensors"
    export_weights(saved, exported)
    for path in (saved, exported):
        assert [load_weights(path).strength(direction) for direction in ("ab", "ba")] == [0.5, 2.0]
    save_checkpoint(saved.parent, read_checkpoint(saved) | {"strength": {"ab": 4}})
    with pytest.raises(CheckpointError, match="strength must be a number between 0 and 3"):
        load_weights(saved)


def test_a_checkpoint_is_a_zip_of_tensors_and_plain_values(saved: Path) -> None:
    assert zipfile.is_zipfile(saved)
    state = torch.load(saved, weights_only=True)
    assert json.loads(json.dumps(state["config"])) == state["config"]


# --- One run at a time


def test_a_second_start_says_which_process_holds_the_run(tmp_path: Path) -> None:
    code = f"import pathlib\nfrom training import checkpoint\nwith checkpoint.lock_run(pathlib.Path({str(tmp_path)!r})): print('held', flush=True); input()"  # noqa: E501
    holder = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(UserError, match=f"process {holder.pid} is already training in"), checkpoint.lock_run(tmp_path):
        pass
    holder.kill()
    holder.wait()
    start = time.perf_counter()
    with checkpoint.lock_run(tmp_path):
        assert time.perf_counter() - start < 1


def test_a_configuration_that_is_no_table_is_called_so() -> None:
    with pytest.raises(CheckpointError, match="not a table of knobs and values: found list"):
        saved_config({"config": []})


def test_a_runs_folder_in_which_nothing_can_be_written_is_refused_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def acquire(*arguments: object, **options: object) -> None:
        raise PermissionError(13, "Permission denied", str(tmp_path / ".lock"))

    monkeypatch.setattr("training.checkpoint.FileLock.acquire", acquire)
    refused = pytest.raises(UserError, match=r"(?s)run's folder .*: .*Permission denied: .*lock'\n.*--runs-dir")
    with refused, checkpoint.lock_run(tmp_path):
        pass


@pytest.mark.parametrize("name", ["", "checkpoints", "samples"])
def test_a_file_where_a_folder_of_a_run_belongs_is_refused_before_training_with_what_to_do(
    tmp_path: Path, name: str
) -> None:
    place = tmp_path / "run" / name
    place.parent.mkdir(exist_ok=True)
    place.write_text("mine")
    refused = pytest.raises(UserError, match=rf"(?s)run's folder .*: .*File exists: .*{place.name}'\n.*--runs-dir")
    with refused, checkpoint.lock_run(tmp_path / "run"):
        pass
    assert place.read_text() == "mine"
