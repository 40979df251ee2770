"""The command line of train.py: every knob of config.py is a flag, grouped by section. Nothing here imports torch."""

from __future__ import annotations

import contextlib
import io
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict, fields, make_dataclass
from typing import Any

import tyro

from config import PRESETS, SECTIONS, Config, from_dict


def parse_args(argv: Sequence[str] | None = None) -> Config:
    """The configuration that the command line describes; a mistake ends the program with status 2 and one line."""
    argv = list(sys.argv[1:] if argv is None else argv)
    preset = PRESETS.get(_named_preset(argv), PRESETS["default"])
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            parsed = tyro.cli(_command_line(preset), args=_changed_switches(argv, preset),
                              config=(tyro.conf.FlagCreatePairsOff,))  # fmt: skip
        values: dict[str, Any] = {}
        for section in SECTIONS:
            values |= asdict(getattr(parsed, section.__name__.lower()))
        return from_dict(values)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except SystemExit as stop:
        if printed.getvalue():
            print("error: " + _unframed(printed.getvalue()), file=sys.stderr)
        raise SystemExit(stop.code) from None


def _named_preset(argv: Sequence[str]) -> str:
    """The last `--preset` on the command line; tyro itself checks whether there is such a preset."""
    given = re.findall(r"(?:^|\0)--preset[\0=]([^\0]*)", "\0".join(argv))
    return given[-1] if given else "default"


def _command_line(preset: Config) -> Any:
    """The preset as tyro reads it: a dataclass with one field a section, so that --help groups the flags by section."""
    groups: list[tuple[str, Any, Any]] = []
    for section in SECTIONS:
        values = section(**{field.name: getattr(preset, field.name) for field in fields(section)})
        groups.append((section.__name__.lower(), tyro.conf.configure(tyro.conf.OmitArgPrefixes)(section), values))
    return make_dataclass("Config", groups, namespace={"__doc__": Config.__doc__})


def _changed_switches(argv: Sequence[str], preset: Config) -> list[str]:
    """The command line with only those booleans that differ from the preset, since --help shows each in one form."""
    booleans = {field.name for field in fields(Config) if isinstance(getattr(preset, field.name), bool)}
    kept: list[str] = []
    chosen: dict[str, bool] = {}
    for word in argv:
        name = word.removeprefix("--").replace("-", "_")
        knob = name.removeprefix("no_")
        if word.startswith("--") and knob in booleans:
            chosen[knob] = name == knob
        else:
            kept.append(word)
    changed = {knob: value for knob, value in chosen.items() if value != getattr(preset, knob)}
    return kept + [("--" if value else "--no-") + knob.replace("_", "-") for knob, value in changed.items()]


def _unframed(text: str) -> str:
    """Tyro's framed error message on one line, without frame, title, and the help it repeats for a bad value."""
    _, *lines = re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines()  # the first holds the title
    words = [line.strip("│| ") for line in lines if not re.fullmatch(r"[│|+╰╯─ -]*", line)]
    message = re.sub(r" Argument helptext:.*| For full helptext.*", "", " ".join(filter(None, words)))
    return re.sub(r"^Error parsing (Config: )?", "", message)
