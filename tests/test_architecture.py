"""The house plan: a file imports only from the floors below it, and nobody does what only one room may do."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FLOORS = {
    -1: {"instance_norm"},
    0: {
        "config",
        "diff_augment",
        "discriminator_model",
        "faces",
        "foreign_file",
        "generator_model",
        "health",
        "losses",
        "metrics",
        "processes",
        "utils",
        "weights_file",
    },
    1: {"dataset", "checkpoint", "import_weights", "run_log", "fetch", "archives", "video", "judges"},
    2: {"train", "translate", "data_check"},
    3: {"download_files", "evaluate", "benchmark"},
}
FLOOR_OF = {name: floor for floor, names in FLOORS.items() for name in names}
ONLY_ROOM = {  # heavy or dangerous imports and the only files that may have them
    "albumentations": {"dataset"},
    "cv2": {"dataset", "faces", "judges"},
    "torch_fidelity": {"judges"},
    "tyro": {"config"},
    "filelock": {"checkpoint", "download_files"},
    "av": {"video"},
    "requests": {"fetch", "download_files"},
    "gdown": {"fetch"},
    "safetensors": {"weights_file"},
    "tensorboard": {"run_log"},
}


def tree_of(name: str) -> ast.Module:
    return ast.parse((ROOT / f"{name}.py").read_text(), f"{name}.py")


def imports_of(name: str) -> set[str]:
    """Top-level names of all modules that a file imports, wherever in the file.

    One exception: `python dataset.py` is another way to start data_check, which stands above it.
    """
    found: set[str] = set()
    tree = tree_of(name)
    if name == "dataset":
        assert ast.unparse(tree.body.pop()).startswith("if __name__ == '__main__':\n    import data_check\n")
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}.py imports relatively"
            found.add(node.module or "")
            assert all(alias.name != "*" for alias in node.names), f"{name}.py imports *"
    return found


def test_the_plan_names_every_file() -> None:
    assert {path.stem for path in ROOT.glob("*.py")} == set(FLOOR_OF)


@pytest.mark.parametrize("name", FLOOR_OF)
def test_a_file_imports_only_from_the_floors_below(name: str) -> None:
    breaches = {other for other in imports_of(name) & set(FLOOR_OF) if FLOOR_OF[other] >= FLOOR_OF[name]}
    assert not breaches, f"{name}.py on floor {FLOOR_OF[name]} imports {breaches}"


@pytest.mark.parametrize("name", sorted((FLOORS[-1] | FLOORS[0]) - {"config"}))
def test_the_other_files_of_the_lowest_floor_know_no_config_and_no_command_line(name: str) -> None:
    assert not imports_of(name) & {"config", "tyro", "argparse"}
    assert not {node.attr for node in ast.walk(tree_of(name)) if isinstance(node, ast.Attribute)} & {"argv"}


def test_the_dashboard_loads_no_torch() -> None:
    assert not {name.split(".")[0] for name in imports_of("config")} & {"torch", "torchvision", "numpy"}


@pytest.mark.parametrize("name", FLOOR_OF)
def test_libraries_stay_in_their_rooms(name: str) -> None:
    for module in imports_of(name):
        part = next((part for part in module.split(".") if part in ONLY_ROOM), None)
        assert part is None or name in ONLY_ROOM[part], f"{name}.py imports {module}"


@pytest.mark.parametrize("name", FLOOR_OF)
def test_only_two_files_load_and_one_saves_and_always_weights_only(name: str) -> None:
    for node in ast.walk(tree_of(name)):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("torch.save", "torch.load"):
            loads = ast.unparse(node.func) == "torch.load"
            allowed = {"checkpoint", "foreign_file"} if loads else {"checkpoint"}
            assert name in allowed, f"{name}.py line {node.lineno} calls {ast.unparse(node.func)}"
            if loads:
                assert "weights_only=True" in ast.unparse(node)


@pytest.mark.parametrize("name", FLOOR_OF)
def test_importing_a_file_does_no_work(name: str) -> None:
    allowed = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign)
    for node in tree_of(name).body:
        docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        main_guard = isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'"
        before_import = ast.unparse(node).startswith("os.environ.setdefault('NO_ALBUMENTATIONS_UPDATE'")
        assert isinstance(node, allowed) or docstring or main_guard or before_import, f"{name}.py line {node.lineno}"
        if isinstance(node, (ast.Assign, ast.AnnAssign)):
            calls = {ast.unparse(call.func) for call in ast.walk(node) if isinstance(call, ast.Call)}
            harmless = {"Between", "Config", "Layout", "Path", "Source"}
            harmless |= {"np.array", "re.compile", "replace", "tyro.conf.arg"}
            assert calls <= harmless, f"{name}.py {calls}"
