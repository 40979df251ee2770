"""Train a CycleGAN: two generators and two discriminators on two folders of unpaired images (Zhu et al. 2017).

`python train.py --help` lists every knob, `python train.py --preset demo` needs no data. To resume a run, run the
same command again.
"""

from __future__ import annotations

import sys

from config import PRESETS, Config, parse_args, to_dict

if __name__ == "__main__":
    config = parse_args()  # before torch is loaded: --help and mistakes are answered at once

import copy
import json
import math
import re
import signal
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

import checkpoint
import processes
from dataset import (
    EpochBatches,
    Folders,
    UnpairedDataset,
    build_loader,
    count_steps_per_epoch,
    find_images,
    load_views,
    measure_faces,
    report_left_out,
    running,
    training_images,
    unpack_demo_faces,
)
from diff_augment import diff_augment
from discriminator_model import Discriminator
from generator_model import Generator
from judges import Examiner
from losses import ImagePool, cycle_loss, discriminator_loss, gan_loss, identity_loss
from metrics import paired_report, translate_in_batches
from run_log import RunLog
from utils import (
    UserError,
    atomic_write,
    fast_layout,
    normalize,
    pick_device,
    printable,
    seed_everything,
    stop_requests,
    uses_bf16,
)

OWN_STATE = ("pool_a", "pool_b", "random")  # entries of a checkpoint that differ between processes
EXAMINED = 300  # images of each domain, at most, for evaluations during training
BETA2 = 0.999  # of Adam, as in the paper's code
EMA_WARM_UP = 3  # steps / (steps + this) bounds the decay of the generators' average


@dataclass
class Model:
    """Everything that training changes. Each field's `state_dict` is an entry of the checkpoint."""

    gen_ab: Generator
    gen_ba: Generator
    ema_gen_ab: Generator
    ema_gen_ba: Generator
    disc_a: Discriminator
    disc_b: Discriminator
    opt_gen: torch.optim.Adam
    opt_disc: torch.optim.Adam
    pool_a: ImagePool
    pool_b: ImagePool

    def state_dict(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name).state_dict() for field in fields(self)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for field in fields(self):
            getattr(self, field.name).load_state_dict(state[field.name])
        for optimizer in (self.opt_gen, self.opt_disc):
            lay_out_moments(optimizer)


def build_model(config: Config, device: torch.device, amp: bool = False) -> Model:
    """Networks with fresh weights, their optimisers, and empty image pools; `amp`: to be trained in bfloat16."""
    pools_of_others = processes.rank() << 64  # above all seeds
    layout = fast_layout(device, amp, config.compile)
    gen_ab, gen_ba = (checkpoint.build_generator(config).to(device).to(memory_format=layout) for _ in range(2))
    disc_a, disc_b = (build_discriminator(config).to(device).to(memory_format=layout) for _ in range(2))
    model = Model(
        gen_ab=gen_ab,
        gen_ba=gen_ba,
        ema_gen_ab=copy.deepcopy(gen_ab).requires_grad_(False),
        ema_gen_ba=copy.deepcopy(gen_ba).requires_grad_(False),
        disc_a=disc_a,
        disc_b=disc_b,
        opt_gen=build_adam((gen_ab, gen_ba), config),
        opt_disc=build_adam((disc_a, disc_b), config),
        pool_a=ImagePool(config.pool_size, seed=2 * config.seed + pools_of_others),
        pool_b=ImagePool(config.pool_size, seed=2 * config.seed + 1 + pools_of_others),
    )
    if config.compile:
        for network in (gen_ab, gen_ba, disc_a, disc_b):
            network.compile()
    return model


def build_discriminator(config: Config) -> Discriminator:
    """An untrained discriminator as the configuration describes it."""
    return Discriminator(config.base_channels, config.init_std, config.spectral_norm)


def build_adam(networks: Sequence[nn.Module], config: Config) -> torch.optim.Adam:
    """One optimiser for the parameters of several networks."""
    parameters = [parameter for network in networks for parameter in network.parameters()]
    return torch.optim.Adam(parameters, config.learning_rate, (config.beta1, BETA2), fused=True)


def lay_out_moments(optimizer: torch.optim.Adam) -> None:
    """Bring loaded moments into the memory format of their weights, which a fused optimiser takes for granted."""
    for weights, state in optimizer.state.items():
        for name, value in state.items():
            if value.shape == weights.shape:  # not the count of steps
                state[name] = torch.empty_like(weights).copy_(value)


def train_step(
    model: Model, real_a: Tensor, real_b: Tensor, config: Config, amp: bool, identity_share: float = 1.0
) -> dict[str, Tensor]:
    """One step of the algorithm: both generators, then both discriminators (paper sections 3, 4 and 7.1).

    Args:
        model: networks, optimisers and pools, all of which it changes.
        real_a, real_b: images (N, 3, H, W) in [-1, 1] of domains a and b, on the networks' device.
        config: the loss weights, the kind of adversarial loss and the order of the updates.
        amp: compute in bfloat16 where autocast thinks it safe.
        identity_share: share of the identity loss's weight that is left in this step.

    Returns:
        Losses, mean scores and gradient norms by name, detached scalars.
    """
    lambda_identity = identity_share * config.lambda_cycle * config.lambda_identity
    augment = partial(diff_augment, policy=config.diff_augment)  # what discriminators see, real or translated
    m, autocast = model, torch.autocast(real_a.device.type, torch.bfloat16, enabled=amp)
    losses: dict[str, Tensor] = {}

    # Some recipes teach the discriminators first, on what the generators make so far.
    if config.disc_first:
        with torch.no_grad(), autocast:
            fake_b, fake_a = m.gen_ab(real_a), m.gen_ba(real_b)
        losses = update_discriminators(m, real_a, real_b, fake_a, fake_b, config, amp)

    # Sum up the generators' gradients term by term, so that only one term's activations are in memory at a time.
    set_requires_grad((m.disc_a, m.disc_b), False)
    m.opt_gen.zero_grad()

    # Translate a to b and back: fool the discriminator, and end where it began.
    with autocast:
        fake_b = m.gen_ab(real_a)  # G(x)
        gan_ab = gan_loss(m.disc_b(augment(fake_b)), True, config.gan_sigmoid)  # paper Eq. 1, G: x -> y
        cycle_a = cycle_loss(m.gen_ba(fake_b), real_a)  # paper Eq. 2, F(G(x)) -> x
    backward(gan_ab + config.lambda_cycle * cycle_a)

    # Translate b to a and back.
    with autocast:
        fake_a = m.gen_ba(real_b)  # F(y)
        gan_ba = gan_loss(m.disc_a(augment(fake_a)), True, config.gan_sigmoid)  # paper Eq. 1, F: y -> x
        cycle_b = cycle_loss(m.gen_ab(fake_a), real_b)  # paper Eq. 2, G(F(y)) -> y
    backward(gan_ba + config.lambda_cycle * cycle_b)

    # Leave images alone that are in the target domain already.
    identity_a = identity_b = torch.zeros_like(cycle_a)
    if lambda_identity:
        with autocast:
            identity_a = identity_loss(m.gen_ba(real_a), real_a)  # paper section 5.2, F(x) -> x
            identity_b = identity_loss(m.gen_ab(real_b), real_b)  # paper section 5.2, G(y) -> y
        backward(lambda_identity * (identity_a + identity_b))

    # Improve the generators; what they minimised is paper Eq. 3.
    cycle, identity = cycle_a + cycle_b, identity_a + identity_b
    total = gan_ab + gan_ba + config.lambda_cycle * cycle + lambda_identity * identity
    losses |= descend(m.opt_gen, gen=total, gan_ab=gan_ab, gan_ba=gan_ba, cycle_a=cycle_a, cycle_b=cycle_b,
                      identity_a=identity_a, identity_b=identity_b)  # fmt: skip

    # Teach the discriminators, on real images and on this and earlier steps' fakes.
    if not config.disc_first:
        losses |= update_discriminators(m, real_a, real_b, fake_a, fake_b, config, amp)
    return losses


def update_discriminators(
    model: Model, real_a: Tensor, real_b: Tensor, fake_a: Tensor, fake_b: Tensor, config: Config, amp: bool
) -> dict[str, Tensor]:
    """Teach both discriminators to tell real images from this and earlier steps' fakes; arguments as `train_step`."""
    m, augment = model, partial(diff_augment, policy=config.diff_augment)
    set_requires_grad((m.disc_a, m.disc_b), True)
    with torch.autocast(real_a.device.type, torch.bfloat16, enabled=amp):
        scores_real_a, scores_fake_a = m.disc_a(augment(torch.cat([real_a, m.pool_a.query(fake_a)]))).chunk(2)
        scores_real_b, scores_fake_b = m.disc_b(augment(torch.cat([real_b, m.pool_b.query(fake_b)]))).chunk(2)
        disc_a = discriminator_loss(scores_real_a, scores_fake_a, config.gan_sigmoid)
        disc_b = discriminator_loss(scores_real_b, scores_fake_b, config.gan_sigmoid)
    m.opt_disc.zero_grad()
    backward(disc_a + disc_b)
    losses = descend(m.opt_disc, disc=disc_a + disc_b, disc_a=disc_a, disc_b=disc_b)
    scores = {"real_a": scores_real_a, "fake_a": scores_fake_a, "real_b": scores_real_b, "fake_b": scores_fake_b}
    return losses | {f"score/{name}": values.detach().mean() for name, values in scores.items()}


def set_requires_grad(networks: Sequence[nn.Module], requires_grad: bool) -> None:
    for network in networks:
        network.requires_grad_(requires_grad)


def backward(loss: Tensor) -> None:
    """Add the loss's gradient to those of the weights, and free what was kept for it."""
    loss.backward()  # type: ignore[no-untyped-call]


def descend(optimizer: torch.optim.Adam, **losses: Tensor) -> dict[str, Tensor]:
    """One step down the first loss's gradient, which the weights hold; the other losses are its terms, to be reported.

    Gradients and losses are averaged over all processes. Where the loss or its gradient is not finite nothing changes,
    and the report shows it: to ask here would make the program wait for the GPU in every step.

    Returns the losses as "loss/" + name, detached, and the gradient's norm as "grad_norm/" + the first one's name.
    """
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    values = torch.stack([loss.detach() for loss in losses.values()])
    processes.average([*gradients, values])
    norm = get_total_norm(gradients)
    # a fused optimiser leaves out the step where this is 1, as torch.amp.GradScaler asks it to
    optimizer.found_inf = (~torch.isfinite(values[0] + norm)).float()  # type: ignore[attr-defined]
    optimizer.step()
    named = {f"loss/{name}": value for name, value in zip(losses, values.unbind(), strict=True)}
    return named | {f"grad_norm/{next(iter(losses))}": norm}


@torch.no_grad()
def update_averages(model: Model, step: int, decay: float) -> None:
    """Move the averaged generators towards the trained ones: ema <- decay ema + (1 - decay) weights.

    Early on the decay is smaller, so that the average covers about the last third of the steps so far.
    """
    decay = min(decay, (1 + step) / (1 + step + EMA_WARM_UP))
    for average, network in ((model.ema_gen_ab, model.gen_ab), (model.ema_gen_ba, model.gen_ba)):
        torch._foreach_lerp_(list(average.parameters()), list(network.parameters()), 1 - decay)


def check_finite(means: dict[str, float], step: int) -> None:
    """UserError, which names them, where losses since the last report are infinite or not a number."""
    bad = [name for name, mean in means.items() if not math.isfinite(mean)]
    if bad:
        raise UserError(
            f"stopped after step {step}: not finite since the last report: {', '.join(bad)}\n"
            "the weights were not changed by it; try a lower --learning-rate in another --run-name"
        )


def learning_rate_at(step: int, steps_per_epoch: int, config: Config) -> float:
    """The learning rate of the step after `step` finished ones: constant, then linear to zero (paper section 4).

    Departs from the paper's code: it falls with every step, not once an epoch, because epochs of many images are long.
    """
    decay_steps = config.num_decay_epochs * steps_per_epoch
    steps_left = (config.num_epochs + config.num_decay_epochs) * steps_per_epoch - step
    scale = processes.count() if config.scale_learning_rate else 1
    return config.learning_rate * scale * min(1.0, steps_left / max(decay_steps, 1))


def set_learning_rate(optimizers: Sequence[torch.optim.Adam], learning_rate: float) -> None:
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate


def count_steps(steps_per_epoch: int, config: Config) -> int:
    """Steps of the whole run."""
    num_steps = (config.num_epochs + config.num_decay_epochs) * steps_per_epoch
    return min(num_steps, config.max_steps or num_steps)


def identity_share_at(step: int, steps_per_epoch: int, config: Config) -> float:
    """What is left of the identity loss's weight after `step` steps: all, or ever less if `identity_epochs` says so."""
    decay_steps = config.identity_epochs * steps_per_epoch
    return max(0.0, 1 - step / decay_steps) if decay_steps else 1.0


def sample_views(model: Model, view_a: Tensor, view_b: Tensor) -> list[Tensor]:
    """The averaged generators on fixed images: real_a, fake_b, rec_a, real_b, fake_a, rec_b, each (N, 3, H, W)."""
    fake_b, fake_a = translate_in_batches(model.ema_gen_ab, view_a), translate_in_batches(model.ema_gen_ba, view_b)
    rec_a, rec_b = translate_in_batches(model.ema_gen_ba, fake_b), translate_in_batches(model.ema_gen_ab, fake_a)
    return [view_a, fake_b, rec_a, view_b, fake_a, rec_b]


def find_data(config: Config) -> tuple[Folders, Folders]:
    """The training images, and the images to show progress on: the test split where there is one, else the former."""
    if config.data_dir == PRESETS["demo"].data_dir and not Path(config.data_dir).exists():
        unpack_demo_faces(Path(config.data_dir))
    training, test = training_images(config), find_images(config, "test")
    names_a, names_b = ([file.relative_to(folder.path) for file in folder.files] for folder in test)
    if config.paired_test and (names_a != names_b or not names_a):
        raise UserError(f"paired_test wants test images of equal names in both domains of {printable(config.data_dir)}")
    return training, test if names_a and names_b else training


def resume(model: Model, folder: Path, config: Config, data: dict[str, str]) -> dict[str, Any]:
    """Load the newest whole checkpoint, if there is one, into the model; returns `step` and what else it holds."""
    if processes.rank() == 0:
        checkpoint.remove_leftovers(folder)
    saved, broken = checkpoint.newest_checkpoint(folder)
    if processes.rank() == 0:
        for error in broken:
            print(f"skipped: {error}")
    if saved is None:
        if broken:
            raise UserError(f"no whole checkpoint is left in {printable(folder)}; start afresh with another --run-name")
        return {"step": 0}
    try:
        checkpoint.check_resumable(saved, config, data)
        saved |= own_state_in(saved)
        model.load_state_dict(saved)
        checkpoint.restore_random_state(saved["random"])
        return {**saved, "step": int(saved["step"])}
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError) as error:
        raise UserError(f"the newest checkpoint in {printable(folder)} is not of this program: {error!r}") from error


def begin(model: Model, run_dir: Path, config: Config, images: Folders) -> tuple[int, dict[str, Any]]:
    """How many steps are finished, and what a run knows beside its model: resumed, or new. All processes call it."""
    data = {"a": images[0].fingerprint, "b": images[1].fingerprint}
    saved = resume(model, run_dir / "checkpoints", config, data)
    step, template = saved["step"], saved.get("template")
    if not processes.all_equal(step):
        raise UserError(
            f"the processes do not agree where to go on, this one after step {step}:\n"
            f"{printable(run_dir)} must be on a disk that all of them see"
        )
    if step == 0 and processes.rank() == 0:
        template = measure_faces(images[0].files, images[1].files)
    elif step == 0:
        seed_everything(config.seed + processes.rank())  # the weights are alike; what is drawn from now on is not
    best_score = saved.get("best_score")
    return step, {"config": to_dict(config), "data": data, "template": template, "best_score": best_score}


def own_state_in(saved: dict[str, Any]) -> dict[str, Any]:
    """What a checkpoint holds for this process alone; UserError where it was saved by more or fewer processes."""
    first = {name: saved[name] for name in OWN_STATE}
    states = [first, *saved.get("others", [])]
    if len(states) != processes.count():
        raise UserError(
            f"this run was trained by {len(states)} processes, and now there are {processes.count()}: each has images\n"
            f"and random numbers of its own; go on with torchrun --nproc-per-node, or start afresh with --run-name"
        )
    return dict(states[processes.rank()])


def build_examiner(images: Folders, shown: Folders, config: Config, device: torch.device) -> Examiner | None:
    """Who evaluates the generators during training, with a few hundred images; None where nobody is asked to."""
    if not config.evaluate_every_epochs:
        return None
    train_a, train_b, test_a, test_b = (
        load_views(folder.files[:EXAMINED], config.image_size).to(device) for folder in (*images, *shown)
    )
    return Examiner(train_a, train_b, test_a, test_b, config.paired_test)


def state_of(model: Model, step: int, epoch: int, facts: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint's content; `facts` are what the run knows beside the model."""
    return {"step": step, "epoch": epoch, "random": checkpoint.random_state()} | facts | model.state_dict()


def save(model: Model, run_dir: Path, step: int, epoch: int, keep_every_steps: int, facts: dict[str, Any]) -> None:
    """Write a checkpoint and delete those that need not be kept: all processes call it, the first one does it."""
    folder, state = run_dir / "checkpoints", state_of(model, step, epoch, facts)
    own_states = processes.gather_to_first({name: state[name] for name in OWN_STATE})
    if own_states is None:
        return
    checkpoint.save_checkpoint(folder, state | {"others": own_states[1:]})
    checkpoint.prune_checkpoints(folder, step, facts["config"]["keep_checkpoints"], keep_every_steps)


def evaluate(
    examiner: Examiner, model: Model, run_dir: Path, step: int, epoch: int, facts: dict[str, Any]
) -> dict[str, float]:
    """Measure the averaged generators; the best ones so far are kept in run_dir/best. Returns the numbers by name."""
    values = examiner.examine(model.ema_gen_ab, model.ema_gen_ba)
    if facts["best_score"] is None or values["score"] > facts["best_score"]:
        facts["best_score"] = values["score"]
        checkpoint.save_best(run_dir, state_of(model, step, epoch, facts))
    return values


def announce(config: Config, run_dir: Path, images: Folders, state: str) -> None:
    """Write the configuration into the run's folder, and say what is going to happen."""
    with atomic_write(run_dir / "config.json") as file:
        file.write_text(json.dumps(to_dict(config), indent=2) + "\n")
    counts = f"{len(images[0].files)} {config.domain_a} and {len(images[1].files)} {config.domain_b} images"
    others = f", the first of {processes.count()} processes" if processes.count() > 1 else ""
    print(f"{counts}; {printable(run_dir)}: {state}{others}")


def report_error(model: Model, shown: Folders, config: Config) -> None:
    """Say how far the averaged generators are from the truth, where the test images are true pairs."""
    if config.paired_test:
        truth_a, truth_b = (load_views(folder.files, config.image_size) for folder in shown)
        print(paired_report(model.ema_gen_ab, model.ema_gen_ba, truth_a, truth_b, config.domain_a, config.domain_b))


def train(config: Config, run_dir: Path, images: Folders, shown: Folders, device: torch.device) -> int:
    """The whole run in its locked folder, from its newest checkpoint on. Returns the program's exit status."""
    # Make ready the images to train on and to show.
    rank, count = processes.rank(), processes.count()
    first = rank == 0  # the process that reports and saves
    if first:
        report_left_out({*images, *shown}, run_dir / "left_out.txt")
    dataset = UnpairedDataset(images[0].files, images[1].files, config)
    num_samples = min(config.num_samples, *(len(folder.files) for folder in shown))
    view_a, view_b = (load_views(folder.files[:num_samples], config.image_size) for folder in shown)
    amp = uses_bf16(config.amp, device)

    # Build the networks; where the run was interrupted, go on from there.
    seed_everything(config.seed)
    model = build_model(config, device, amp)
    step, facts = begin(model, run_dir, config, images)
    steps_per_epoch = count_steps_per_epoch(len(dataset), config.batch_size, count)
    num_steps = count_steps(steps_per_epoch, config)
    keep_every_steps = config.keep_every_epochs * steps_per_epoch
    if step >= num_steps:
        limit = "--max-steps" if step == config.max_steps else "--num-epochs"
        if first:
            print(f"{printable(run_dir)} is finished: {step} steps; to go on raise {limit}, or take another --run-name")
        return 0
    batches = EpochBatches(len(dataset), config.batch_size, config.seed, step, num_steps, rank, count)
    loader = build_loader(dataset, batches, config.num_workers, pin_memory=device.type == "cuda")
    if first:
        announce(config, run_dir, images, f"step {step} of {num_steps}, on {device}{' in bf16' if amp else ''}")
    examiner = build_examiner(images, shown, config, device) if first else None
    log = RunLog(run_dir, step, num_steps, steps_per_epoch, config) if first else None

    alone, stopped = count == 1, False  # torchrun, like the terminal, sends Ctrl-C on
    with stop_requests(second_ends=alone) as stop, log or nullcontext(), running(loader) as pairs:
        # Show what the generators do before the first step.
        if log and step == 0 and not stop:
            log.sample(step, sample_views(model, view_a, view_b))

        # Draw a batch of each domain.
        for real_a, real_b in pairs:
            # Stop between two steps when asked to, all processes at the same one.
            if stopped := processes.any_process(bool(stop)):
                break

            # Set this step's learning rate.
            learning_rate = learning_rate_at(step, steps_per_epoch, config)
            set_learning_rate((model.opt_gen, model.opt_disc), learning_rate)

            # Improve the generators and the discriminators, and follow the generators' average.
            real_a, real_b = (normalize(real.to(device, non_blocking=True)) for real in (real_a, real_b))
            identity_share = identity_share_at(step, steps_per_epoch, config)
            losses = train_step(model, real_a, real_b, config, amp, identity_share)
            update_averages(model, step, config.ema_decay)
            step += 1

            # Evaluate on held-out images, and keep the best weights so far.
            if log and examiner and step % (config.evaluate_every_epochs * steps_per_epoch) == 0:
                log.evaluation(step, evaluate(examiner, model, run_dir, step, step // steps_per_epoch, facts))

            # Report losses, show samples and save everything, each in its own rhythm.
            if log:
                log.collect(losses)
            if log and (step % config.log_every_steps == 0 or step == num_steps):
                check_finite(log.write(step, learning_rate), step)
            if log and (step % config.sample_every_steps == 0 or step == num_steps):
                picture = log.sample(step, sample_views(model, view_a, view_b))
            ends_kept_epoch = keep_every_steps and step % keep_every_steps == 0
            if step % config.checkpoint_every_steps == 0 or ends_kept_epoch or step == num_steps:
                save(model, run_dir, step, step // steps_per_epoch, keep_every_steps, facts)

        # Asked to stop: save, and say how to go on.
        if stopped:
            save(model, run_dir, step, step // steps_per_epoch, keep_every_steps, facts)
            number = stop[0] if stop else signal.SIGTERM  # its own is still on its way from torchrun
            if log:
                log.say(f"{signal.Signals(number).name}: saved after step {step}; to go on, run the same command again")
            return 128 + number

    # Report where the samples are and, on true pairs, the error.
    if first:
        print(f"finished {step} steps; samples in {printable(picture)}")
        report_error(model, shown, config)
    return 0


def open_device(config: Config) -> torch.device:
    """The device to train on, made ready for steps that are all of one size."""
    if processes.count() > 1 and re.fullmatch(r"cuda:\d+", config.device):
        raise UserError(f"--device {config.device} is one GPU, but there are {processes.count()} processes: say cuda")
    device = pick_device(config.device, processes.local_rank())
    if device.type == "cuda":
        torch.cuda.set_device(device)  # pinned memory and the question for bfloat16 go by the current device
        torch.backends.cudnn.benchmark = True  # find the fastest convolutions once
        torch.set_float32_matmul_precision("high")  # TF32, which convolutions use anyway
    return device


def main(config: Config) -> int:
    """Run `train` alone in the run's folder; what the user can put right is told in a few lines, not a traceback."""
    run_dir = Path(config.runs_dir, config.run_name)
    try:
        device = open_device(config)
        images, shown = find_data(config)
        lock = checkpoint.lock_run(run_dir) if processes.rank() == 0 else nullcontext()
        with lock, processes.connected(device):
            return train(config, run_dir, images, shown, device)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
    except OSError as error:  # out of a worker its text is a traceback, whose last line says what happened
        print(f"error: {(str(error).strip() or repr(error)).splitlines()[-1]}", file=sys.stderr)
    except torch.OutOfMemoryError:
        print("error: the GPU is full: try --recompute, or lower --batch-size or --image-size", file=sys.stderr)
    except RuntimeError as error:
        if processes.is_about_another(error):
            print(
                f"error: another process is gone, or out of reach: {str(error).splitlines()[0]}\n"
                "the newest checkpoint is whole: put that right and run the same command again",
                file=sys.stderr,
            )
        elif "DataLoader worker" in str(error):
            print(f"error: {error}\noften the memory is full: lower --num-workers or --batch-size", file=sys.stderr)
        else:
            raise
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return 1


if __name__ == "__main__":
    sys.exit(main(config))
