"""The commit of this program, which the records of runs and the cards of weights name."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from utils import printable

ROOT = Path(__file__).parent.parent


def source_commit() -> str:
    """The program's commit, and whether files were changed after it.

    Raises:
        LookupError: the commit is not known, because of what the message says.
    """
    git = shutil.which("git")
    if git is None or not (ROOT / ".git").exists():
        raise LookupError("the program does not lie in a git checkout")
    question = ["describe", "--always", "--exclude=*", "--abbrev=40", "--dirty=, with changes that are not committed"]
    done = subprocess.run([git, "-C", str(ROOT), *question], capture_output=True, check=False)
    if done.returncode:
        raise LookupError(f"git ends with status {done.returncode}")
    return printable(done.stdout.decode(errors="replace").strip())
