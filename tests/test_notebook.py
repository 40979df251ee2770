"""The notebook is kept without outputs and runs from top to bottom in a clone, without network."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

NOTEBOOK = ROOT / "notebooks" / "quickstart.ipynb"
NOT_COPIED = (".*", "dataset", "runs", "translated", "evaluated", "my_photos", "__pycache__")


def cells_of(kind: str) -> list[dict[str, Any]]:
    return [cell for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == kind]


def test_the_notebook_is_kept_without_outputs() -> None:
    for cell in cells_of("code"):
        assert cell["outputs"] == []
        assert cell["execution_count"] is None


def test_the_links_of_the_notebook_lead_somewhere_and_its_python_is_valid() -> None:
    pages = [word.split(")")[0] for cell in cells_of("markdown") for word in "".join(cell["source"]).split("](")[1:]]
    assert pages
    assert [page for page in pages if not (NOTEBOOK.parent / page).exists()] == []
    for cell in cells_of("code"):
        lines = [line for line in cell["source"] if not line.lstrip().startswith(("!", "%"))]
        compile("".join(lines), "cell", "exec")


@pytest.fixture
def clone(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the repository with a photograph of the user's; whatever TensorBoard leaves running is ended."""
    shutil.copytree(ROOT, tmp_path / "clone", ignore=shutil.ignore_patterns(*NOT_COPIED))
    shutil.copytree(ROOT / "assets" / "photos", tmp_path / "clone" / "my_photos")
    temporary = tmp_path_factory.getbasetemp() / "t"  # a short path: workers of a training have sockets there
    temporary.mkdir()
    for name, value in {
        "STEPS": "2",
        "OMP_NUM_THREADS": "1",
        "TMPDIR": str(temporary),  # TensorBoard notes its servers there
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "https_proxy": "http://127.0.0.1:9",  # nobody answers there
    }.items():
        monkeypatch.setenv(name, value)
    yield tmp_path / "clone"
    for note in (temporary / ".tensorboard-info").glob("pid-*.info"):
        os.kill(json.loads(note.read_text())["pid"], signal.SIGTERM)


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom(clone: Path) -> None:
    nbformat = pytest.importorskip("nbformat", reason="nbformat is in requirements-extra.txt")
    nbclient = pytest.importorskip("nbclient", reason="nbclient is in requirements-extra.txt")
    notebook = nbformat.read(clone / "notebooks" / "quickstart.ipynb", as_version=4)
    client = nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(clone / "notebooks")}})
    client.execute()
    for name in ("examples", "mine", "notebook"):
        assert len(list((clone / "translated" / name).iterdir())) == len(list((ROOT / "assets" / "photos").iterdir()))
    assert (clone / "runs" / "notebook" / "samples" / "step_00000002.png").exists()
    printed = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))
    assert "finished 2 steps" in printed
    pictures = [output for cell in notebook.cells for output in cell.get("outputs", []) if "data" in output]
    assert sum("image/png" in output.data or "image/jpeg" in output.data for output in pictures) >= 7
