"""Logs a run to TensorBoard, to metrics.csv, to sample grids, and to lines or a progress bar on the terminal."""

from __future__ import annotations

import json
import math
import shlex
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from config import to_dict
from console import count
from training import distributed, health_page
from training.health import WINDOW, Symptom, symptoms_in_images, symptoms_in_losses
from training.metrics_file import append_row, drop_rows_after
from training.model import CycleGAN
from training.run import Run
from training.sample_sheet import column_titles, names_to_draw, titled_grid
from utils import atomic_write, printable


class RunLog:
    """Logs a run into its folder; a resumed run replaces what was logged after its checkpoint.

    Args:
        run: the run, at the step from which it continues.
        domains: what messages call domains a and b; None for the names in the configuration.
        device: what the page "Is it healthy?" calls the device and its precision.
    """

    def __init__(self, run: Run, domains: tuple[str, str] | None = None, *, device: str = "cpu") -> None:
        config = run.config
        self.run_dir = run.folder
        self.num_steps = run.num_steps
        self.steps_per_epoch = run.steps_per_epoch
        self.images_per_step = 2 * config.batch_size * distributed.count()  # counts both domains and all processes
        a, b = domains or (config.domain_a, config.domain_b)
        self.names = {"ab": f"{a} to {b}", "ba": f"{b} to {a}"}
        a_drawn, b_drawn = names_to_draw((a, b))
        self.titles = {"ab": column_titles(a_drawn, b_drawn), "ba": column_titles(b_drawn, a_drawn)}
        self.newest_rows: deque[dict[str, float]] = deque(maxlen=WINDOW)  # the last rows of metrics.csv
        self.warned: set[str] = set()  # the names of the symptoms that were reported
        self.sums: dict[str, Tensor] = {}  # the sums of all scalars since the last row
        self.num_summed = 0  # how many steps these sums cover
        self.last_write = time.perf_counter()
        self.around = ExitStack()
        self.around.enter_context(_quiet_writers())
        self.tensorboard: SummaryWriter | None = None
        try:
            self.tensorboard = SummaryWriter(str(run.folder), purge_step=run.step + 1)
        except OSError as error:
            self._give_up_tensorboard(error)
        text = f"```json\n{json.dumps(to_dict(config), indent=2)}\n```"
        self._to_tensorboard(lambda board: board.add_text("config", text, run.step))
        self._to_tensorboard(lambda board: board.add_custom_scalars(health_page.charts((a, b))))
        self.warnings = health_page.read_warnings(self.run_dir / "warnings.txt", run.step)
        command = health_page.command_line(sys.argv)
        self.health_text = ""  # what the page says in TensorBoard
        self.health_page = partial(
            health_page.page, config, command=command, commit=health_page.commit(), device=device
        )
        self._show_health(run.step)
        self._say_kept(drop_rows_after(self.run_dir / "metrics.csv", run.step))
        self.bar = tqdm(total=run.num_steps, initial=run.step, unit="step", disable=None, dynamic_ncols=True)

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *exception: object) -> None:
        self.bar.close()
        self._to_tensorboard(lambda board: board.close())
        self.around.close()

    def collect(self, values: dict[str, Tensor]) -> None:
        """Add one step's scalars, tensors on any device, to the means that the next `write` reports."""
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0) + value
        self.num_summed += 1
        self.bar.update()

    def write(self, step: int, learning_rate: float) -> dict[str, float]:
        """Log the means since the last call and warn of symptoms in them; returns the means by name.

        Args:
            step: how many steps are finished; the means are logged under this step.
            learning_rate: the learning rate of the last step.
        """
        now = time.perf_counter()
        seconds = now - self.last_write
        self.last_write = now
        row = {name: float(total) / self.num_summed for name, total in self.sums.items()}
        row["learning_rate"] = learning_rate
        row["images_per_second"] = self.images_per_step * self.num_summed / seconds
        self.sums = {}
        self.num_summed = 0
        self._add_scalars(row, step)
        self._to_tensorboard(lambda board: board.flush())
        self._say_kept(append_row(self.run_dir / "metrics.csv", {"step": step, **row}))
        self._report_progress(step, row)
        self.newest_rows.append(row)
        self._warn(step, symptoms_in_losses(list(self.newest_rows)))
        return row

    def sample(self, step: int, columns: Sequence[Tensor]) -> Path:
        """Log sample translations to samples/step_NNNNNNNN.png and to TensorBoard; warn of symptoms in them.

        Args:
            step: how many steps are finished.
            columns: the grid's columns real_a, fake_b, rec_a, real_b, fake_a, rec_b, each (N, 3, H, W) in [-1, 1].

        Returns:
            The path of the grid.
        """
        progress, caption = step / self.num_steps, f"step {step} of {self.num_steps}"
        found: list[Symptom] = []
        for direction, images in (("ab", columns[:3]), ("ba", columns[3:])):
            real, fake, rec = (image.float() for image in images)
            found += symptoms_in_images(self.names[direction], real=real, fake=fake, rec=rec, progress=progress)
            sheet = titled_grid(images, self.titles[direction], caption)
            self._add_image(f"samples/{direction}", sheet, step)
        self._warn(step, found)
        path = self.run_dir / "samples" / f"step_{step:08d}.png"
        with atomic_write(path) as file:
            titled_grid(columns, self.titles["ab"] + self.titles["ba"], caption).save(file, "PNG")
        self._show_health(step)
        return path

    def evaluation(self, step: int, values: dict[str, float]) -> None:
        """Log measures on held-out images, by name, to TensorBoard and as a line on the terminal."""
        self._add_scalars({f"evaluation/{name}": value for name, value in values.items()}, step)
        self.say(f"evaluation after step {step}: " + "  ".join(f"{name} {value:.3f}" for name, value in values.items()))

    def _warn(self, step: int, symptoms: Iterable[Symptom]) -> None:
        """Report each symptom on the terminal and in TensorBoard, unless this process has reported it before."""
        new = {symptom.name: symptom for symptom in symptoms if symptom.name not in self.warned}
        for symptom in new.values():
            self.warnings.append(f"{symptom} (step {step})")
            self.say(self.warnings[-1])
        if new:
            self.warned |= new.keys()
            health_page.write_warnings(self.run_dir / "warnings.txt", self.warnings)
            self._show_health(step)

    def _show_health(self, step: int) -> None:
        """Write the text of the page "Is it healthy?" to TensorBoard, as it is after `step`."""
        text = self.health_page(step=step, warnings=self.warnings)
        if text != self.health_text:
            self.health_text = text
            self._to_tensorboard(
                partial(SummaryWriter.add_text, tag=health_page.TEXT_TAG, text_string=text, global_step=step)
            )

    def _add_image(self, name: str, image: Image.Image, step: int) -> None:
        """Add a picture, by name, to TensorBoard's file."""
        pixels = np.asarray(image)  # (H, W, 3) uint8
        self._to_tensorboard(
            partial(SummaryWriter.add_image, tag=name, img_tensor=pixels, global_step=step, dataformats="HWC")
        )

    def say(self, text: str) -> None:
        """Print a line of text, above the progress bar if there is one."""
        tqdm.write(text)
        sys.stdout.flush()

    def _report_progress(self, step: int, row: dict[str, float]) -> None:
        """Report the epoch, the losses, as means of both domains, and the speed: on the bar, or else in a line."""
        epoch = math.ceil(step / self.steps_per_epoch)
        gan = (row["loss/gan_ab"] + row["loss/gan_ba"]) / 2
        cycle = (row["loss/cycle_a"] + row["loss/cycle_b"]) / 2
        disc = (row["loss/disc_a"] + row["loss/disc_b"]) / 2
        losses = f"gan {gan:.3f}  cycle {cycle:.3f}  disc {disc:.3f}"
        speed = row["images_per_second"]
        self.bar.set_description(f"epoch {epoch}", refresh=False)
        self.bar.set_postfix_str(f"{losses}  {speed:.1f} images/s")
        if self.bar.disable:
            remaining = tqdm.format_interval((self.num_steps - step) * self.images_per_step / speed)
            self.say(f"step {step}/{self.num_steps}  epoch {epoch}  {losses}  {speed:.1f} images/s  {remaining} left")

    def _add_scalars(self, values: dict[str, float], step: int) -> None:
        """Add scalars, by name, to TensorBoard's file."""
        for name, value in values.items():
            self._to_tensorboard(partial(SummaryWriter.add_scalar, tag=name, scalar_value=value, global_step=step))

    def _say_kept(self, kept: Path | None) -> None:
        """Say where a metrics.csv is kept that another program has changed."""
        if kept:
            self.say(f"metrics.csv holds more than this program has written: it is kept as {printable(kept)}")

    def _to_tensorboard(self, add: Callable[[SummaryWriter], object]) -> None:
        """Add something to TensorBoard's file; where that fails, say so once, and go on without it.

        A thread of its own writes the file, so that an error appears in a later call.
        """
        if self.tensorboard is None:
            return
        try:
            add(self.tensorboard)
        except OSError as error:
            self._give_up_tensorboard(error)

    def _give_up_tensorboard(self, error: OSError) -> None:
        self.tensorboard = None
        self.say(f"warning: TensorBoard's file cannot be written ({error}); training goes on without it")


@contextmanager
def _quiet_writers() -> Iterator[None]:
    """Print no traceback when TensorBoard's thread cannot write: `RunLog` reports the same error in the next call."""
    previous = threading.excepthook

    def hook(arguments: threading.ExceptHookArgs) -> None:
        is_writer = type(arguments.thread).__module__.startswith("tensorboard.")
        if not (is_writer and isinstance(arguments.exc_value, OSError)):
            previous(arguments)

    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = previous


def open_log(run: Run, model: CycleGAN, *, num_images: tuple[int, int], domains: tuple[str, str]) -> RunLog | None:
    """Save the configuration, say what is trained on what, and open the run's log; None in all but one process."""
    if distributed.rank() > 0:
        return None
    run.save_config()
    counts = f"{num_images[0]} {domains[0]} and {count(num_images[1], f'{domains[1]} image')}"
    precision = " in bf16" if model.amp else ""
    others = f", the first of {distributed.count()} processes" if distributed.count() > 1 else ""
    print(
        f"{counts}; {printable(run.folder)}: step {run.step} of {run.num_steps}, on {model.device}{precision}{others}"
    )
    return RunLog(run, domains, device=f"{health_page.device_name(model.device)}{precision}{others}")


def say_finished_already(run: Run) -> None:
    """Say that the run is complete, and how to continue it."""
    limit = "--max-steps" if 0 < run.config.max_steps <= run.step else "--num-epochs"
    where = printable(run.folder)
    print(f"{where} is finished: {run.step} steps; to continue raise {limit}, or choose another --run-name")


def sample_files(run: Run) -> list[Path]:
    """The run's sample grids up to its step, in the order of their steps."""
    files = sorted((run.folder / "samples").glob("step_*.png"))
    return [file for file in files if file.stem <= f"step_{run.step:08d}"]


def say_what_next(run: Run, images: Path) -> None:
    """Say how to translate with the run, with a folder of images of domain a as the example, and how to look at it."""
    weights, photos, runs = (
        printable(shlex.quote(path.as_posix())) for path in (run.folder, images, Path(run.config.runs_dir))
    )
    print(f"to translate with it, these or your own images: python translate.py {photos} --weights {weights}")
    print(f"to look at it: tensorboard --logdir {runs} and open {health_page.ADDRESS}")
