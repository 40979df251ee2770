"""The dashboard: every knob of a training run, with its meaning, unit, default and check.

Each knob is a flag of train.py (`image_size` is `--image-size`), and the comment beside it is the flag's help.
A preset is a complete set of values to start from; flags given beside it win.
"""

from __future__ import annotations

import contextlib
import io
import math
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import tyro

BILLION = 10**9  # more steps, images or files than anybody will see


@dataclass(frozen=True)
class Between:
    """The rule for a number: `low <= value <= high` and divisible by `multiple_of` unless that is 0."""

    low: float
    high: float = math.inf
    multiple_of: int = 0

    def __str__(self) -> str:
        text = (
            f"at least {self.low:g}" if self.high in (BILLION, math.inf) else f"between {self.low:g} and {self.high:g}"
        )
        return text if not self.multiple_of else f"a multiple of {self.multiple_of}, {text}"

    def allows(self, value: float) -> bool:
        in_range = self.low <= value <= self.high and value != math.inf
        return in_range and not (self.multiple_of and value % self.multiple_of)


Count = Annotated[int, Between(0, BILLION), tyro.conf.arg(metavar="INT>=0")]
Positive = Annotated[int, Between(1, BILLION), tyro.conf.arg(metavar="INT>=1")]
ImageSide = Annotated[int, Between(32, 4096, multiple_of=4), tyro.conf.arg(metavar="INT=32..4096")]
Width = Annotated[int, Between(1, 1024), tyro.conf.arg(metavar="INT=1..1024")]
Depth = Annotated[int, Between(0, 64), tyro.conf.arg(metavar="INT=0..64")]
TwoOrMore = Annotated[int, Between(2, BILLION), tyro.conf.arg(metavar="INT>=2")]
Weight = Annotated[float, Between(0), tyro.conf.arg(metavar="FLOAT>=0")]
Fraction = Annotated[float, Between(0, 1), tyro.conf.arg(metavar="FLOAT=0..1")]
Decay = Annotated[float, Between(0, 0.999999), tyro.conf.arg(metavar="FLOAT=0..0.999999")]
Hue = Annotated[float, Between(0, 0.5), tyro.conf.arg(metavar="FLOAT=0..0.5")]
NumWorkers = Annotated[int, Between(0, 256), tyro.conf.arg(metavar="INT=0..256")]
Degrees = Annotated[float, Between(0, 180), tyro.conf.arg(metavar="FLOAT=0..180")]
Scale = Annotated[float, Between(1, 4), tyro.conf.arg(metavar="FLOAT=1..4")]
Seed = Annotated[int, Between(0, 2**63 - 1), tyro.conf.arg(metavar="INT>=0")]
LearningRate = Annotated[float, Between(1e-9, 1), tyro.conf.arg(metavar="FLOAT=1e-9..1")]


@dataclass(frozen=True)
class Config:
    """Train a CycleGAN on two folders of unpaired images. To resume a run, run the same command again."""

    preset: Literal["default", "paper", "origin", "demo"] = "default"  # values to start from; other flags win

    # --- Data
    data_dir: str = "dataset"  # holds train/<domain_a> and train/<domain_b>, or trainA and trainB; test likewise
    domain_a: str = "european"  # folder name of domain a, in any case
    domain_b: str = "asian"  # folder name of domain b, in any case
    paired_test: bool = False  # test images of equal name are true pairs: report the error to the truth at the end
    image_size: ImageSide = 256  # side of the square training image in px, a multiple of 4

    # --- Augmentation, drawn for each image on its own
    resize_scale: Scale = 286 / 256  # the short side becomes this times image_size before a random crop (paper 286/256)
    flip_prob: Fraction = 0.5  # chance of a left-right flip (paper 0.5)
    rotate_degrees: Degrees = 0.0  # rotate by an angle drawn from +- this
    iso_noise_prob: Fraction = 0.0  # chance of camera noise
    jitter_brightness: Fraction = 0.0  # scale the brightness by a factor drawn from 1 +- this
    jitter_contrast: Fraction = 0.0  # scale the contrast by a factor drawn from 1 +- this
    jitter_saturation: Fraction = 0.0  # scale the saturation by a factor drawn from 1 +- this
    jitter_hue: Hue = 0.0  # turn the hue by a share of the colour circle drawn from +- this

    # --- Networks
    base_channels: Width = 64  # channels of the first layer of all four networks (paper 64)
    num_residuals: Depth = 0  # residual blocks of a generator; 0: 9 above 128 px, else 6 (paper)
    padding: Literal["reflect", "zero", "reflect-all"] = "zero"  # of the generators; zero is cheaper (paper reflect)
    global_skip: bool = True  # generators predict the change to their input and start as the identity (paper: no)
    norm_first: bool = True  # instance norm after the generator's first layer (paper: yes)
    spectral_norm: bool = False  # tame the discriminators by spectral normalisation (Miyato et al. 2018; paper: no)
    init_std: Weight = 0.02  # spread of the normal initial weights; 0: PyTorch's own initialisation (paper 0.02)

    # --- Losses
    lambda_cycle: Weight = 5.0  # weight of the cycle loss; higher keeps more of the person (paper 10)
    lambda_identity: Weight = 0.0  # weight of the identity loss as a multiple of lambda_cycle (paper 0.5)
    identity_epochs: Count = 0  # epochs in which the identity loss falls linearly to zero; 0: it stays (paper)
    diff_augment: Literal["none", "geometry", "all"] = "none"  # change what discriminators see (Zhao et al. 2020)
    gan_sigmoid: bool = False  # squash the discriminator's scores before the squared error (paper: no)
    pool_size: Count = 50  # earlier fakes kept per domain for the discriminators; 0: none (paper 50)
    disc_first: bool = False  # update the discriminators before the generators (paper: after)

    # --- Optimisation
    batch_size: Positive = 1  # images of each domain per step (paper 1)
    num_epochs: Positive = 100  # epochs at the full learning rate; one epoch shows the larger folder once (paper 100)
    num_decay_epochs: Count = 50  # epochs after those in which the rate falls linearly to zero (paper 100)
    max_steps: Count = 0  # stop after this many steps, wherever the schedule is; 0: no limit
    learning_rate: LearningRate = 2e-4  # of Adam, all networks (paper 2e-4)
    scale_learning_rate: bool = False  # multiply the rate by the number of processes (Goyal et al. 2017)
    beta1: Decay = 0.5  # of Adam (paper 0.5)
    ema_decay: Decay = 0.999  # of the moving average of the generators' weights per step; 0: the raw weights (paper)

    # --- Machine
    amp: Literal["auto", "bf16", "off"] = "auto"  # mixed precision; auto: bf16 where the hardware has it, else off
    compile: bool = False  # torch.compile the networks: slow to start, faster per step on a GPU
    recompute: bool = False  # residual blocks forget and compute again: less memory, more time, the same result
    device: str = "auto"  # auto, cpu, cuda, cuda:N or mps; auto: the first of cuda, mps, cpu that is there
    num_workers: NumWorkers = 2  # processes that read images; 0: the training process reads them itself
    seed: Seed = 0  # of weights, order, partners, augmentation and image pools; a CPU repeats a run bit for bit

    # --- The run's folder: runs_dir/run_name
    runs_dir: str = "runs"  # where the runs live; `tensorboard --logdir` takes this
    run_name: str = "default"  # this run's folder in runs_dir; a run that is there already is resumed
    log_every_steps: Positive = 50  # steps between two rows of metrics
    sample_every_steps: Positive = 1000  # steps between two sample grids
    num_samples: Positive = 6  # test images of each domain in a sample grid
    checkpoint_every_steps: Positive = 1000  # steps between two checkpoints
    keep_checkpoints: TwoOrMore = 3  # newest checkpoints to keep
    evaluate_every_epochs: Count = 0  # measure held-out images each N-th epoch, and keep the best checkpoint; 0: never
    keep_every_epochs: Count = 0  # keep for good the checkpoint that ends each N-th epoch; 0: none

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(type(self), include_extras=True).items():
            _check_value(name, kind, getattr(self, name))
        _check_words(self)

    @property
    def resolved_num_residuals(self) -> int:
        """`num_residuals`, or the paper's choice for this image size where it is 0."""
        return self.num_residuals or (9 if self.image_size > 128 else 6)


def _check_value(name: str, kind: Any, value: object) -> None:
    """ValueError unless `value` has the type that the annotation `kind` names and follows its rule."""
    if get_origin(kind) is Literal:
        if value not in get_args(kind):
            raise ValueError(f"{name} must be one of {', '.join(get_args(kind))}, got {value!r}")
        return
    plain, *notes = get_args(kind) or (kind,)
    if type(value) is not plain and not (plain is float and type(value) is int):
        raise ValueError(f"{name} must be of type {plain.__name__}, got {value!r}")
    for rule in (note for note in notes if isinstance(note, Between)):
        if not rule.allows(value):  # type: ignore[arg-type]
            raise ValueError(f"{name} must be {rule}, got {value!r}")


def _check_words(config: Config) -> None:
    """ValueError unless the knobs that are words can be what they stand for: folders, a run, a device."""
    for name in ("domain_a", "domain_b", "run_name"):
        word = getattr(config, name)
        if not word.strip() or not word.isprintable() or word in (".", "..") or re.search(r"[/\\]", word):
            raise ValueError(f"{name} must be a plain folder name, got {word!r}")
    if config.domain_a.lower() == config.domain_b.lower():
        raise ValueError(f"domain_b must differ from domain_a, got {config.domain_b!r} for both")
    if not re.fullmatch(r"auto|cpu|mps|cuda(:[0-9]{1,2})?", config.device):
        raise ValueError(f"device must be auto, cpu, cuda, cuda:N or mps, got {config.device!r}")


_DEFAULT = Config()
PRESETS = {
    "default": _DEFAULT,
    "paper": replace(_DEFAULT, preset="paper", run_name="paper", padding="reflect", global_skip=False, ema_decay=0.0,
                     lambda_cycle=10.0, lambda_identity=0.5, num_decay_epochs=100, amp="off"),
    "origin": replace(_DEFAULT, preset="origin", run_name="origin", num_residuals=8, global_skip=False,
                      norm_first=False, init_std=0.0, gan_sigmoid=True, disc_first=True, pool_size=0, ema_decay=0.0,
                      lambda_cycle=3.0, lambda_identity=0.0, learning_rate=3e-4, resize_scale=1.0, rotate_degrees=10.0,
                      iso_noise_prob=0.15, jitter_brightness=0.15, jitter_contrast=0.15, jitter_saturation=0.025,
                      jitter_hue=0.02, amp="off"),
    "demo": replace(_DEFAULT, preset="demo", run_name="demo", data_dir="dataset/demo", paired_test=True, image_size=64,
                    base_channels=32, resize_scale=1.0, num_epochs=1, num_decay_epochs=2, max_steps=1000,
                    ema_decay=0.998, sample_every_steps=200, checkpoint_every_steps=200, num_workers=1),
}  # fmt: skip


def parse_args(argv: Sequence[str] | None = None) -> Config:
    """The configuration that the command line asks for; a mistake ends the program with status 2 and says why."""
    argv = list(sys.argv[1:] if argv is None else argv)
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            return tyro.cli(Config, default=PRESETS.get(_named_preset(argv), _DEFAULT), args=argv)
    except ValueError as error:  # some versions of tyro frame what __post_init__ raises, others let it pass
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except SystemExit as stop:
        if printed.getvalue():
            print("error: " + _unboxed(printed.getvalue()), file=sys.stderr)
        raise SystemExit(stop.code) from None


def _named_preset(argv: Sequence[str]) -> str:
    """The last `--preset` on the command line; tyro itself judges whether there is such a preset."""
    given = re.findall(r"(?:^|\0)--preset[\0=]([^\0]*)", "\0".join(argv))
    return given[-1] if given else "default"


def _unboxed(text: str) -> str:
    """Tyro's framed error message on one line, without frame, title, and the help it repeats for a bad value."""
    _, *lines = re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines()  # the first holds the title
    words = [line.strip("│| ") for line in lines if not re.fullmatch(r"[│|+╰╯─ -]*", line)]
    message = re.sub(r" Argument helptext:.*| For full helptext.*", "", " ".join(filter(None, words)))
    return re.sub(r"^Error parsing (Config: )?", "", message)


def from_dict(values: dict[str, Any]) -> Config:
    """A configuration from JSON values, as a checkpoint holds it; ValueError for an unknown knob or a bad value."""
    unknown = values.keys() - {field.name for field in fields(Config)}
    if unknown:
        raise ValueError(f"unknown configuration fields: {', '.join(sorted(map(str, unknown)))}")
    return Config(**values)


def to_dict(config: Config) -> dict[str, Any]:
    """The configuration as JSON values."""
    return asdict(config)
