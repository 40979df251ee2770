"""What a run shows of itself: TensorBoard, metrics.csv, sample grids, warnings, and lines or a bar on the terminal."""

from __future__ import annotations

import csv
import json
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from config import Config, to_dict
from training import distributed
from training.health import WINDOW, Symptom, symptoms_in_images, symptoms_in_losses
from utils import atomic_write, image_grid, quantize, tensor_to_image


class RunLog:
    """Writes into a run's folder; after a resume, what an interrupted run logged beyond its checkpoint is replaced.

    Args:
        run_dir: the run's folder.
        step: steps already finished.
        num_steps: steps at the end of the run.
        steps_per_epoch: steps in one epoch.
        config: the run's configuration, logged as text.
    """

    def __init__(self, run_dir: Path, step: int, num_steps: int, steps_per_epoch: int, config: Config) -> None:
        self.run_dir, self.steps_per_epoch = run_dir, steps_per_epoch
        self.num_steps = num_steps
        self.images_per_step = 2 * config.batch_size * distributed.count()  # of both domains
        self.names = {"ab": f"{config.domain_a} to {config.domain_b}", "ba": f"{config.domain_b} to {config.domain_a}"}
        self.newest_rows: list[dict[str, float]] = []
        self.warned: set[str] = set()
        self.sums: dict[str, Tensor] = {}
        self.num_summed = 0
        self.since = time.perf_counter()
        self.tensorboard = SummaryWriter(str(run_dir), purge_step=step + 1)
        self.tensorboard.add_text("config", f"```json\n{json.dumps(to_dict(config), indent=2)}\n```", step)
        self._drop_metrics_after(step)
        self.bar = tqdm(total=num_steps, initial=step, unit="step", disable=None, dynamic_ncols=True)

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *exception: object) -> None:
        self.bar.close()
        self.tensorboard.close()

    def collect(self, values: dict[str, Tensor]) -> None:
        """Add one step's scalars, tensors on any device, to the means that `write` reports."""
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0) + value
        self.num_summed += 1
        self.bar.update()

    def write(self, step: int, learning_rate: float) -> dict[str, float]:
        """Report the means since the last call under this step, and return them by name."""
        seconds, self.since = time.perf_counter() - self.since, time.perf_counter()
        row = {name: float(total) / self.num_summed for name, total in self.sums.items()}
        row["learning_rate"] = learning_rate
        row["images_per_second"] = self.images_per_step * self.num_summed / seconds
        self.sums, self.num_summed = {}, 0
        for name, value in row.items():
            self.tensorboard.add_scalar(name, value, step)
        self.tensorboard.flush()
        self._append_metrics({"step": step, **row})
        self._show(step, row)
        self.newest_rows = [*self.newest_rows[1 - WINDOW :], row]
        self._warn(step, symptoms_in_losses(self.newest_rows))
        return row

    def sample(self, step: int, views: Sequence[Tensor]) -> Path:
        """Save sample translations as samples/step_NNNNNNNN.png and to TensorBoard; warn of what is wrong with them.

        Args:
            step: finished steps.
            views: real_a, fake_b, rec_a, real_b, fake_a, rec_b: the grid's columns, each (N, 3, H, W) in [-1, 1].

        Returns:
            The picture's path.
        """
        for direction, images in (("ab", views[:3]), ("ba", views[3:])):
            real, fake, rec = (image.float() for image in images)
            self._warn(step, symptoms_in_images(self.names[direction], real, fake, rec, step / self.num_steps))
        grid = image_grid(views)
        path = self.run_dir / "samples" / f"step_{step:08d}.png"
        with atomic_write(path) as file:
            tensor_to_image(grid).save(file, "PNG")
        self.tensorboard.add_image("samples", quantize(grid), step)
        return path

    def evaluation(self, step: int, values: dict[str, float]) -> None:
        """Show what was measured on held-out images, in TensorBoard and as a line."""
        for name, value in values.items():
            self.tensorboard.add_scalar(f"evaluation/{name}", value, step)
        self.say(f"evaluation after step {step}: " + "  ".join(f"{name} {value:.3f}" for name, value in values.items()))

    def _warn(self, step: int, signs: Iterable[Symptom]) -> None:
        """Tell of each sign once in a run, on the terminal and in TensorBoard."""
        for sign in signs:
            if sign.name not in self.warned:
                self.warned.add(sign.name)
                self.say(f"{sign} (step {step})")
                self.tensorboard.add_text("health", str(sign), step)

    def say(self, text: str) -> None:
        """Print a line, above the bar where there is one."""
        tqdm.write(text)
        sys.stdout.flush()

    def _show(self, step: int, row: dict[str, float]) -> None:
        epoch = -(-step // self.steps_per_epoch)
        brief = {"gan": ("loss/gan_ab", "loss/gan_ba"), "cycle": ("loss/cycle_a", "loss/cycle_b"),
                 "disc": ("loss/disc_a", "loss/disc_b")}  # fmt: skip
        losses = "  ".join(f"{label} {sum(row[name] for name in names) / 2:.3f}" for label, names in brief.items())
        speed = row["images_per_second"]
        self.bar.set_description(f"epoch {epoch}", refresh=False)
        self.bar.set_postfix_str(f"{losses}  {speed:.1f} images/s")
        if self.bar.disable:
            left = tqdm.format_interval((self.num_steps - step) * self.images_per_step / speed)
            self.say(f"step {step}/{self.num_steps}  epoch {epoch}  {losses}  {speed:.1f} images/s  {left} left")

    def _append_metrics(self, row: dict[str, float]) -> None:
        path = self.run_dir / "metrics.csv"
        is_new = not path.exists()
        with open(path, "a", newline="") as file:
            writer = csv.DictWriter(file, row)
            if is_new:
                writer.writeheader()
            writer.writerow(row)

    def _drop_metrics_after(self, step: int) -> None:
        """Drop rows beyond `step`, which a resumed run will write again, and a last row cut short."""
        path = self.run_dir / "metrics.csv"
        if not path.exists():
            return
        header, *lines = path.read_text(errors="replace").splitlines(keepends=True) or [""]
        rows = [line for line in lines if line.endswith("\n") and line.split(",")[0].isdecimal()]
        kept = [line for line in rows if int(line.split(",")[0]) <= step]
        if kept:
            with atomic_write(path) as file:
                file.write_text(header + "".join(kept))
        else:
            path.unlink()
