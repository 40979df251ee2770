"""The dashboard: every hyperparameter of a training run, with its meaning, unit, default and rule.

Each one is a flag of train.py: `image_size` is `--image-size`, and the comment beside it is the flag's help text (see
training/command_line.py).
The types with a range, such as `Fraction`, and the presets `paper`, `origin` and `demo` stand below the knobs.

A knob marked `Free` may have another value when a run is resumed, because it does not say what is learned: places,
hardware, and what is written when. One marked `Growing` may be raised. All others must stay as they were.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from enum import Enum
from reprlib import repr as short_repr
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import tyro


class OnResume(Enum):
    """What may happen to a knob when a run is resumed; without such a mark it must stay as it was."""

    MAY_DIFFER = "may differ"
    MAY_GROW = "may grow"


T = TypeVar("T")
Free = Annotated[T, OnResume.MAY_DIFFER]
Growing = Annotated[T, OnResume.MAY_GROW]


@dataclass(frozen=True)
class Start:
    """The values to start from"""

    preset: Free[Literal["default", "paper", "origin", "demo"]] = "default"  # the recipe to start from; other flags win


@dataclass(frozen=True)
class Data:
    """Two folders of unpaired images"""

    data_dir: Free[str] = "dataset"  # holds train/<domain_a> and train/<domain_b>, or trainA and trainB; also test/...
    domain_a: Free[str] = "european"  # folder name of domain a, in upper or lower case
    domain_b: Free[str] = "asian"  # folder name of domain b, in upper or lower case
    paired_test: bool = False  # test images of equal name are true pairs: report the error to the truth at the end
    image_size: ImageSide = 256  # side of the square training image in px, a multiple of 4


@dataclass(frozen=True)
class Augmentation:
    """Random changes to the training images, drawn independently for each one"""

    resize_scale: Scale = 286 / 256  # resize the short side to this times image_size, then crop (paper 286/256)
    flip_prob: Fraction = 0.5  # chance of a left-right flip (paper 0.5)
    rotate_degrees: Degrees = 0.0  # rotate by an angle drawn from +- this
    iso_noise_prob: Fraction = 0.0  # chance of camera noise
    jitter_brightness: Fraction = 0.0  # scale the brightness by a factor drawn from 1 +- this
    jitter_contrast: Fraction = 0.0  # scale the contrast by a factor drawn from 1 +- this
    jitter_saturation: Fraction = 0.0  # scale the saturation by a factor drawn from 1 +- this
    jitter_hue: Hue = 0.0  # shift the hue by a fraction of the colour circle drawn from +- this


@dataclass(frozen=True)
class Networks:
    """Two generators and two discriminators"""

    base_channels: Width = 64  # channels of the first layer of all four networks (paper 64)
    num_residuals: Depth = 0  # residual blocks of a generator; 0: 9 above 128 px, else 6 (paper)
    padding: Literal["reflect", "zero", "reflect-all"] = "zero"  # generators' padding; zero is cheaper (paper reflect)
    global_skip: bool = True  # generators predict the change to their input and start as the identity (paper: no)
    appearance_flow: bool = True  # with global_skip, generators also move pixels (Zhou et al. 2016; paper: no)
    upsampling: Literal["transposed", "resize"] = "resize"  # how generators enlarge (paper transposed)
    norm_first: bool = True  # instance norm after the generator's first layer (paper: yes)
    disc_norm: Literal["instance", "none"] = "none"  # norm of the discriminators' inner layers (paper instance)
    disc_global: bool = True  # discriminators score the whole image beside its patches (paper: patches only)
    spectral_norm: bool = False  # spectral normalisation of the discriminators (Miyato et al. 2018; paper: no)
    init_from: Free[str] = ""  # a run's folder, a checkpoint or a .safetensors file with trained networks to start from
    init_std: Weight = 0.02  # standard deviation of the initial weights; 0: PyTorch's own initialisation (paper 0.02)


@dataclass(frozen=True)
class Losses:
    """What the networks minimise"""

    lambda_cycle: Weight = 5.0  # weight of the cycle loss; higher keeps more of the person (paper 10)
    lambda_identity: Weight = 0.0  # weight of the identity loss as a multiple of lambda_cycle (paper 0.5)
    lambda_pair: Weight = 0.0  # weight of the error to the truth; above 0, each training image needs its pair (paper 0)
    identity_epochs: Count = 0  # epochs over which the identity loss falls linearly to zero; 0: it stays (paper)
    diff_augment: Literal["none", "geometry", "all"] = "none"  # augment the discriminators' inputs (Zhao et al. 2020)
    disc_blur: Blur = 1.0  # in half the steps blur the discriminators' inputs, with a sigma of up to this, px (paper 0)
    source_negatives: bool = True  # discriminators also reject real images of the other domain (paper: no)
    gan_loss: Literal["lsgan", "logistic"] = "logistic"  # squared error or cross-entropy of the scores (paper lsgan)
    r1_gamma: Weight = 1.0  # gradient penalty at 64 px, in proportion to the pixels (Mescheder et al. 2018; paper 0)
    gan_sigmoid: bool = False  # apply a sigmoid to the discriminator's scores before the squared error (paper: no)
    pool_size: Count = 50  # earlier fakes kept per domain for the discriminators; 0: none (paper 50)
    disc_first: bool = False  # update the discriminators before the generators (paper: after)


@dataclass(frozen=True)
class Optimisation:
    """Steps and learning rates"""

    batch_size: Positive = 1  # images of each domain per step (paper 1)
    num_epochs: Growing[Positive] = 100  # epochs at the full learning rate; one is a pass over the larger folder
    num_decay_epochs: Growing[Count] = 50  # further epochs over which the rate falls linearly to zero (paper 100)
    max_steps: Free[Count] = 0  # stop after this many steps, wherever the schedule is; 0: no limit
    learning_rate: LearningRate = 2e-4  # Adam's learning rate (paper 2e-4)
    disc_learning_rate: OwnRate = 4e-4  # the discriminators' own learning rate; 0: learning_rate (paper)
    scale_learning_rate: bool = False  # multiply the rate by the number of processes (Goyal et al. 2017)
    beta1: Decay = 0.5  # Adam's decay rate of the gradient's mean (paper 0.5)
    ema_decay: Decay = 0.999  # per-step decay of the generators' weight average; 0: use the raw weights (paper)


@dataclass(frozen=True)
class Machine:
    """Hardware, precision and seed"""

    amp: Literal["auto", "bf16", "off"] = "auto"  # mixed precision; auto: bf16 where it is faster, else off
    compile: Free[bool] = False  # torch.compile the networks: slow to start, faster per step on a GPU
    cuda_graph: Free[Literal["auto", "on", "off"]] = "auto"  # repeat a recorded step; auto: on one GPU, uncompiled
    recompute: Free[bool] = False  # recompute residual blocks in the backward pass: less memory, more time, same result
    device: Free[str] = "auto"  # auto, cpu, cuda, cuda:N or mps; auto: the first available of cuda, mps, cpu
    num_workers: Free[NumWorkers] = 2  # processes that read images; 0: the training process reads them itself
    seed: Seed = 0  # seeds weights, order, pairs, augmentation and image pools; a CPU repeats a run bit for bit


@dataclass(frozen=True)
class Output:
    """The run's folder, runs_dir/run_name"""

    runs_dir: Free[str] = "runs"  # parent folder of all runs; pass it to `tensorboard --logdir`
    run_name: Free[str] = "default"  # this run's folder in runs_dir; an existing run is resumed
    log_every_steps: Free[Positive] = 50  # log a row of metrics every N steps
    sample_every_steps: Free[Positive] = 1000  # save a sample grid every N steps
    num_samples: Free[Positive] = 6  # test images of each domain in a sample grid
    checkpoint_every_steps: Free[Positive] = 1000  # save a checkpoint every N steps
    keep_checkpoints: Free[TwoOrMore] = 3  # newest checkpoints to keep
    evaluate_every_epochs: Free[Count] = 0  # evaluate every N epochs, and keep the best checkpoint; 0: never
    keep_every_epochs: Free[Count] = 0  # keep a checkpoint every N epochs for good; 0: none


# The sections stand in reverse order, because a dataclass takes its last base's fields first.
@dataclass(frozen=True)
class Config(Output, Machine, Optimisation, Losses, Networks, Augmentation, Data, Start):
    """Train a CycleGAN on two folders of unpaired images.

    To resume a run, run the same command again.
    """

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(type(self), include_extras=True).items():
            _check_value(name, kind, getattr(self, name))
        _check_words(self)

    @property
    def resolved_num_residuals(self) -> int:
        """`num_residuals`, or the paper's choice for this image size where it is 0."""
        return self.num_residuals or (9 if self.image_size > 128 else 6)

    @property
    def generator(self) -> dict[str, Any]:
        """Keyword arguments of `Generator`."""
        return {
            "num_residuals": self.resolved_num_residuals,
            "base_channels": self.base_channels,
            "padding": self.padding,
            "global_skip": self.global_skip,
            "appearance_flow": self.appearance_flow,
            "upsampling": self.upsampling,
            "norm_first": self.norm_first,
            "init_std": self.init_std,
            "recompute": self.recompute,
        }

    @property
    def discriminator(self) -> dict[str, Any]:
        """Keyword arguments of `Discriminator`."""
        return {
            "base_channels": self.base_channels,
            "init_std": self.init_std,
            "norm": self.disc_norm,
            "global_side": self.image_size if self.disc_global else 0,
            "spectral": self.spectral_norm,
        }


SECTIONS = (Start, Data, Augmentation, Networks, Losses, Optimisation, Machine, Output)


# --- Presets

PRESET_NAMES = ("paper", "origin", "demo")  # The preset "default" is the values above.
PRESET_VALUES: dict[str, tuple[Any, ...]] = {  # ... keeps the value above
    # knob                     paper         origin        demo
    "run_name":               ("paper",      "origin",     "demo"),
    "data_dir":               (...,          ...,          "dataset/demo"),
    "paired_test":            (...,          ...,          True),
    "image_size":             (...,          ...,          64),
    "resize_scale":           (...,          1.0,          1.0),
    "rotate_degrees":         (...,          10.0,         ...),
    "iso_noise_prob":         (...,          0.15,         ...),
    "jitter_brightness":      (...,          0.15,         ...),
    "jitter_contrast":        (...,          0.15,         ...),
    "jitter_saturation":      (...,          0.025,        ...),
    "jitter_hue":             (...,          0.02,         ...),
    "base_channels":          (...,          ...,          32),
    "num_residuals":          (...,          8,            ...),
    "padding":                ("reflect",    ...,          ...),
    "global_skip":            (False,        False,        ...),
    "appearance_flow":        (False,        False,        ...),
    "upsampling":             ("transposed", "transposed", ...),
    "norm_first":             (...,          False,        ...),
    "disc_norm":              ("instance",   "instance",   ...),
    "disc_global":            (False,        False,        ...),
    "init_std":               (...,          0.0,          ...),
    "lambda_cycle":           (10.0,         3.0,          ...),
    "lambda_identity":        (0.5,          ...,          ...),
    "disc_blur":              (0.0,          0.0,          ...),
    "source_negatives":       (False,        False,        ...),
    "gan_loss":               ("lsgan",      "lsgan",      ...),
    "r1_gamma":               (0.0,          0.0,          ...),
    "gan_sigmoid":            (...,          True,         ...),
    "pool_size":              (...,          0,            ...),
    "disc_first":             (...,          True,         ...),
    "num_epochs":             (...,          ...,          1),
    "num_decay_epochs":       (100,          ...,          2),
    "max_steps":              (...,          ...,          1000),
    "learning_rate":          (...,          3e-4,         ...),
    "disc_learning_rate":     (0.0,          0.0,          ...),
    "ema_decay":              (0.0,          0.0,          0.998),
    "amp":                    ("off",        "off",        ...),
    "num_workers":            (...,          ...,          1),
    "sample_every_steps":     (...,          ...,          200),
    "checkpoint_every_steps": (...,          ...,          200),
}  # fmt: skip

# Configurations saved before a knob existed lack it; this is what they were trained with.
BEFORE_THE_KNOB: dict[str, Any] = {
    "appearance_flow": False,
    "upsampling": "transposed",
    "disc_norm": "instance",
    "disc_global": False,
    "disc_blur": 0.0,
    "source_negatives": False,
    "gan_loss": "lsgan",
    "r1_gamma": 0.0,
    "disc_learning_rate": 0.0,
}


# --- Rules

NO_LIMIT = 10**9  # No real run has more steps, images or files than this, or a weight as large.


@dataclass(frozen=True)
class Between:
    """The rule for a number: `low <= value <= high`, and divisible by `multiple_of` unless that is 0."""

    low: float
    high: float
    multiple_of: int = 0

    def __str__(self) -> str:
        text = f"between {self.low:g} and {self.high:g}"
        return f"a multiple of {self.multiple_of}, {text}" if self.multiple_of else text

    def allows(self, value: float) -> bool:
        in_range = self.low <= value <= self.high  # False for NaN, too
        return in_range and not (self.multiple_of and value % self.multiple_of)


Count = Annotated[int, Between(0, NO_LIMIT), tyro.conf.arg(metavar="INT>=0")]
Positive = Annotated[int, Between(1, NO_LIMIT), tyro.conf.arg(metavar="INT>=1")]
ImageSide = Annotated[int, Between(32, 4096, multiple_of=4), tyro.conf.arg(metavar="INT=32..4096")]
Width = Annotated[int, Between(1, 1024), tyro.conf.arg(metavar="INT=1..1024")]
Depth = Annotated[int, Between(0, 64), tyro.conf.arg(metavar="INT=0..64")]
TwoOrMore = Annotated[int, Between(2, NO_LIMIT), tyro.conf.arg(metavar="INT>=2")]
Weight = Annotated[float, Between(0, NO_LIMIT), tyro.conf.arg(metavar="FLOAT>=0")]
Fraction = Annotated[float, Between(0, 1), tyro.conf.arg(metavar="FLOAT=0..1")]
Decay = Annotated[float, Between(0, 0.999999), tyro.conf.arg(metavar="FLOAT=0..0.999999")]
Hue = Annotated[float, Between(0, 0.5), tyro.conf.arg(metavar="FLOAT=0..0.5")]
NumWorkers = Annotated[int, Between(0, 256), tyro.conf.arg(metavar="INT=0..256")]
Degrees = Annotated[float, Between(0, 180), tyro.conf.arg(metavar="FLOAT=0..180")]
Scale = Annotated[float, Between(1, 4), tyro.conf.arg(metavar="FLOAT=1..4")]
Seed = Annotated[int, Between(0, 2**63 - 1), tyro.conf.arg(metavar="INT>=0")]
OwnRate = Annotated[float, Between(0, 1), tyro.conf.arg(metavar="FLOAT=0..1")]
Blur = Annotated[float, Between(0, 8), tyro.conf.arg(metavar="FLOAT=0..8")]
LearningRate = Annotated[float, Between(1e-9, 1), tyro.conf.arg(metavar="FLOAT=1e-9..1")]

DEVICES = r"auto|cpu|mps|cuda(:[0-9]{1,2})?"


def _check_value(name: str, kind: Any, value: object) -> None:
    """ValueError unless `value` has the type that the annotation `kind` names and follows its rule."""
    plain, *notes = get_args(kind) if get_origin(kind) is Annotated else (kind,)
    if get_origin(plain) is Literal:
        if value not in get_args(plain):
            raise ValueError(f"{name} must be one of {', '.join(get_args(plain))}, got {short_repr(value)}")
        return
    if type(value) is not plain and not (plain is float and type(value) is int):
        raise ValueError(f"{name} must be of type {plain.__name__}, got {short_repr(value)}")
    for rule in (note for note in notes if isinstance(note, Between)):
        if not rule.allows(value):  # type: ignore[arg-type]
            raise ValueError(f"{name} must be {rule}, got {short_repr(value)}")


def _check_words(config: Config) -> None:
    """ValueError unless the knobs that are words are usable as what they name: folders, a run, a device."""
    for name in ("domain_a", "domain_b", "run_name"):
        word = getattr(config, name)
        if not word.strip() or not word.isprintable() or word in (".", "..") or re.search(r"[/\\]", word):
            raise ValueError(f"{name} must be a plain folder name, got {short_repr(word)}")
    if config.domain_a.lower() == config.domain_b.lower():
        raise ValueError(f"domain_b must differ from domain_a, got {short_repr(config.domain_b)} for both")
    for name in ("data_dir", "runs_dir"):
        if not getattr(config, name):
            raise ValueError(f"{name} must not be empty")
    if not re.fullmatch(DEVICES, config.device):
        raise ValueError(f"device must be auto, cpu, cuda, cuda:N or mps, got {short_repr(config.device)}")


PRESETS = {"default": Config()} | {
    name: Config(preset=name, **{knob: row[column] for knob, row in PRESET_VALUES.items() if row[column] is not ...})  # type: ignore[arg-type]
    for column, name in enumerate(PRESET_NAMES)
}


def knobs_that(mark: OnResume) -> set[str]:
    """The knobs that carry this mark."""
    kinds = get_type_hints(Config, include_extras=True)
    return {name for name, kind in kinds.items() if get_origin(kind) is Annotated and mark in get_args(kind)}


# --- JSON


def from_dict(values: Mapping[str, Any]) -> Config:
    """A configuration from JSON values, as a checkpoint holds it; ValueError for an unknown knob or a bad value.

    A knob that is missing because it is newer than the values gets what BEFORE_THE_KNOB says.
    """
    unknown = values.keys() - {field.name for field in fields(Config)}
    if unknown:
        raise ValueError(f"unknown configuration fields: {short_repr(sorted(unknown, key=str))}")
    return Config(**(BEFORE_THE_KNOB | dict(values)))


def to_dict(config: Config) -> dict[str, Any]:
    """The configuration as JSON values."""
    return asdict(config)


def as_flag(knob: str, value: object) -> str:
    """A knob's value as a flag of train.py."""
    flag = knob.replace("_", "-")
    if isinstance(value, bool):
        return f"--{flag}" if value else f"--no-{flag}"
    return f"--{flag} {value}"
