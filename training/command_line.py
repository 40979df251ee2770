"""The command line of train.py: every knob of config.py is a flag, grouped by section. Nothing here imports torch."""

from __future__ import annotations

import contextlib
import io
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, make_dataclass
from pathlib import Path
from typing import Any

import tyro

from config import PRESETS, SECTIONS, Config, Start, from_dict
from console import printable, reason_of


@dataclass(frozen=True)
class StartFlags(Start):
    """The values to start from"""

    config: str = ""  # a run's config.json to start from instead of a preset, to repeat that run; other flags win


def parse_args(argv: Sequence[str] | None = None) -> Config:
    """The configuration that the command line describes; a mistake ends the program with status 2 and one line."""
    argv = list(sys.argv[1:] if argv is None else argv)
    printed = io.StringIO()
    try:
        base = _base(argv)
        with contextlib.redirect_stderr(printed):
            parsed = tyro.cli(_command_line(base), args=_changed_switches(argv, base),
                              config=(tyro.conf.FlagCreatePairsOff,))  # fmt: skip
        values: dict[str, Any] = {}
        for section in SECTIONS:
            values |= asdict(getattr(parsed, section.__name__.lower()))
        del values["config"]  # The file says what to train; where it lies is not part of that.
        return from_dict(values)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except SystemExit as stop:
        if printed.getvalue():
            print("error: " + _unframed(printed.getvalue()), file=sys.stderr)
        raise SystemExit(stop.code) from None


def _base(argv: Sequence[str]) -> Config:
    """The configuration that the flags change: that of `--config` or `--preset`; ValueError where it is of no use."""
    path, preset = _last_value(argv, "config"), _last_value(argv, "preset")
    if path is None:
        return PRESETS.get(preset or "default", PRESETS["default"])  # tyro itself checks whether there is such a preset
    if preset is not None:
        raise ValueError("--config and --preset are both whole sets of values: leave out one of them")
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ValueError(f"--config {printable(path)}: {error.strerror}; give the config.json of a run") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"--config {printable(path)} is not a JSON file: {reason_of(error)}") from error
    if not isinstance(values, dict):
        raise ValueError(f"--config {printable(path)} holds no values by name; give the config.json of a run")
    try:
        return from_dict(values)
    except ValueError as error:
        raise ValueError(f"--config {printable(path)}: {error}") from error


def _last_value(argv: Sequence[str], flag: str) -> str | None:
    """The value of a flag where it stands last on the command line; None if it is not there."""
    given = re.findall(rf"(?:^|\0)--{flag}[\0=]([^\0]*)", "\0".join(argv))
    return given[-1] if given else None


def _command_line(base: Config) -> Any:
    """The base as tyro reads it: a dataclass with one field a section, so that --help groups the flags by section."""
    groups: list[tuple[str, Any, Any]] = []
    for section in SECTIONS:
        flags = StartFlags if section is Start else section
        values = flags(**{field.name: getattr(base, field.name) for field in fields(section)})
        groups.append((section.__name__.lower(), tyro.conf.configure(tyro.conf.OmitArgPrefixes)(flags), values))
    return make_dataclass("Config", groups, namespace={"__doc__": Config.__doc__})


def _changed_switches(argv: Sequence[str], base: Config) -> list[str]:
    """The command line with only those booleans that differ from the base, since --help shows each in one form."""
    booleans = {field.name for field in fields(Config) if isinstance(getattr(base, field.name), bool)}
    kept: list[str] = []
    chosen: dict[str, bool] = {}
    for word in argv:
        name = word.removeprefix("--").replace("-", "_")
        knob = name.removeprefix("no_")
        if word.startswith("--") and knob in booleans:
            chosen[knob] = name == knob
        else:
            kept.append(word)
    changed = {knob: value for knob, value in chosen.items() if value != getattr(base, knob)}
    return kept + [("--" if value else "--no-") + knob.replace("_", "-") for knob, value in changed.items()]


def _unframed(text: str) -> str:
    """Tyro's framed error message on one line, without frame, title, and the help it repeats for a bad value."""
    _, *lines = re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines()  # the first holds the title
    words = [line.strip("│| ") for line in lines if not re.fullmatch(r"[│|+╰╯─ -]*", line)]
    message = re.sub(r" Argument helptext:.*| For full helptext.*", "", " ".join(filter(None, words)))
    return re.sub(r"^Error parsing (Config: )?", "", message)
