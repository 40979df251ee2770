"""The plan of the house: which room may import which, which library belongs where, and nothing works at import time."""

from __future__ import annotations

import ast
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS: dict[str, set[str]] = {  # by room, a file or a package: what of ours it may import; its own files come on top
    "config": set(),
    "startup": set(),
    "console": set(),
    "images": set(),
    "utils": {"console", "images"},
    "generator_model": set(),
    "discriminator_model": {"generator_model"},
    "photos": {"console", "utils", "images", "generator_model"},
    "downloads": {"utils"},
    "dataset": {"config", "console", "utils", "images", "photos"},
    "training": {"config", "console", "utils", "generator_model", "discriminator_model"},
    "weights": {"config", "console", "utils", "generator_model", "training.checkpoint", "training.torch_file"},
    "evaluation": {"utils", "generator_model", "photos", "training.diff_augment", "weights"},
}
ENTRY_POINTS: dict[str, set[str]] = {  # they may import all rooms, and of each other only these
    "train": set(),
    "translate": set(),
    "evaluate": set(),
    "benchmark": {"train"},
    "import_weights": set(),
    "download_files": {"import_weights"},
    "check_data": set(),
    "app": {"translate"},
    "export": {"check_data"},
    "hubconf": {"translate"},
}
ONLY_HERE = {  # libraries and the only files or packages that may import them
    "tyro": {"config", "training.command_line"},
    "albumentations": {"dataset"},
    "cv2": {"dataset", "photos", "evaluation"},
    "av": {"photos.film", "photos.video", "photos.video_files"},
    "pillow_heif": {"images.files"},
    "gdown": {"downloads"},
    "requests": {"downloads"},
    "tensorboard": {"training.run_log"},
    "filelock": {"training.checkpoint", "download_files"},
    "safetensors": {"weights.safetensors_file"},
    "onnx": {"weights.onnx_file"},
    "onnxscript": {"weights.onnx_file"},
    "onnxruntime": {"weights.onnx_file"},
    "huggingface_hub": {"weights.hub", "weights.model_card"},
    "torch_fidelity": {"evaluation"},
    "matplotlib": {"evaluation.report"},
    "gradio": {"app"},
}
NOT_AT_THE_TOP = {
    "av",
    "gradio",
    "huggingface_hub",
    "matplotlib",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "pillow_heif",
    "torch_fidelity",
}  # optional libraries are imported where they are used
WITHOUT_CONFIG = ("generator_model", "discriminator_model", "training.losses", "training.diff_augment",
                  "training.textbook_step", "evaluation.metrics", "images", "photos", "downloads")  # fmt: skip


def modules() -> list[str]:
    """Dotted names of all our files but the tests."""
    packages = [path.parent.name for path in ROOT.glob("*/__init__.py")]
    files = [*ROOT.glob("*.py"), *(file for package in packages for file in ROOT.glob(f"{package}/*.py"))]
    names = (".".join(file.relative_to(ROOT).with_suffix("").parts) for file in files)
    return sorted(name for name in names if not name.endswith("__init__"))


MODULES = modules()


def tree_of(module: str) -> ast.Module:
    return ast.parse((ROOT / f"{module.replace('.', '/')}.py").read_text(), module)


def imports_of(module: str, top_only: bool = False) -> set[str]:
    """Dotted names of all modules that a file imports, wherever in the file."""
    tree = tree_of(module)
    return {name for node in (tree.body if top_only else ast.walk(tree)) for name in named_in(node)}


def named_in(node: ast.AST) -> set[str]:
    """Dotted names of the modules that a statement imports; nothing if it imports none."""
    if isinstance(node, ast.Import):
        return {alias.name for alias in node.names}
    if not isinstance(node, ast.ImportFrom):
        return set()
    assert node.level == 0, f"{ast.unparse(node)} imports relatively"
    assert all(alias.name != "*" for alias in node.names), f"{ast.unparse(node)} imports everything"
    inner = {f"{node.module}.{alias.name}" for alias in node.names}
    return inner & set(MODULES) or {node.module or ""}


def ours(module: str) -> set[str]:
    return imports_of(module) & set(MODULES)


def is_in(module: str, places: set[str]) -> bool:
    """Whether a file is one of some files, or in one of some packages."""
    return module in places or module.split(".")[0] in places


def test_the_plan_names_every_file() -> None:
    assert {module.split(".")[0] for module in MODULES} == set(ROOMS) | set(ENTRY_POINTS)


@pytest.mark.parametrize("module", MODULES)
def test_a_file_imports_only_what_its_room_may(module: str) -> None:
    room = module.split(".")[0]
    allowed = set(ROOMS) | ENTRY_POINTS[room] if room in ENTRY_POINTS else ROOMS[room] | {room}
    breaches = {other for other in ours(module) if not is_in(other, allowed)}
    assert not breaches, f"{module} imports {breaches}"


def test_no_files_import_each_other_in_a_circle() -> None:
    try:
        TopologicalSorter({module: ours(module) for module in MODULES}).prepare()
    except CycleError as error:
        pytest.fail(f"a circle: {' -> '.join(error.args[1])}")


@pytest.mark.parametrize("module", [module for module in MODULES if is_in(module, set(WITHOUT_CONFIG))])
def test_what_needs_no_configuration_knows_none(module: str) -> None:
    assert not imports_of(module) & {"config", "tyro", "argparse"}


@pytest.mark.parametrize("module", ["config", "console", "training.command_line"])
def test_what_answers_before_torch_is_loaded_loads_no_torch(module: str) -> None:
    assert not {name.split(".")[0] for name in imports_of(module)} & {"torch", "torchvision", "numpy", "utils"}


@pytest.mark.parametrize("module", sorted(set(ENTRY_POINTS) - {"hubconf"}))  # torch is what imports hubconf
def test_programs_set_the_threads_waiting_before_they_import_any_library(module: str) -> None:
    names = [name for node in tree_of(module).body for name in named_in(node)]
    others = [name for name in names if name.split(".")[0] not in sys.stdlib_module_names]
    assert others[0] == "startup"


@pytest.mark.parametrize("module", MODULES)
def test_libraries_stay_in_their_rooms(module: str) -> None:
    for name in imports_of(module):
        for part in set(name.split(".")) & set(ONLY_HERE):
            assert is_in(module, ONLY_HERE[part]), f"{module} imports {name}"


@pytest.mark.parametrize("module", MODULES)
def test_optional_libraries_are_not_imported_at_a_files_top(module: str) -> None:
    assert not {name.split(".")[0] for name in imports_of(module, top_only=True)} & NOT_AT_THE_TOP


@pytest.mark.parametrize("module", MODULES)
def test_one_file_loads_and_one_saves_and_always_weights_only(module: str) -> None:
    for node in ast.walk(tree_of(module)):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("torch.save", "torch.load"):
            loads = ast.unparse(node.func) == "torch.load"
            allowed = "training.torch_file" if loads else "training.checkpoint"
            assert module == allowed, f"{module} line {node.lineno} calls {ast.unparse(node.func)}"
            if loads:
                assert "weights_only=True" in ast.unparse(node)


@pytest.mark.parametrize("module", MODULES)
def test_importing_a_file_does_no_work(module: str) -> None:
    allowed = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign)
    for node in tree_of(module).body:
        docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        main_guard = isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'"
        before_import = ast.unparse(node).startswith("os.environ.setdefault('NO_ALBUMENTATIONS_UPDATE'")
        before_import |= module == "startup" and isinstance(node, ast.If)
        assert isinstance(node, allowed) or docstring or main_guard or before_import, f"{module} line {node.lineno}"
        if isinstance(node, (ast.Assign, ast.AnnAssign)):
            calls = {ast.unparse(call.func) for call in ast.walk(node) if isinstance(call, ast.Call)}
            harmless = {"Between", "ColourSpace", "Config", "Entry", "Layout", "Path", "Source", "TypeVar"}
            harmless |= {"ENTRIES.items", "PRESET_VALUES.items", "enumerate", "math.radians"}
            harmless |= {"np.array", "re.compile", "signal.getsignal", "tyro.conf.arg"}
            assert calls <= harmless, f"{module} {calls}"


def test_every_package_is_a_docstring_and_no_code() -> None:
    for path in ROOT.glob("*/__init__.py"):
        (statement,) = ast.parse(path.read_text()).body
        assert ast.get_docstring(ast.parse(path.read_text())), path
        assert isinstance(statement, ast.Expr)
