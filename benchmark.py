"""How fast is it here: the training step, translation, the reading of images and the start, with the knobs of train.py.

`python benchmark.py --compare plain` runs a textbook step in turn with ours and prints the ratios.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from config import PRESETS, Config, parse_args
from dataset import EpochBatches, Folders, UnpairedDataset, build_loader, running, training_images
from generator_model import InstanceNorm
from train import open_device, train_step
from training.model import BETA2, CycleGAN
from training.textbook_step import textbook_step
from utils import UserError, command, printable, seed_everything, uses_bf16

WARM_UP = 2  # steps before the clock runs
BATCHES = (1, 8, 32)  # of translation
MATMUL_SIDE = {"cpu": 2048, "cuda": 8192}  # of the square matrices whose product is taken for the machine's peak
MADE_UP_IMAGES = 64  # of each domain, where there is no data set to read
STEPS_A_TURN = {"cpu": 1, "cuda": 10}  # a GPU is not waited for after each, as in training
SECONDS = 3.0  # each thing but the training step is repeated for this long
Row = dict[str, float]


@dataclass
class Meter:
    """Bytes of the tensors that autograd keeps for the backward pass, now and at most."""

    kept: int = 0
    peak: int = 0


class _Kept:
    """A tensor in autograd's keeping, which tells the meter when it comes and goes."""

    def __init__(self, tensor: Tensor, meter: Meter, owners: dict[int, int]) -> None:
        self.tensor, self.meter, self.owners = tensor, meter, owners
        storage = tensor.untyped_storage()
        self.address, self.num_bytes = storage.data_ptr(), storage.nbytes()
        owners[self.address] = owners.get(self.address, 0) + 1
        if owners[self.address] == 1:
            meter.kept += self.num_bytes
            meter.peak = max(meter.peak, meter.kept)

    def __del__(self) -> None:
        self.owners[self.address] -= 1
        if not self.owners[self.address]:
            self.meter.kept -= self.num_bytes


@contextmanager
def activations() -> Iterator[Meter]:
    """Measure what autograd keeps inside the block, weights left out: the part of memory that grows with the images."""
    meter, owners = Meter(), dict[int, int]()

    def pack(tensor: Tensor) -> Tensor | _Kept:
        return tensor if isinstance(tensor, nn.Parameter) else _Kept(tensor, meter, owners)

    with saved_tensors_hooks(pack, lambda kept: kept.tensor if isinstance(kept, _Kept) else kept):
        yield meter


def seconds_of(action: Callable[[], object], device: torch.device, calls: int = 1) -> float:
    """Wall time of one call, or the mean of several, on a GPU until all their work is done."""

    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    start = now()
    for _ in range(calls):
        action()
    return (now() - start) / calls


def median_seconds(action: Callable[[], object], device: torch.device) -> float:
    """The median of calls that together last for SECONDS, after two that do not count; three calls at least."""
    for _ in range(WARM_UP):
        seconds_of(action, device)
    times: list[float] = []
    while len(times) < 3 or sum(times) < SECONDS:
        times.append(seconds_of(action, device))
    return statistics.median(times)


def our_step(config: Config, device: torch.device, images: tuple[Tensor, Tensor]) -> Callable[[], object]:
    """The training step as train.py makes it, as a function to be called again and again."""
    seed_everything(config.seed)
    model, steps = CycleGAN(config, device, amp=uses_bf16(config.amp, device)), itertools.count()

    def step() -> None:
        train_step(model, *images, config=config)
        model.update_averages(next(steps), config.ema_decay)

    return step


def plain_step(config: Config, device: torch.device, images: tuple[Tensor, Tensor]) -> Callable[[], object]:
    """A textbook step with the same networks and losses: eager, float32, no terms joined, the whole graph alive."""
    seed_everything(config.seed)
    model = CycleGAN(replace(config, compile=False, recompute=False), device)
    nets = plain_networks(model)
    opt_gen, opt_disc = (
        torch.optim.Adam([*first.parameters(), *second.parameters()], config.learning_rate, (config.beta1, BETA2))
        for first, second in ((model.gen_ab, model.gen_ba), (model.disc_a, model.disc_b))
    )
    pools = {"a": model.pool_a, "b": model.pool_b}
    return lambda: textbook_step(nets, opt_gen, opt_disc, pools, *images, config.lambda_cycle, config.lambda_identity,
                                  config.gan_sigmoid, config.disc_first)  # fmt: skip


def plain_networks(model: CycleGAN) -> dict[str, nn.Module]:
    """The four networks with torch's own instance norm in the place of ours."""
    nets: dict[str, nn.Module] = {name: getattr(model, name) for name in ("gen_ab", "gen_ba", "disc_a", "disc_b")}
    sequences = [layer for net in nets.values() for layer in net.modules() if isinstance(layer, nn.Sequential)]
    for layers in sequences:
        for index, layer in enumerate(layers):
            if isinstance(layer, InstanceNorm):
                layers[index] = nn.InstanceNorm2d(int(layers[index - 1].out_channels))  # type: ignore[arg-type]
    return nets


def memory_of(step: Callable[[], object], device: torch.device) -> float:
    """Bytes at the peak of a step, over what stays between steps; on a CPU only what is kept for the backward pass."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        return float(torch.cuda.max_memory_allocated(device) - before)
    with activations() as meter:
        step()
    return float(meter.peak)


def measure_training(config: Config, device: torch.device, num_steps: int, other: Config | None) -> tuple[Row, Row]:
    """Our step and, in turn with it, the plain step of another configuration; the second row holds the ratios."""
    shape = (config.batch_size, 3, config.image_size, config.image_size)
    images = torch.rand(shape, device=device) * 2 - 1, torch.rand(shape, device=device) * 2 - 1
    first_call = time.perf_counter()
    ours = our_step(config, device, images)
    seconds_of(ours, device)
    row = {"first step, s": time.perf_counter() - first_call}
    with FlopCounterMode(display=False) as counter:
        our_step(replace(config, compile=False, recompute=False), device, images)()
    row["TFLOP per step"] = counter.get_total_flops() / 1e12
    plain = plain_step(other, device, images) if other else ours
    for step in (ours, plain) * WARM_UP:
        step()
    turn = STEPS_A_TURN.get(device.type, 1)
    pairs = [
        (seconds_of(ours, device, turn), seconds_of(plain, device, turn) if other else 0.0) for _ in range(num_steps)
    ]
    row["s per step"] = statistics.median(mine for mine, _ in pairs)
    row["images/s"] = 2 * config.batch_size / row["s per step"]
    row["TFLOP/s"] = row["TFLOP per step"] / row["s per step"]
    row["peak MB"] = memory_of(ours, device) / 1e6
    if not other:
        return row, {}
    speed = statistics.median(theirs / mine for mine, theirs in pairs)
    return row, {"times as fast": speed, "share of the memory": row["peak MB"] * 1e6 / memory_of(plain, device)}


def matmul_peak(device: torch.device, dtype: torch.dtype) -> float:
    """TFLOP/s of a large matrix product: what the machine can do, measured in this very run."""
    side = MATMUL_SIDE.get(device.type, MATMUL_SIDE["cpu"])
    matrix = torch.randn(side, side, device=device, dtype=dtype)
    return 2 * side**3 / median_seconds(lambda: matrix @ matrix, device) / 1e12


def measure_translation(config: Config, device: torch.device, compare: bool) -> dict[str, Row]:
    """Translation of batches of several sizes by one generator, and by the same one in float32 as plain as can be."""
    amp, rows = uses_bf16(config.amp, device), dict[str, Row]()
    model = CycleGAN(config, device, amp=amp)
    plain = plain_networks(CycleGAN(replace(config, compile=False), device))["gen_ab"]

    @torch.inference_mode()
    def translate(generator: nn.Module, images: Tensor, in_bf16: bool) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=in_bf16):
            translated: Tensor = generator(images)
        return translated

    for size in BATCHES:
        images = torch.rand(size, 3, config.image_size, config.image_size, device=device) * 2 - 1
        ours = median_seconds(lambda x=images: translate(model.gen_ab, x, amp), device)  # type: ignore[misc]
        rows[f"batch {size}"] = {"images/s": size / ours}
        if compare:
            theirs = median_seconds(lambda x=images: translate(plain, x, False), device)  # type: ignore[misc]
            rows[f"batch {size}"]["times as fast"] = theirs / ours
    return rows


def measure_data(config: Config) -> dict[str, Row]:
    """Batches per second that the images are read and augmented with, by different numbers of processes."""
    rows: dict[str, Row] = {}
    with tempfile.TemporaryDirectory() as folder:
        images, name = find_or_make_images(config, Path(folder))
        dataset = UnpairedDataset(images[0].files, images[1].files, config)
        for num_workers in sorted({0, 2, os.cpu_count() or 1}):
            batches = EpochBatches(len(dataset), config.batch_size, config.seed, 0, 10**6)
            with running(build_loader(dataset, batches, num_workers)) as pairs:
                for _ in range(10 + 4 * num_workers):  # workers read ahead: empty what they did before the clock ran
                    next(pairs)
                start, count = time.perf_counter(), 0
                while time.perf_counter() - start < SECONDS:
                    next(pairs)
                    count += 1
                rows[f"{name}, {num_workers} workers"] = {"steps/s": count / (time.perf_counter() - start)}
    return rows


def find_or_make_images(config: Config, folder: Path) -> tuple[Folders, str]:
    """The configuration's training images or, where there are none, made-up JPEGs of its size; and what they are."""
    if Path(config.data_dir).is_dir():
        return training_images(config), printable(config.data_dir)
    for domain, first in (("a", 0), ("b", MADE_UP_IMAGES)):
        place = folder / "train" / domain
        place.mkdir(parents=True)
        for seed in range(first, first + MADE_UP_IMAGES):
            coarse = np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8)
            size = (config.image_size, config.image_size)
            Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(place / f"{seed}.jpg", quality=90)
    made_up = replace(config, data_dir=str(folder), domain_a="a", domain_b="b")
    return training_images(made_up), f"made-up {config.image_size} px JPEGs"


def seconds_to_import() -> float:
    """From the start of Python until train.py is loaded, in a process of its own."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import train"], cwd=Path(__file__).parent, check=True)
    return time.perf_counter() - start


def table(title: str, rows: dict[str, Row]) -> str:
    """Rows of figures as Markdown."""
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    lines = [f"| {title} | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name, row in rows.items():
        lines.append(f"| {name} | " + " | ".join(f"{row[c]:.3g}" if c in row else "" for c in columns) + " |")
    return "\n".join(lines)


def run(args: argparse.Namespace, config: Config) -> dict[str, Any]:
    """Measure what was asked for, print a table of each, and return all figures."""
    device = open_device(config)
    amp = uses_bf16(config.amp, device)
    threads = f"{torch.get_num_threads()} CPU threads"
    figures: dict[str, Any] = {
        "machine": torch.cuda.get_device_name(device) if device.type == "cuda" else threads,
        "torch": torch.__version__,
        "precision": "bfloat16" if amp else "TF32" if device.type == "cuda" else "float32",
        "network": f"{config.image_size} px, {config.base_channels} channels, {config.resolved_num_residuals} blocks",
        "batch": config.batch_size,
    }
    print("; ".join(f"{name} {value}" for name, value in figures.items()) + "\n")
    if "train" in args.parts:
        knobs = {"plain": config, "paper": paper_of(config)}
        row, ratios = measure_training(config, device, args.steps, knobs.get(args.compare))
        peak = matmul_peak(device, torch.bfloat16 if amp else torch.float32)
        row |= {"peak TFLOP/s": peak, "share of the peak": row["TFLOP/s"] / peak}
        figures["train"] = row
        print(table("training", {"ours": row}) + "\n")
        if ratios:
            figures[f"against {args.compare}"] = ratios
            print(table("training", {f"against {args.compare}": ratios}) + "\n")
    if "translate" in args.parts:
        figures["translate"] = measure_translation(config, device, bool(args.compare))
        print(table("translation", figures["translate"]) + "\n")
    if "data" in args.parts:
        figures["data"] = measure_data(config)
        print(table("reading", figures["data"]) + "\n")
    if "start" in args.parts:
        figures["start"] = {"import train, s": seconds_to_import()}
        print(table("start", {"": figures["start"]}) + "\n")
    return figures


def paper_of(config: Config) -> Config:
    """The `paper` preset's networks and losses at this configuration's size, width, depth and batch."""
    return replace(PRESETS["paper"], image_size=config.image_size, base_channels=config.base_channels,
                   num_residuals=config.num_residuals, batch_size=config.batch_size, seed=config.seed)  # fmt: skip


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Measure what the command line asks for."""
    parts = ["train", "translate", "data", "start"]
    parser = argparse.ArgumentParser(description=__doc__, epilog="Any other flag is one of train.py.")
    against = "run a textbook step in turn: of the same networks and losses, or of the paper's"
    parser.add_argument("--compare", choices=["plain", "paper"], help=against)
    parser.add_argument("--parts", nargs="+", choices=parts, default=parts, help="what to measure (default: all)")
    parser.add_argument(
        "--steps",
        type=int,
        default=10,
        help="training steps to time (default 10); on a GPU ten times as many, ten at a stretch",
    )
    parser.add_argument("--json", action="store_true", help="print all figures as JSON on the last line")
    args, knobs = parser.parse_known_args(argv)
    if args.steps < 1:
        parser.error(f"--steps must be at least 1, got {args.steps}")
    config = parse_args(knobs)
    if args.compare and config.diff_augment != "none":
        raise UserError("the textbook step does not support --diff-augment: leave it out, or leave out --compare")
    figures = run(args, config)
    if args.json:
        print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
