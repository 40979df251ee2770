"""Import this before torch: it keeps the threads of OpenMP from slowing each other down on a busy machine.

Torch's CPU operators are split among threads, and a thread that has finished its part waits for the others in a loop
that keeps its core busy. On a quiet machine that is fastest. Where other programs want the cores, the loop takes them
from the very thread that it waits for, and a training step becomes many times slower. A short loop, after which the
thread sleeps, costs little on a quiet machine and avoids this, see docs/PERFORMANCE.md.

GNU OpenMP, which torch uses on Linux, reads its settings once, when torch is imported. Processes that this one starts,
such as those that load images, inherit them. Anything that the user has set stays.
"""

from __future__ import annotations

import os

SPIN_COUNT = 3000  # A waiting thread goes to sleep after this many turns of the loop.
USERS_CHOICES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "OMP_NUM_THREADS")  # Each of these decides how threads wait.

if not any(name in os.environ for name in USERS_CHOICES):
    os.environ["GOMP_SPINCOUNT"] = str(SPIN_COUNT)
