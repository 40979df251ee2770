"""Imported weights of other projects give the same translations as there, and no code in a file is run."""

from __future__ import annotations

import os
import pickle
import sys
import types
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import foreign_networks
import pytest
import torch
from foreign_networks import origin, reference, save_origin, tutorial
from torch import Tensor, nn

from import_weights import Hints, import_weights, main
from utils import UserError
from weights.load import load_generator

X = torch.rand(2, 3, 24, 32, generator=torch.Generator().manual_seed(3)) * 2 - 1
State = dict[str, Any]


def assert_same_translations(out: Path, **networks: nn.Module) -> None:
    """Assert that the generators in the file `out` translate as these networks do, given by direction."""
    for direction, network in networks.items():
        with torch.no_grad():
            ours = load_generator(out, direction)(X)  # type: ignore[arg-type]
            torch.testing.assert_close(ours, network(X), rtol=0, atol=1e-5)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """The file to write, in a folder that does not exist yet."""
    return tmp_path / "out" / "weights.safetensors"


def save(path: Path, content: object, **options: Any) -> Path:
    """torch.save into a folder that need not exist."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path, **options)
    return path


# --- The same translations


def test_a_pair_of_the_original_project_translates_as_there(tmp_path: Path, out: Path) -> None:
    gen_ab, gen_ba = save_origin(tmp_path / "theirs")
    for name in ("disc_asian", "disc_european"):
        save(tmp_path / "theirs" / f"{name}.pth.tar", {"state_dict": {"initial.0.weight": torch.zeros(1)}})
    imported = import_weights(tmp_path / "theirs", out)
    assert_same_translations(out, ab=gen_ab, ba=gen_ba)
    assert str(imported).startswith("the original project, 8 residual blocks, 4 channels: gen_ab from ")


@pytest.mark.parametrize(("blocks", "dropout"), [(6, False), (9, False), (9, True)])
def test_a_pair_of_the_reference_implementation_translates_as_there(
    tmp_path: Path, out: Path, blocks: int, dropout: bool
) -> None:
    gen_ab, gen_ba = (reference(n=blocks, seed=seed, dropout=dropout) for seed in (1, 2))
    save(tmp_path / "theirs" / "latest_net_G_A.pth", gen_ab.state_dict())
    save(tmp_path / "theirs" / "latest_net_G_B.pth", gen_ba.state_dict())
    imported = import_weights(tmp_path / "theirs", out)
    assert_same_translations(out, ab=gen_ab, ba=gen_ba)
    assert imported.network == f"the reference implementation, {blocks} residual blocks, 4 channels"


@pytest.mark.parametrize("norm_first", [True, False])
def test_a_pair_of_either_version_of_the_tutorial_translates_as_there(
    tmp_path: Path, out: Path, norm_first: bool
) -> None:
    gen_b, gen_a = (tutorial(c=5, n=2, seed=seed, norm_first=norm_first) for seed in (1, 2))
    for name, network in (("genB", gen_b), ("genA", gen_a)):
        save(tmp_path / "theirs" / f"{name}.pth.tar", {"state_dict": network.state_dict(), "optimizer": {"state": {}}})
    import_weights(tmp_path / "theirs", out, hints=Hints(norm_first=norm_first))
    assert_same_translations(out, ab=gen_b, ba=gen_a)


def pickle_as_in_their_project(path: Path, content: object) -> Path:
    """Save whole modules as if a file generator.py had defined their classes; it does not exist when we read them."""
    classes = (foreign_networks.Generator, foreign_networks.ConvBlock, foreign_networks.ResidualBlock)
    module: Any = types.ModuleType("generator")
    before = sys.modules.get("generator")
    sys.modules["generator"] = module
    for kind in classes:
        setattr(module, kind.__name__, kind)
        kind.__module__ = "generator"
    try:
        return save(path, content)
    finally:
        del sys.modules["generator"]
        assert before is None
        for kind in classes:
            kind.__module__ = "foreign_networks"


def both_in_one(gen_asian: Any, gen_european: Any) -> State:
    """A later checkpoint of the original project, which holds whole networks and optimisers."""
    optimiser = torch.optim.Adam([*gen_asian.parameters(), *gen_european.parameters()], betas=(0.5, 0.999))
    (gen_asian(X).mean() + gen_european(X).mean()).backward()
    optimiser.step()
    models = {"gen_European": gen_european, "gen_Asian": gen_asian, "disc_Asian": nn.Sequential(nn.Conv2d(3, 4, 4))}
    return {"models": models, "optimizers": {"opt_gen": optimiser}, "epoch": 3}


def test_whole_pickled_networks_translate_as_there_without_their_classes(tmp_path: Path, out: Path) -> None:
    gen_ab, gen_ba = origin(n=2, seed=1), origin(n=2, seed=2)
    content = both_in_one(gen_ab, gen_ba)
    path = pickle_as_in_their_project(tmp_path / "checkpoint_2023-01-02_03-04-05_9.pth.tar", content)
    assert b"cgenerator\nGenerator" in path.read_bytes()
    for source in (path, tmp_path):
        out.unlink(missing_ok=True)
        import_weights(source, out)
        assert_same_translations(out, ab=gen_ab, ba=gen_ba)
    assert "generator" not in sys.modules
    with pytest.raises(UserError, match="leave out --direction"):
        import_weights(path, out, hints=Hints(direction="ab"))


def test_weights_saved_from_data_parallel_lose_its_prefix(tmp_path: Path, out: Path) -> None:
    network = reference(n=2)
    save(tmp_path / "1_net_G_A.pth", nn.DataParallel(network).state_dict())
    save(tmp_path / "1_net_G_B.pth", network.state_dict())
    import_weights(tmp_path, out)
    assert_same_translations(out, ab=network, ba=network)


@pytest.mark.parametrize("prefix", ["_orig_mod.", "_orig_mod.module.", "module._orig_mod.", "module.module."])
def test_weights_of_compiled_and_wrapped_networks_are_imported(tmp_path: Path, out: Path, prefix: str) -> None:
    network = reference(n=2)
    state = {prefix + key.replace("model.11.", "model.11._orig_mod."): x for key, x in network.state_dict().items()}
    import_weights(save(tmp_path / "1_net_G_A.pth", state), out)
    assert_same_translations(out, ab=network)


def test_a_layer_that_is_named_with_and_without_a_prefix_is_refused(tmp_path: Path, out: Path) -> None:
    state = reference(n=2).state_dict()
    state |= {"_orig_mod.model.1.bias": torch.ones(4)}
    assert_refused(save(tmp_path / "1_net_G_A.pth", state), out, "names a layer twice")


def test_running_statistics_of_old_pytorch_versions_are_dropped(tmp_path: Path, out: Path) -> None:
    network = reference(n=2)
    state = network.state_dict()
    for norm, width in (("model.2", 4), ("model.11.conv_block.2", 16)):
        state |= {f"{norm}.running_mean": torch.ones(width), f"{norm}.running_var": torch.ones(width)}
        state |= {f"{norm}.num_batches_tracked": torch.tensor(7)}
    import_weights(save(tmp_path / "latest_net_G_A.pth", state), out)
    assert_same_translations(out, ab=network)


def test_files_of_old_pytorch_versions_are_read(tmp_path: Path, out: Path) -> None:
    network = reference(n=2)
    path = save(tmp_path / "latest_net_G_A.pth", network.state_dict(), _use_new_zipfile_serialization=False)
    assert not zipfile.is_zipfile(path)
    import_weights(path, out)
    assert_same_translations(out, ab=network)


def test_half_precision_is_converted_to_single(tmp_path: Path, out: Path) -> None:
    network = tutorial(n=1).half().float()
    half = {key: tensor.half() for key, tensor in network.state_dict().items()}
    import_weights(save(tmp_path / "gena.pth.tar", {"state_dict": half}), out)
    assert_same_translations(out, ba=network)


# --- The choice of files and directions


def test_a_file_is_imported_with_its_partner_in_upper_or_lower_case(tmp_path: Path, out: Path) -> None:
    gen_ab, gen_ba = reference(n=2, seed=1), reference(n=2, seed=2)
    path = save(tmp_path / "Latest_net_G_A.pth", gen_ab.state_dict())
    save(tmp_path / "latest_NET_g_b.pth", gen_ba.state_dict())
    save(tmp_path / "9_net_G_B.pth", reference(n=2, seed=3).state_dict())
    import_weights(path, out)
    assert_same_translations(out, ab=gen_ab, ba=gen_ba)


def test_a_file_without_a_partner_gives_one_direction_and_the_report_says_so(tmp_path: Path, out: Path) -> None:
    save_origin(tmp_path, n=1)
    (tmp_path / "gen_european.pth.tar").unlink()
    imported = import_weights(tmp_path / "gen_asian.pth.tar", out)
    assert "no generator was found for the other direction" in str(imported)
    with pytest.raises(UserError, match="does not hold gen_ba, only gen_ab"):
        load_generator(out, "ba")


def test_the_newest_of_several_epochs_is_imported_and_the_report_says_so(tmp_path: Path, out: Path) -> None:
    saved = {epoch: save_origin(tmp_path / f"epoch {epoch}", n=1, seed=10 * epoch) for epoch in (9, 10, 8)}
    save(tmp_path / "epoch 11" / "gen_asian.pth.tar", {})  # its partner is missing
    imported = import_weights(tmp_path, out)
    assert_same_translations(out, ab=saved[10][0], ba=saved[10][1])
    assert "epoch 10" in str(imported)
    assert "the newest of 3" in str(imported)


def test_a_file_whose_name_does_not_give_the_direction_needs_the_flag(tmp_path: Path, out: Path) -> None:
    network = reference(n=2)
    path = save(tmp_path / "latest_net_G.pth", network.state_dict())
    with pytest.raises(UserError, match="add --direction ab if"):
        import_weights(path, out)
    with pytest.raises(UserError, match="no pair of generators"):
        import_weights(tmp_path, out)
    import_weights(path, out, hints=Hints(direction="ba"))
    assert_same_translations(out, ba=network)


def test_the_flag_also_sets_the_direction_of_the_partner(tmp_path: Path, out: Path) -> None:
    gen_z, gen_h = tutorial(n=1, seed=1), tutorial(n=1, seed=2)
    for name, network in (("genz", gen_z), ("genh", gen_h)):
        save(tmp_path / f"{name}.pth.tar", {"state_dict": network.state_dict()})
    with pytest.raises(UserError, match="add --direction ab if"):
        import_weights(tmp_path / "genz.pth.tar", out)
    import_weights(tmp_path / "genz.pth.tar", out, hints=Hints(direction="ab"))
    assert_same_translations(out, ab=gen_z, ba=gen_h)


def test_swap_exchanges_the_directions_that_the_names_give(tmp_path: Path, out: Path) -> None:
    gen_ab, gen_ba = save_origin(tmp_path, n=1)
    import_weights(tmp_path, out, hints=Hints(swap=True))
    assert_same_translations(out, ab=gen_ba, ba=gen_ab)


# --- Refused files


def without(state: State, key: str) -> State:
    """A state dict without one of its entries."""
    return {name: tensor for name, tensor in state.items() if name != key}


def broken_states() -> dict[str, tuple[Callable[[], object], str]]:
    """By name, a function that makes the content of a file that must be refused, and words of the message."""
    good = reference(n=2).state_dict()
    return {
        "batch norm": (lambda: good | {"model.2.weight": torch.ones(4)}, "batch norm"),
        "a missing layer": (lambda: without(good, "model.4.bias"), r"missing: model\.4\.bias"),
        "an additional layer": (lambda: good | {"model.30.conv.weight": torch.ones(1, 1)}, r"unknown: model\.30"),
        "grey images": (lambda: reference(n=2, channels=1).state_dict(), r"\(4, 1, 7, 7\), expected \(4, 3, 7, 7\)"),
        "a U-Net": (lambda: {"model.model.0.weight": torch.ones(1)}, "holds a U-Net"),
        "another network": (lambda: nn.Sequential(nn.Linear(2, 2)).state_dict(), r"layers are 0\.bias, 0\.weight"),
        "not finite": (lambda: good | {"model.4.bias": torch.full((8,), torch.inf)}, "not finite"),
        "whole numbers": (lambda: good | {"model.4.bias": torch.ones(8, dtype=torch.int64)}, "torch.int64"),
        "a list": (lambda: good | {"model.4.bias": [1.0]}, "is not a tensor"),
        "a number as name": (lambda: good | {5: torch.ones(1)}, "is not a tensor"),
        "sparse": (lambda: good | {"model.4.bias": torch.ones(8).to_sparse()}, "does not hold a plain tensor"),
        "no dimensions": (lambda: good | {"model.1.weight": torch.tensor(1.0)}, "base_channels"),
        "too many channels": (lambda: good | {"model.1.weight": torch.ones(2000, 3, 1, 1)}, "base_channels"),
        "more than the file": (
            lambda: good | {"model.1.weight": torch.ones(1).expand(1024, 3, 700, 700)},
            "more numbers than it has room for",
        ),
        "nothing": (dict, "does not hold a network"),
        "a number": (lambda: 5, "found int"),
        "no models": (lambda: {"models": {"a": {}}}, "neither gen_Asian nor gen_European"),
    }


@pytest.mark.filterwarnings("ignore:Validating sparse tensor")
@pytest.mark.parametrize("kind", broken_states())
@pytest.mark.parametrize("there", [True, False])
def test_an_unsupported_network_is_refused_and_nothing_is_written(
    tmp_path: Path, out: Path, kind: str, there: bool
) -> None:
    content, words = broken_states()[kind]
    assert_refused(save(tmp_path / "latest_net_G_A.pth", content()), out, words, there)


def assert_refused(source: Path, out: Path, words: str, there: bool = True) -> None:
    """Assert that an import fails with a message of at most five lines and leaves `out` unchanged."""
    if there:
        out.parent.mkdir()
        out.write_text("before")
    with pytest.raises(UserError, match=words) as error:
        import_weights(source, out)
    assert len(str(error.value).splitlines()) <= 5
    if there:
        assert out.read_text() == "before"
        assert [path.name for path in out.parent.iterdir()] == [out.name]
    else:
        assert not out.parent.exists()


@pytest.mark.parametrize("kind", ["truncated", "flipped", "empty", "text", "bomb", "missing"])
def test_a_damaged_file_is_refused(tmp_path: Path, out: Path, kind: str) -> None:
    path = save(tmp_path / "latest_net_G_A.pth", reference(n=2).state_dict())
    content = path.read_bytes()
    middle = len(content) // 2
    flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    path.write_bytes({"truncated": content[:-5000], "flipped": flipped, "text": b"hello\n"}.get(kind, b""))
    if kind == "bomb":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("archive/data.pkl", bytes(10**6))
    if kind == "missing":
        path.unlink()
    words = {
        "missing": "there is no file or folder",
        "bomb": "is damaged: its archive claims to unpack to more bytes",
        "truncated": "is damaged: the end of its zip archive is missing",
        "flipped": "is damaged: wrong checksum in ",
        "empty": "is empty",
        "text": "is a text file that starts with 'hello'",
    }
    assert_refused(path, out, words[kind])


def test_a_pair_of_different_networks_is_refused(tmp_path: Path, out: Path) -> None:
    save(tmp_path / "latest_net_G_A.pth", reference(n=2).state_dict())
    save(tmp_path / "latest_net_G_B.pth", reference(n=3).state_dict())
    assert_refused(tmp_path, out, "hold different networks: .* 2 residual blocks, .*; .* 3 residual blocks")


def test_only_weights_of_this_program_are_replaced(
    tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_origin(tmp_path / "theirs")
    out.parent.mkdir()
    out.write_bytes(b"weights of another program")
    assert main([str(tmp_path / "theirs"), str(out)]) == 1
    assert "exists and holds no weights of ours: name another file" in capsys.readouterr().err
    assert out.read_bytes() == b"weights of another program"
    out.unlink()
    assert [main([str(tmp_path / "theirs"), str(out)]) for _ in range(2)] == [0, 0]


def test_mistakes_on_the_command_line_are_reported_without_a_traceback(
    tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_origin(tmp_path, n=1)
    (tmp_path / "taken").touch()
    for arguments, words in (
        ([str(tmp_path), str(out.with_suffix(".pt"))], "must end in .safetensors"),
        ([str(tmp_path), str(out), "--direction", "ab"], "--direction is for a single file"),
        ([str(tmp_path), str(out), "--no-norm-first"], "is only for files of the tutorial"),
        ([str(tmp_path), str(out), "--image-size", "0"], "image_size must be a multiple of 4"),
        ([str(tmp_path), str(tmp_path / "taken" / "w.safetensors")], "could not write"),
    ):
        assert main(arguments) == 1
        shown = capsys.readouterr()
        assert shown.out == ""
        assert shown.err.startswith("error: ")
        assert words in shown.err
    assert main([str(tmp_path), str(out), "--image-size", "64"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2


# --- Hostile files


class Hostile:
    """Runs a command when it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (self.command,)


def hide(network: nn.Module, where: str, value: Any) -> nn.Module:
    """Put a value into a module where only tensors and modules belong."""
    network.__dict__[where]["hidden"] = value
    return network


@pytest.mark.parametrize(
    "place", ["top", "bare pickle", "old file", "_modules", "_parameters", "_buffers", "optimizer"]
)
def test_a_pickle_that_would_run_code_is_refused_without_running_it(tmp_path: Path, out: Path, place: str) -> None:
    trace = tmp_path / "executed"
    hostile = Hostile(f"touch {trace}")
    path = tmp_path / "checkpoint_1_1.pth.tar"
    if place == "top":
        save(path, hostile)
    elif place == "bare pickle":
        path.write_bytes(pickle.dumps(hostile, protocol=2))
    elif place == "old file":
        save(path, {"models": {"gen_Asian": hostile}}, _use_new_zipfile_serialization=False)
    elif place == "optimizer":
        pickle_as_in_their_project(path, {"models": {"gen_Asian": origin(n=1)}, "optimizers": {"opt_gen": hostile}})
    else:
        pickle_as_in_their_project(path, {"models": {"gen_Asian": hide(origin(n=1), place, hostile)}})
    assert_refused(path, out, r"refers to '(posix|nt)\.system', which is not part of a CycleGAN")
    assert not trace.exists()


class Unknown(nn.Module):
    """A class that is not part of any CycleGAN."""


def test_a_class_that_is_not_on_the_list_is_refused(tmp_path: Path, out: Path) -> None:
    path = save(tmp_path / "checkpoint_1_1.pth.tar", {"models": {"gen_Asian": Unknown()}})
    assert_refused(path, out, r"refers to '.*test_import_weights\.Unknown'")


def test_a_network_that_contains_itself_is_imported_once(tmp_path: Path, out: Path) -> None:
    network = origin(n=1)
    last = network.get_submodule("last")
    last.again = network
    path = pickle_as_in_their_project(tmp_path / "checkpoint_1_1.pth.tar", {"models": {"gen_Asian": network}})
    import_weights(path, out)
    del last.again
    assert_same_translations(out, ab=network)


@pytest.mark.parametrize(
    ("where", "value", "words"),
    [("_parameters", "text", "'hidden' is not a tensor"), ("_modules", 5, r"'hidden\.' is not a pickled module")],
)
def test_other_objects_inside_a_pickled_network_are_refused(
    tmp_path: Path, out: Path, where: str, value: object, words: str
) -> None:
    network = hide(origin(n=1), where, value)
    path = pickle_as_in_their_project(tmp_path / "checkpoint_1_1.pth.tar", {"models": {"gen_Asian": network}})
    assert_refused(path, out, words)


def test_a_very_deep_network_is_refused(tmp_path: Path, out: Path) -> None:
    depth = 20_000
    path = save(tmp_path / "checkpoint_1_1.pth.tar", {})
    empty, none = b"}", b"N"
    start = b"ctorch.nn.modules.container\nSequential\n)\x81}(X\x0b\0\0\0_parameters" + empty + b"X\x08\0\0\0_buffers"
    opening = start + empty + b"X\x08\0\0\0_modules}X\x01\0\0\0m"
    nested = opening * depth + none + b"sub" * depth  # at each level, set the key "m" of _modules, and then the state
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}X\x06\0\0\0models}X\x09\0\0\0gen_Asian" + nested + b"ss.")
        archive.writestr("archive/version", "3\n")
    assert_refused(path, out, "more than 10000 modules")


def test_the_stand_ins_are_no_longer_allowed_after_a_file_was_read(tmp_path: Path, out: Path) -> None:
    save_origin(tmp_path, n=1)
    before = {str(kind) for kind in torch.serialization.get_safe_globals()}
    import_weights(tmp_path, out)
    assert {str(kind) for kind in torch.serialization.get_safe_globals()} == before


def test_no_warning_reaches_the_user(tmp_path: Path, out: Path) -> None:
    state: OrderedDict[str, Tensor] = OrderedDict(reference(n=1).state_dict())
    path = save(tmp_path / "latest_net_G_A.pth", state, _use_new_zipfile_serialization=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        import_weights(path, out)
