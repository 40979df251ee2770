"""Weights and configurations with random damage or senseless values are loaded, or refused in words."""

from __future__ import annotations

import io
import json
import math
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign_networks import origin
from fuzzing import assert_sentence, bounded, damaged, fuzz
from hypothesis import given
from hypothesis import strategies as st
from test_import_weights import both_in_one, pickle_as_in_their_project
from test_translate import TEMPLATE

import train
from config import Config, from_dict, to_dict
from discriminator_model import Discriminator
from generator_model import Generator
from import_weights import import_weights
from training import checkpoint
from training.model import CycleGAN
from training.run import Run
from utils import UserError
from weights.load import load_weights
from weights.safetensors_file import write_generators

pytestmark = pytest.mark.slow
TINY = Config(image_size=32, base_channels=1, num_residuals=1, pool_size=2, device="cpu")
CPU = torch.device("cpu")
MAX_LENGTH = 1000  # A refusal fits on a screen.

numbers = st.one_of(
    st.integers(), st.floats(), st.booleans(), st.sampled_from([10**400, -(10**400), 2**31, 2**63, 2**64, -1])
)
words = st.one_of(
    st.text(max_size=5), st.sampled_from(["", "nan", "auto", "../..", "x" * 10_000, "\ud800", "\0", "cpu"])
)
values: st.SearchStrategy[Any] = st.recursive(
    st.one_of(st.none(), numbers, words),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(words, inner, max_size=3)),
    max_leaves=4,
)
tensors = st.sampled_from(
    [torch.zeros(0), torch.tensor(3), torch.full((2, 2), math.nan), torch.zeros(1).expand(1 << 20),
     torch.zeros(2, 3, dtype=torch.complex64), torch.zeros(4, dtype=torch.int8), torch.zeros(2, 2).to_sparse(),
     torch.zeros(1, dtype=torch.bfloat16), torch.nn.Parameter(torch.zeros(1)), torch.zeros(3, device="meta")]
)  # fmt: skip


def refusal(action: Callable[[], object], errors: tuple[type[Exception], ...] = (UserError,)) -> str:
    """Why an action refuses what it reads; "" if it does not."""
    said = ""
    with bounded():
        try:
            action()
        except errors as error:
            said = str(error)
            assert_sentence(said)
    assert len(said) < MAX_LENGTH
    return said


# --- Configurations


@fuzz(400)
@given(st.dictionaries(st.one_of(st.sampled_from([field.name for field in fields(Config)]), words), values, max_size=3))
def test_any_values_make_a_configuration_or_are_refused_in_words(changes: dict[str, Any]) -> None:
    made: list[Config] = []
    if refusal(lambda: made.append(from_dict(to_dict(TINY) | changes)), (ValueError,)):
        return
    (config,) = made
    assert from_dict(json.loads(json.dumps(to_dict(config)))) == config
    with torch.device("meta"):  # where networks of any size take no memory
        Generator(**config.generator)
        Discriminator(**config.discriminator)


# --- Files


@cache
def state() -> dict[str, Any]:
    """A checkpoint's entries, after a step of both optimisers, so that these have something to keep."""
    torch.manual_seed(0)
    model = CycleGAN(TINY, CPU)
    train_a_step(model)
    own = {"step": 3, "epoch": 0, "config": to_dict(TINY), "data": {"a": "x", "b": "y"}, "others": [],
           "best_score": 0.5, "strength": {"ab": 1.5, "ba": 1.0}, "template": TEMPLATE}  # fmt: skip
    return own | {"random": checkpoint.random_state()} | model.state_dict()


def train_a_step(model: CycleGAN) -> None:
    train.train_step(model, *(torch.rand(2, 1, 3, 32, 32) * 2 - 1), config=TINY, r1_gamma=1.0)


@cache
def seeds() -> dict[str, bytes]:
    """Whole files with weights: ours of both kinds, and those of other projects as they are pickled."""
    networks = {name: state()[f"ema_{name}"] for name in ("gen_ab", "gen_ba")}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_generators(folder / "ours.safetensors", networks, config=to_dict(TINY), template=None, strength={"ab": 1})
        torch.save(state(), folder / "step_00000003.pt")
        theirs = origin(c=1, n=1)
        torch.save({"state_dict": theirs.state_dict()}, folder / "gen_asian.pth.tar")
        torch.save(theirs.state_dict(), folder / "old_net_G_A.pth", _use_new_zipfile_serialization=False)
        pickle_as_in_their_project(folder / "checkpoint_1_1.pth.tar", both_in_one(theirs, origin(c=1, n=1, seed=1)))
        return {file.name: file.read_bytes() for file in folder.iterdir()}


@st.composite
def damaged_files(draw: st.DrawFn) -> tuple[str, bytes]:
    """A file with weights, damaged anywhere or only inside its pickle, whose checksum is right then."""
    name = draw(st.sampled_from(sorted(seeds())))
    data = seeds()[name]
    if name.endswith(".safetensors") and draw(st.booleans()):
        size = int.from_bytes(data[:8], "little")
        head = draw(
            damaged(data[8 : 8 + size], (b"[", b"{}", b"null", b"-1", b"1e999", b'"', b"\xff", b"F64", b"9" * 30))
        )
        return name, len(head).to_bytes(8, "little") + head + data[8 + size :]
    if data.startswith(b"PK") and draw(st.integers(0, 3)):
        return name, repacked(data, draw(damaged(pickle_in(data), OPCODES)))
    return name, draw(damaged(data))


OPCODES = (b"\0", b"(", b")", b"}", b"]", b"t", b"R", b"b", b"s", b"u", b"N", b".", b"Q", b"h\0", b"j\xff\xff\xff\x7f",
           b"K\xff", b"J\xff\xff\xff\xff", b"X\xff\xff\xff\x7f", b"\x8a\xff", b"cbuiltins\neval\n")  # fmt: skip


def pickle_in(data: bytes) -> bytes:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
        return archive.read(name)


def repacked(data: bytes, pickled: bytes) -> bytes:
    """A file of torch.save with another pickle."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as archive, zipfile.ZipFile(buffer, "w") as copy:
        for entry in archive.infolist():
            content = pickled if entry.filename.endswith("/data.pkl") else archive.read(entry)
            copy.writestr(entry.filename, content)
    return buffer.getvalue()


def use_weights(path: Path) -> None:
    """Load what a file holds, and translate with it."""
    weights = load_weights(path)
    for direction in weights.generators:
        weights.generator(direction)(torch.zeros(1, 3, 8, 8))


@fuzz(120)
@given(damaged_files())
def test_damaged_weights_are_loaded_and_imported_or_refused_in_words(file: tuple[str, bytes]) -> None:
    name, data = file
    with tempfile.TemporaryDirectory() as folder:
        path, target = Path(folder, name), Path(folder, "new", "out.safetensors")
        path.write_bytes(data)
        refusal(lambda: use_weights(path))
        if refusal(lambda: import_weights(path, target)):
            assert not target.exists()
        else:
            refusal(lambda: use_weights(target))
        assert not list(Path(folder).rglob("*.tmp"))


# --- Checkpoints that are whole, but hold other values


@st.composite
def changed_states(draw: st.DrawFn) -> dict[str, Any]:
    """A checkpoint in which up to three values, at any depth, are replaced, taken out or doubled."""
    result: dict[str, Any] = dict(state())
    for _ in range(draw(st.integers(1, 3))):
        place: Any = result
        key = draw(st.sampled_from(list(place)))
        while isinstance(place[key], (dict, list)) and place[key] and draw(st.integers(0, 3)):
            place[key] = place[key].copy()
            place = place[key]
            key = draw(st.sampled_from(list(place) if isinstance(place, dict) else range(len(place))))
        how = draw(st.sampled_from(["value", "tensor", "other", "gone", "more"]))
        if how == "gone" and len(place) > 1:
            del place[key]
        elif how == "other":
            place[key] = draw(st.sampled_from(list(state().values())))
        elif how == "more" and isinstance(place, dict):
            place[draw(st.one_of(words, st.integers()))] = place[key]
        else:
            place[key] = draw(tensors if how == "tensor" else values)
    return result


def resume(folder: Path, saved: dict[str, Any]) -> None:
    run = Run(
        folder, TINY, saved["data"] if isinstance(saved.get("data"), dict) else state()["data"], steps_per_epoch=4
    )
    model = CycleGAN(TINY, CPU)
    run.start_or_resume(model)
    train_a_step(model)


@fuzz(60)
@given(changed_states())
def test_senseless_values_in_a_checkpoint_are_used_or_refused_in_words(saved: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as name:
        path = Path(name, "checkpoints", "step_00000003.pt")
        path.parent.mkdir()
        torch.save(saved, path)
        refusal(lambda: use_weights(path))
        random = checkpoint.random_state()
        refusal(lambda: resume(Path(name), saved))
        checkpoint.restore_random_state(random)
