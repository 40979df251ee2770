"""Measure the speed and memory of training, translation, image loading and start-up on this machine.

`python benchmark.py --compare plain` runs a textbook step in turn with ours and prints the ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import startup  # noqa: F401

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from config import PRESETS, Config
from dataset import EpochBatches, Folders, UnpairedDataset, build_loader, running, training_images
from evaluation.report import markdown_table
from train import train_step
from training.command_line import parse_args
from training.cuda_graph import fastest_step, wants_graph
from training.memory_meter import peak_memory
from training.model import BETA2, CycleGAN, in_bf16
from training.run import Run, open_device
from training.textbook_step import Terms, Textbook, plain_networks, textbook_step
from utils import UserError, command, printable, seed_everything

WARM_UP = 2  # This many calls run before the clock starts.
MIN_CALLS = 3  # A median is over at least this many calls.
SECONDS = 3.0  # Everything but the training step is repeated for at least this many seconds.
STEPS_PER_TURN = {"cpu": 1, "cuda": 10}  # A GPU runs several steps before we wait for it, as it does in training.
TRANSLATION_BATCHES = (1, 8, 32)  # Translation is measured with these batch sizes.
MATMUL_SIDE = {"cpu": 2048, "cuda": 8192}  # The machine's peak is measured on square matrices with this side.
NUM_MADE_UP_IMAGES = 64  # Without a data set, this many made-up images per domain are read instead.
PARTS = ("train", "translate", "data", "start")  # These parts can be chosen with --parts.
Figures = dict[str, float]  # The values of one line of a table by the names of their columns.


def seconds_of(action: Callable[[], object], device: torch.device, *, calls: int = 1) -> float:
    """Wall time of a call in seconds, averaged over `calls`; on a GPU until all of its work is done."""

    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    start = now()
    for _ in range(calls):
        action()
    return (now() - start) / calls


def median_seconds(action: Callable[[], object], device: torch.device) -> float:
    """Median wall time of a call in seconds, after warm-up, over at least MIN_CALLS calls and SECONDS."""
    for _ in range(WARM_UP):
        seconds_of(action, device)
    times: list[float] = []
    while len(times) < MIN_CALLS or sum(times) < SECONDS:
        times.append(seconds_of(action, device))
    return statistics.median(times)


def times_in_turn(
    actions: Sequence[Callable[[], object]], device: torch.device, *, num_turns: int
) -> list[list[float]]:
    """Wall times of each action, s; they run in turn, so that changes in the machine's speed affect all alike."""
    for _ in range(WARM_UP):
        for action in actions:
            action()
    times: list[list[float]] = [[] for _ in actions]
    for _ in tqdm(range(num_turns), unit=" turns", leave=False, disable=None):
        for action, own_times in zip(actions, times, strict=True):
            own_times.append(seconds_of(action, device, calls=STEPS_PER_TURN.get(device.type, 1)))
    return times


def our_step(config: Config, device: torch.device, *, images: tuple[Tensor, Tensor]) -> Callable[[], object]:
    """The training step of train.py on a new model, as a function that can be called repeatedly."""
    seed_everything(config.seed)
    model = CycleGAN(config, device, amp=in_bf16(config, device))
    run = unsaved_run(config)
    take_step = fastest_step(partial(train_step, model, config=config), model, config, say=print)

    def step() -> None:
        take_step(*images, identity_share=1.0, r1_gamma=run.r1_gamma)
        model.update_averages(run.step, config.ema_decay)
        run.step += 1

    return step


def plain_step(config: Config, device: torch.device, *, images: tuple[Tensor, Tensor]) -> Callable[[], object]:
    """A textbook step with the same networks and losses: eager, float32, one graph for all terms of the loss."""
    seed_everything(config.seed)
    model = CycleGAN(replace(config, compile=False, recompute=False), device)
    nets = plain_networks({name: getattr(model, name) for name in ("gen_ab", "gen_ba", "disc_a", "disc_b")})
    opt_gen, opt_disc = (
        torch.optim.Adam([*first.parameters(), *second.parameters()], config.learning_rate, (config.beta1, BETA2))
        for first, second in ((model.gen_ab, model.gen_ba), (model.disc_a, model.disc_b))
    )
    textbook = Textbook(nets, opt_gen, opt_disc, {"a": model.pool_a, "b": model.pool_b})
    run = unsaved_run(config)

    def step() -> None:
        textbook_step(textbook, *images, terms=textbook_terms(config, r1_gamma=run.r1_gamma))
        run.step += 1

    return step


def unsaved_run(config: Config) -> Run:
    """A run that counts its steps. It starts behind the first one, in which the gradient penalty applies."""
    return Run(Path(), config, {}, steps_per_epoch=1, step=1)


def textbook_terms(config: Config, *, r1_gamma: float) -> Terms:
    """What a configuration's step minimises, as the textbook step takes it; `r1_gamma` is the weight in this step."""
    return Terms(
        lambda_cycle=config.lambda_cycle,
        lambda_identity=config.lambda_identity,
        lambda_pair=config.lambda_pair,
        sigmoid=config.gan_sigmoid,
        disc_first=config.disc_first,
        logistic=config.gan_loss == "logistic",
        source_negatives=config.source_negatives,
        max_blur=config.disc_blur,
        r1_gamma=r1_gamma,
    )


def paper_of(config: Config) -> Config:
    """The `paper` preset's networks and losses at this configuration's size, width, depth and batch size."""
    return replace(PRESETS["paper"], image_size=config.image_size, base_channels=config.base_channels,
                   num_residuals=config.num_residuals, batch_size=config.batch_size, seed=config.seed)  # fmt: skip


def measure_training(
    config: Config, device: torch.device, *, num_turns: int, rival: Config | None
) -> tuple[Figures, Figures]:
    """Measure our step, in turn with the plain step of the configuration `rival` if there is one.

    Returns:
        Our step's measures, and the ratios of both steps' speed and memory, which are empty without a rival.
    """
    # Time the first step, which includes building the model and compiling it; count the operations of a step.
    real_a, real_b = (random_images(config, device, count=config.batch_size) for _ in "ab")
    start = time.perf_counter()
    ours = our_step(config, device, images=(real_a, real_b))
    seconds_of(ours, device)
    row = {"first step, s": time.perf_counter() - start}
    with FlopCounterMode(display=False) as counter:
        our_step(replace(config, compile=False, recompute=False), device, images=(real_a, real_b))()
    row["TFLOP per step"] = counter.get_total_flops() / 1e12

    # Time both steps, and measure their memory: ours without a CUDA graph, because that holds its memory all the time.
    steps = [ours, plain_step(rival, device, images=(real_a, real_b))] if rival else [ours]
    times = times_in_turn(steps, device, num_turns=num_turns)
    row["s per step"] = statistics.median(times[0])
    row["images/s"] = 2 * config.batch_size / row["s per step"]
    row["TFLOP/s"] = row["TFLOP per step"] / row["s per step"]
    if device.type == "cuda" and wants_graph(config):
        steps[0] = our_step(replace(config, cuda_graph="off"), device, images=(real_a, real_b))
        steps[0]()
    memory = [peak_memory(step, device) for step in steps]
    row["peak MB"] = memory[0] / 1e6
    if not rival:
        return row, {}
    speed = statistics.median(theirs / mine for mine, theirs in zip(*times, strict=True))
    return row, {"times as fast": speed, "share of the memory": memory[0] / memory[1]}


def random_images(config: Config, device: torch.device, *, count: int) -> Tensor:
    """Uniform noise of the configuration's size, (count, 3, H, W) in [-1, 1]."""
    return torch.rand(count, 3, config.image_size, config.image_size, device=device) * 2 - 1


def matmul_peak(device: torch.device, dtype: torch.dtype) -> float:
    """The machine's peak in TFLOP/s, measured now on a product of large matrices."""
    side = MATMUL_SIDE.get(device.type, MATMUL_SIDE["cpu"])
    matrix = torch.randn(side, side, device=device, dtype=dtype)
    return 2 * side**3 / median_seconds(lambda: matrix @ matrix, device) / 1e12


def measure_translation(config: Config, device: torch.device, *, compare: bool) -> dict[str, Figures]:
    """Measure one generator on batches of several sizes; if `compare`, also the plain one in float32."""
    amp = in_bf16(config, device)
    generator = CycleGAN(config, device, amp=amp).gen_ab
    plain = plain_networks({"gen_ab": CycleGAN(replace(config, compile=False), device).gen_ab})["gen_ab"]

    @torch.inference_mode()
    def translate(generator: nn.Module, images: Tensor, in_bf16: bool) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=in_bf16):
            translated: Tensor = generator(images)
        return translated

    rows: dict[str, Figures] = {}
    for size in tqdm(TRANSLATION_BATCHES, unit=" batch sizes", leave=False, disable=None):
        images = random_images(config, device, count=size)
        seconds = median_seconds(partial(translate, generator, images, amp), device)
        row = {"images/s": size / seconds}
        if compare:
            row["times as fast"] = median_seconds(partial(translate, plain, images, False), device) / seconds
        rows[f"batch {size}"] = row
    return rows


def measure_data(config: Config) -> dict[str, Figures]:
    """Measure how many batches per second are read and augmented, with different numbers of worker processes."""
    rows: dict[str, Figures] = {}
    with tempfile.TemporaryDirectory() as folder:
        images, name = find_or_make_images(config, Path(folder))
        dataset = UnpairedDataset(images[0].files, images[1].files, config)
        for num_workers in sorted({0, 2, os.cpu_count() or 1}):
            batches = EpochBatches(len(dataset), config.batch_size, config.seed, 0, 10**6)
            with running(build_loader(dataset, batches, num_workers)) as pairs:
                for _ in range(10 + 4 * num_workers):  # drops the batches that workers prepared before the clock starts
                    next(pairs)
                start = time.perf_counter()
                count = 0
                while time.perf_counter() - start < SECONDS:
                    next(pairs)
                    count += 1
                rows[f"{name}, {num_workers} workers"] = {"steps/s": count / (time.perf_counter() - start)}
    return rows


def find_or_make_images(config: Config, folder: Path) -> tuple[Folders, str]:
    """The configuration's training images, or made-up JPEGs in `folder` if there are none, with a name for the table.

    The made-up images have the configuration's size and smooth random colours.
    """
    if Path(config.data_dir).is_dir():
        return training_images(config), printable(config.data_dir)
    size = (config.image_size, config.image_size)
    for domain, first_seed in (("a", 0), ("b", NUM_MADE_UP_IMAGES)):
        domain_folder = folder / "train" / domain
        domain_folder.mkdir(parents=True)
        for seed in range(first_seed, first_seed + NUM_MADE_UP_IMAGES):
            coarse = np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8)
            image = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)
            image.save(domain_folder / f"{seed}.jpg", quality=90)
    made_up = replace(config, data_dir=str(folder), domain_a="a", domain_b="b")
    return training_images(made_up), f"made-up {config.image_size} px JPEGs"


def seconds_to_import() -> float:
    """Seconds that a new Python process takes to start and import train.py."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import train"], cwd=Path(__file__).parent, check=True)
    return time.perf_counter() - start


# --- The command line


def print_table(title: str, rows: dict[str, Figures]) -> None:
    """Print rows of values as a Markdown table; `title` heads the column of the rows' names."""
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    lines = [
        [name, *(f"{row[column]:.3g}" if column in row else "" for column in columns)] for name, row in rows.items()
    ]
    print(markdown_table([title, *columns], lines) + "\n")


def run(args: argparse.Namespace, config: Config) -> dict[str, Any]:
    """Measure the chosen parts, print a table of each, and return all measures."""
    device = open_device(config)
    amp = in_bf16(config, device)
    on_gpu = device.type == "cuda"
    measures: dict[str, Any] = {
        "machine": torch.cuda.get_device_name(device) if on_gpu else f"{torch.get_num_threads()} CPU threads",
        "torch": torch.__version__,
        "precision": "bfloat16" if amp else "TF32" if on_gpu else "float32",
        "network": f"{config.image_size} px, {config.base_channels} channels, {config.resolved_num_residuals} blocks",
        "batch": config.batch_size,
    }
    print("; ".join(f"{name} {value}" for name, value in measures.items()) + "\n")
    if "train" in args.parts:
        rival = {"plain": config, "paper": paper_of(config)}.get(args.compare)
        row, ratios = measure_training(config, device, num_turns=args.steps, rival=rival)
        peak = matmul_peak(device, torch.bfloat16 if amp else torch.float32)
        measures["train"] = row | {"peak TFLOP/s": peak, "share of the peak": row["TFLOP/s"] / peak}
        print_table("training", {"ours": measures["train"]})
        if ratios:
            measures[f"against {args.compare}"] = ratios
            print_table("training", {f"against {args.compare}": ratios})
    if "translate" in args.parts:
        measures["translate"] = measure_translation(config, device, compare=bool(args.compare))
        print_table("translation", measures["translate"])
    if "data" in args.parts:
        measures["data"] = measure_data(config)
        print_table("image loading", measures["data"])
    if "start" in args.parts:
        measures["start"] = {"import train, s": seconds_to_import()}
        print_table("start-up", {"": measures["start"]})
    return measures


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Measure what the command line asks for. Returns the program's exit status."""
    parser = argparse.ArgumentParser(description=__doc__, epilog="All other flags are those of train.py.")
    add = parser.add_argument
    add("--compare", choices=["plain", "paper"], help="also measure a textbook step, with our networks or the paper's")
    add("--parts", nargs="+", choices=PARTS, default=PARTS, help="what to measure (default: all)")
    add("--steps", type=int, default=10, help="training steps to time (default: 10); a GPU runs ten times as many")
    add("--json", action="store_true", help="print all measures as JSON on the last line")
    args, train_flags = parser.parse_known_args(argv)
    if args.steps < 1:
        parser.error(f"--steps must be at least 1, got {args.steps}")
    config = parse_args(train_flags)
    if args.compare and config.diff_augment != "none":
        raise UserError("the textbook step does not support --diff-augment; leave out --diff-augment or --compare")
    measures = run(args, config)
    if args.json:
        print(json.dumps(measures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
