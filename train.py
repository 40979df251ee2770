"""Train a CycleGAN: two generators and two discriminators on two folders of unpaired images (Zhu et al. 2017).

`python train.py --help` lists every knob, `python train.py --preset demo` needs no data. To resume a run, run the
same command again.
"""

from __future__ import annotations

import sys

import startup  # noqa: F401

from config import PRESETS, Config
from console import UserError, command, printable, printing
from training.command_line import parse_args

if __name__ == "__main__":
    with printing():
        parse_args()  # answers --help and reports mistakes before the seconds that importing torch takes

import signal
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from dataset import (
    EpochBatches,
    Folders,
    Pair,
    UnpairedDataset,
    build_loader,
    count_steps_per_epoch,
    domain_names,
    find_images,
    load_images,
    measure_faces,
    report_left_out,
    running,
    training_images,
    unpack_demo_faces,
)
from discriminator_model import Discriminator
from evaluation.metrics import paired_report, translate_in_batches
from evaluation.validation import Validation, strengths_in
from photos.film import make_film
from training import distributed
from training.checkpoint import lock_run
from training.cuda_graph import fastest_step
from training.diff_augment import Augment, draw_augmentation
from training.health import check_finite
from training.losses import cycle_loss, discriminator_loss, gan_loss, identity_loss, pair_loss, r1_penalty
from training.model import CycleGAN, Finish, backward, begin_step, in_bf16
from training.run import Run, asked_to_stop, explained_failures, open_device, stop_requests
from training.run_log import open_log, sample_files, say_finished_already, say_what_next
from utils import normalize, seed_everything
from weights.load import load_networks

VALIDATION_IMAGES = 300  # Evaluations during training use at most this many images of each domain.


def train_step(
    model: CycleGAN,
    real_a: Tensor,
    real_b: Tensor,
    *,
    config: Config,
    identity_share: float = 1.0,
    r1_gamma: float = 0.0,
) -> dict[str, Tensor]:
    """One step of the algorithm: both generators, then both discriminators (paper sections 3, 4 and 7.1).

    Args:
        model: networks, optimisers and pools, all of which it changes.
        real_a, real_b: images (N, 3, H, W) in [-1, 1] of domains a and b, on the networks' device.
        config: the loss weights, the kind of adversarial loss and the order of the updates.
        identity_share: the fraction of the identity loss's weight that applies in this step.
        r1_gamma: the weight of the discriminators' gradient penalty in this step; 0: none.

    Returns:
        Losses, mean scores and gradient norms by name, detached scalars.
    """
    reals = (real_a, real_b)
    augment = draw_augmentation(config.diff_augment, config.disc_blur)  # of all that discriminators see in this step
    if config.disc_first:  # departs from the paper as the original European-to-Asian project does
        with torch.no_grad(), model.autocast():
            fake_b, fake_a = model.gen_ab(real_a), model.gen_ba(real_b)
        scores, finish_discriminators = update_discriminators(model, reals, (fake_a, fake_b), config, augment, r1_gamma)
        losses = finish_discriminators() | scores
        _, finish_generators = update_generators(model, reals, config, augment, identity_share)
        return losses | finish_generators()

    # Both steps end together: gradients of the generators travel between processes while the discriminators learn.
    fakes, finish_generators = update_generators(model, reals, config, augment, identity_share)
    scores, finish_discriminators = update_discriminators(model, reals, fakes, config, augment, r1_gamma)
    return finish_generators() | finish_discriminators() | scores


def update_generators(
    model: CycleGAN, reals: tuple[Tensor, Tensor], config: Config, augment: Augment, identity_share: float
) -> tuple[tuple[Tensor, Tensor], Finish]:
    """Improve both generators against frozen discriminators: one step down paper Eq. 3.

    Each block ends with a backward pass, which adds to the gradients and frees the activations, so that those of one
    block are in memory at a time. A new term belongs in the block that computes its images.

    Returns the translations (fake_a, fake_b), and a function that finishes the step and returns the losses by name.
    """
    m, (real_a, real_b) = model, reals
    adversarial = partial(gan_loss, kind=config.gan_loss, sigmoid=config.gan_sigmoid)
    identity_weight = identity_share * config.lambda_cycle * config.lambda_identity
    pair_a = pair_b = real_a.new_zeros(())
    set_discriminators_trainable(m, False)
    m.opt_gen.zero_grad()

    # Translate a to b and back: fool the discriminator of b, and reproduce the original.
    with m.autocast():
        fake_b = m.gen_ab(real_a)  # G(x)
        gan_ab = adversarial(m.disc_b(augment(fake_b)), real=True)  # paper Eq. 1 for G and D_Y
        rec_a = m.gen_ba(fake_b)  # F(G(x))
        cycle_a = cycle_loss(rec_a, real_a)  # paper Eq. 2, forward cycle
        if config.lambda_pair:  # real_b is the true translation of real_a; the paper has no such pairs
            pair_b = pair_loss(fake_b, real_b)
        loss_ab = gan_ab + config.lambda_cycle * cycle_a + config.lambda_pair * pair_b
    backward(loss_ab)

    # Translate b to a and back: fool the discriminator of a, and reproduce the original.
    with m.autocast():
        fake_a = m.gen_ba(real_b)  # F(y)
        gan_ba = adversarial(m.disc_a(augment(fake_a)), real=True)  # paper Eq. 1 for F and D_X
        rec_b = m.gen_ab(fake_a)  # G(F(y))
        cycle_b = cycle_loss(rec_b, real_b)  # paper Eq. 2, backward cycle
        if config.lambda_pair:
            pair_a = pair_loss(fake_a, real_a)
        loss_ba = gan_ba + config.lambda_cycle * cycle_b + config.lambda_pair * pair_a
    backward(loss_ba)

    # Leave images that are already in the target domain unchanged.
    identity_a, identity_b, loss_identity = cycle_a.new_zeros(3).unbind()
    if identity_weight:
        with m.autocast():
            identity_a = identity_loss(m.gen_ba(real_a), real_a)  # paper section 5.2, F(x) -> x
            identity_b = identity_loss(m.gen_ab(real_b), real_b)  # paper section 5.2, G(y) -> y
            loss_identity = identity_weight * (identity_a + identity_b)
        backward(loss_identity)

    # Begin to step both generators along the gradients that have added up; the total is for the report.
    total = loss_ab + loss_ba + loss_identity  # paper Eq. 3
    terms = {"gan_ab": gan_ab, "gan_ba": gan_ba, "cycle_a": cycle_a, "cycle_b": cycle_b, "identity_a": identity_a,
             "identity_b": identity_b, "pair_a": pair_a, "pair_b": pair_b}  # fmt: skip
    return (fake_a, fake_b), begin_step(m.opt_gen, total, name="gen", terms=terms)


def update_discriminators(
    model: CycleGAN,
    reals: tuple[Tensor, Tensor],
    fakes: tuple[Tensor, Tensor],
    config: Config,
    augment: Augment,
    r1_gamma: float,
) -> tuple[dict[str, Tensor], Finish]:
    """Improve both discriminators on real images and on this and earlier steps' fakes: paper Eq. 1, over D.

    Returns the mean scores by name, and a function that finishes the step and returns the losses by name.
    """
    m, (real_a, real_b), (fake_a, fake_b) = model, reals, fakes
    source_of_a, source_of_b = ([real_b], [real_a]) if config.source_negatives else ([], [])
    adversarial = partial(discriminator_loss, kind=config.gan_loss, sigmoid=config.gan_sigmoid)
    set_discriminators_trainable(m, True)
    m.opt_disc.zero_grad()

    # Tell real images of a from translated ones and, if asked to, from real images of b.
    with m.autocast():
        scores_a = score_together(m.disc_a, augment, real_a, m.pool_a.query(fake_a), *source_of_a)
        disc_a = adversarial(*scores_a)
    backward(disc_a)

    # Tell real images of b from translated ones and, if asked to, from real images of a.
    with m.autocast():
        scores_b = score_together(m.disc_b, augment, real_b, m.pool_b.query(fake_b), *source_of_b)
        disc_b = adversarial(*scores_b)
    backward(disc_b)

    # Flatten both discriminators around real images; the penalty is halved like the adversarial loss.
    penalty = torch.zeros_like(disc_a)
    if r1_gamma:
        penalty = r1_gamma / 2 * (r1_penalty(m.disc_a, augment(real_a)) + r1_penalty(m.disc_b, augment(real_b)))
        backward(penalty)

    # Begin to step both discriminators.
    total = disc_a + disc_b + penalty
    scores = {"real_a": scores_a[0], "fake_a": scores_a[1], "real_b": scores_b[0], "fake_b": scores_b[1]}
    means = {f"score/{name}": values.detach().mean() for name, values in scores.items()}
    return means, begin_step(m.opt_disc, total, name="disc", terms={"disc_a": disc_a, "disc_b": disc_b})


def score_together(disc: Discriminator, augment: Augment, *batches: Tensor) -> tuple[Tensor, ...]:
    """The scores of batches of one size, in one pass."""
    scores: tuple[Tensor, ...] = disc(augment(torch.cat(batches))).chunk(len(batches))
    return scores


def set_discriminators_trainable(model: CycleGAN, trainable: bool) -> None:
    """Let the discriminators collect gradients, or freeze them."""
    for disc in (model.disc_a, model.disc_b):
        disc.requires_grad_(trainable)


# --- The loop


def train(config: Config, folder: Path, images: Folders, samples: Folders, device: torch.device) -> int:
    """Train in the run's locked folder, from its newest checkpoint on. Returns the program's exit status.

    Args:
        config: the run's configuration.
        folder: the run's folder.
        images: the training images of both domains.
        samples: images of both domains to show and to measure progress on, see `find_data`.
        device: where to train.
    """
    # Read the two folders.
    is_first = distributed.rank() == 0  # the process that reports and saves
    if is_first:
        report_left_out({*images, *samples}, folder / "left_out.txt")
    dataset = UnpairedDataset(images[0].files, images[1].files, config)
    data = {"a": images[0].fingerprint, "b": images[1].fingerprint}
    steps_per_epoch = count_steps_per_epoch(len(dataset), config.batch_size, distributed.count())
    sample_pair = load_samples(samples, config)

    # Build the networks; resume the run where it was interrupted, or start it from trained ones if asked to.
    seed_everything(config.seed)
    model = CycleGAN(config, device, amp=in_bf16(config, device))
    run = Run(folder, config, data, steps_per_epoch)
    if not run.start_or_resume(model) and config.init_from:
        start_from_trained(model, config)
    if run.step >= run.num_steps:
        if is_first:
            say_finished_already(run)
            say_results(run, samples)
        return 0
    if is_first and run.step == 0:
        run.template = measure_faces(images[0].files, images[1].files)

    # Read the remaining batches, in the order that seed and epoch give, and log what happens.
    loader = open_loader(run, dataset, pin_memory=device.type == "cuda")
    validation = build_validation(images, samples, run, device)
    num_images = (len(images[0].files), len(images[1].files))
    log = open_log(run, model, num_images=num_images, domains=domain_names(config))
    say = log.say if log else lambda text: None
    step = fastest_step(partial(step_on_pixels, model, config=config), model, config, say=say)
    stopped = False
    with (
        stop_requests(second_ends=distributed.count() == 1) as stop,
        log or nullcontext(),
        running(loader, stop) as pairs,
    ):
        # Show what the generators do before the first step.
        if log and run.step == 0 and not stop:
            log.sample(run.step, translate_samples(model, *sample_pair))

        # Draw a batch of each domain.
        for real_a, real_b in pairs:
            # Stop between two steps when asked to, all processes at the same one.
            if stopped := asked_to_stop(stop, step=run.step, images=real_a, device=device):
                break

            # Set this step's learning rate.
            learning_rate = run.learning_rate
            model.set_learning_rate(learning_rate)

            # Update the generators, the discriminators, and the generators' average.
            losses = step(real_a, real_b, identity_share=run.identity_share, r1_gamma=run.r1_gamma)
            model.update_averages(run.step, config.ema_decay)
            run.step += 1

            # Evaluate the generators, and keep the best weights so far.
            if log and validation and run.is_at_multiple_of(config.evaluate_every_epochs * steps_per_epoch):
                values = validation.measure(model.ema_gen_ab, model.ema_gen_ba)
                run.strength = strengths_in(values) or run.strength
                run.save_if_best(model, values["score"])
                log.evaluation(run.step, values)

            # Report losses and show samples.
            if log:
                log.collect(losses)
                if run.is_at_multiple_or_end(config.log_every_steps):
                    check_finite(log.write(run.step, learning_rate), run.step)
                if run.is_at_multiple_or_end(config.sample_every_steps):
                    picture = log.sample(run.step, translate_samples(model, *sample_pair))

            # Save everything.
            if run.is_at_multiple_or_end(config.checkpoint_every_steps) or run.is_at_multiple_of(
                config.keep_every_epochs * steps_per_epoch
            ):
                run.save(model)

        # Asked to stop: save, and say how to resume.
        if stopped:
            run.save(model)
            # Where no signal came, another process was told to stop, and torchrun will tell this one.
            number = stop[0] if stop else signal.SIGTERM
            if log:
                log.say(f"{signal.Signals(number).name}: saved after step {run.step}; to resume, run the same command")
            return 128 + number

    # Report where the samples are and, on true pairs, the error; say what to do next.
    if is_first:
        print(f"finished {run.step} steps; samples in {printable(picture)}")
        report_error(model, samples, config)
        say_results(run, samples)
    return 0


# --- Around the loop


def find_data(config: Config) -> tuple[Folders, Folders]:
    """The training images, and those to show progress on: the test split, or the former where there is none."""
    if Path(config.data_dir) == Path(PRESETS["demo"].data_dir) and not Path(config.data_dir).exists():
        unpack_demo_faces(Path(config.data_dir))
    training, test = training_images(config), find_images(config, "test")
    names_a, names_b = ([file.relative_to(folder.path) for file in folder.files] for folder in test)
    if config.paired_test and (names_a != names_b or not names_a):
        raise UserError(
            f"paired_test needs test images of equal names in both domains of {printable(config.data_dir)}\n"
            "check them with python check_data.py, or leave out --paired-test"
        )
    return training, test if names_a and names_b else training


def load_samples(samples: Folders, config: Config) -> tuple[Tensor, Tensor]:
    """The first images of both domains, equally many of each, (N, 3, image_size, image_size) in [-1, 1]."""
    num_samples = min(config.num_samples, *(len(folder.files) for folder in samples))
    sample_a, sample_b = (load_images(folder.files[:num_samples], config.image_size) for folder in samples)
    return sample_a, sample_b


def open_loader(run: Run, dataset: UnpairedDataset, *, pin_memory: bool) -> DataLoader[Pair]:
    """The batches of the run's remaining steps for this process."""
    config = run.config
    batches = EpochBatches(len(dataset), config.batch_size, config.seed, run.step, run.num_steps,
                           distributed.rank(), distributed.count())  # fmt: skip
    return build_loader(dataset, batches, config.num_workers, pin_memory=pin_memory)


def step_on_pixels(
    model: CycleGAN, pixels_a: Tensor, pixels_b: Tensor, *, config: Config, identity_share: float, r1_gamma: float
) -> dict[str, Tensor]:
    """`train_step` on pixels (N, 3, H, W) uint8, 0 to 255, on any device."""
    real_a, real_b = (normalize(pixels.to(model.device, non_blocking=True)) for pixels in (pixels_a, pixels_b))
    return train_step(model, real_a, real_b, config=config, identity_share=identity_share, r1_gamma=r1_gamma)


def translate_samples(model: CycleGAN, sample_a: Tensor, sample_b: Tensor) -> list[Tensor]:
    """Images through the averaged generators: real_a, fake_b, rec_a, real_b, fake_a, rec_b, each (N, 3, H, W)."""
    fake_b, fake_a = translate_in_batches(model.ema_gen_ab, sample_a), translate_in_batches(model.ema_gen_ba, sample_b)
    rec_a, rec_b = translate_in_batches(model.ema_gen_ba, fake_b), translate_in_batches(model.ema_gen_ab, fake_a)
    return [sample_a, fake_b, rec_a, sample_b, fake_a, rec_b]


def start_from_trained(model: CycleGAN, config: Config) -> None:
    """Replace new networks by trained ones: the generators, and the discriminators where the file has the same kind."""
    networks = load_networks(config.init_from, config)
    model.start_from(networks)
    if distributed.rank() == 0:
        kinds = "generators and discriminators" if "disc_a" in networks else "generators only"
        print(f"starting from {printable(config.init_from)}: {kinds}")


def build_validation(images: Folders, samples: Folders, run: Run, device: torch.device) -> Validation | None:
    """Evaluations during training, on a few hundred images; None where they are off, and in all but one process."""
    config = run.config
    if not config.evaluate_every_epochs or distributed.rank() > 0:
        return None
    train_a, train_b, test_a, test_b = (
        load_images(folder.files[:VALIDATION_IMAGES], config.image_size).to(device) for folder in (*images, *samples)
    )
    return Validation(train_a, train_b, test_a, test_b, paired=config.paired_test, template=run.template)


def report_error(model: CycleGAN, samples: Folders, config: Config) -> None:
    """Say how far the averaged generators are from the truth, where the test images are true pairs."""
    if config.paired_test:
        truth_a, truth_b = (load_images(folder.files, config.image_size) for folder in samples)
        generators = (model.ema_gen_ab, model.ema_gen_ba)
        print(paired_report(generators, (truth_a, truth_b), domains=domain_names(config)))


def say_results(run: Run, samples: Folders) -> None:
    """Make a film of the run's samples, and say where it is and what to do next."""
    print(make_film(sample_files(run), run.folder / "samples.mp4"))
    say_what_next(run, samples[0].path)


def start(config: Config) -> int:
    """Find the data, lock the run's folder and train in it. Returns the program's exit status."""
    folder = Path(config.runs_dir, config.run_name)
    device = open_device(config)
    images, samples = find_data(config)
    lock = lock_run(folder) if distributed.rank() == 0 else nullcontext()
    with explained_failures(), lock, distributed.process_group(device):
        return train(config, folder, images, samples, device)


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Train as the command line asks. Returns the program's exit status."""
    return start(parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
