"""Import this first: it prepares a program for what happens while the rest is imported, which takes seconds.

**Threads.** Torch's CPU operators are split among threads, and a thread that has finished its part waits for the others
in a loop that keeps its core busy. On a quiet machine that is fastest. Where other programs want the cores, the loop
takes them from the very thread that it waits for, and a training step becomes many times slower. A short loop, after
which the thread sleeps, costs little on a quiet machine and avoids this, see docs/PERFORMANCE.md. GNU OpenMP, which
torch uses on Linux, reads its settings once, when torch is imported. Processes that this one starts, such as those that
load images, inherit them. Anything that the user has set stays.

**Ctrl-C.** Until `console.command` takes over, it ends our programs at once, instead of with a traceback out of an
import. Other programs that import ours keep their own ways.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

SPIN_COUNT = 3000  # A waiting thread goes to sleep after this many turns of the loop.
USERS_CHOICES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "OMP_NUM_THREADS")  # Each of these decides how threads wait.


def is_ours(program: str | None) -> bool:
    """Whether a program, the path of its file, lies beside this file."""
    return program is not None and Path(program).resolve().parent == Path(__file__).resolve().parent


if not any(name in os.environ for name in USERS_CHOICES):
    os.environ["GOMP_SPINCOUNT"] = str(SPIN_COUNT)

has_usual_ctrl_c = signal.getsignal(signal.SIGINT) == signal.default_int_handler
if has_usual_ctrl_c and is_ours(getattr(sys.modules["__main__"], "__file__", None)):
    signal.signal(signal.SIGINT, signal.SIG_DFL)
