"""Tables in Markdown, curves of a run's checkpoints, and the folder in which these are written."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from evaluation.metrics import Estimate
from evaluation.scorers import INCEPTION
from utils import UserError, printable

Row = dict[str, Estimate]  # The estimates of one set of images by key; measures without a value are absent.
Ranking = Mapping[int, Mapping[str, float]]  # The measures of each checkpoint of a run, by step and by name.
TITLES: dict[str, tuple[str, bool | None]] = {  # Each measure's title, and whether higher is better; None: 1 is best.
    "kid": ("KID", False),
    "fid": ("FID", False),
    "feature_distance": ("distance in the classifier's features", False),
    "joint": ("read as target, at rank 1, face found", True),
    "domain": ("read as target", True),
    "domain_jpeg": ("the same after JPEG", True),
    "domain_blur": ("the same after a blur", True),
    "domain_shift": ("the same after a shift", True),
    "rank_one": ("rank 1: own original is nearest", True),
    "identity": ("identity (cosine)", True),
    "strangers": ("identity of strangers", False),
    "face_found": ("face found", True),
    "sharpness": ("sharpness relative to the input", None),
    "change_outside": ("change outside the face / inside", False),
    "cycle_l1": ("cycle L1", False),
    "cycle_ssim": ("cycle SSIM", True),
    "truth_l1": ("L1 to the truth", False),
    "truth_ssim": ("SSIM to the truth", True),
}
CURVES: dict[str, tuple[str, str]] = {  # What `Validation` measures: the title of its curves, and their unit.
    "domain": ("read as the target", "share of the images"),
    "real_domain": ("real images read as their own domain", "share of the images"),
    "joint": ("read as the target, at rank 1, face found", "share of the images"),
    "rank_one": ("own original is the nearest", "share of the images"),
    "face_found": ("face found", "share of the images"),
    "strength": ("best strength", "S"),
    "feature_distance": ("distance to real images", "of classifier's features"),
    "cycle_l1": ("cycle: mean absolute error", "of images in [0, 1]"),
    "cycle_ssim": ("cycle: structural similarity", "1: equal"),
    "truth_l1": ("mean absolute error to the truth", "of images in [0, 1]"),
    "score": ("score that ranks the checkpoints", "1 is best"),
}
CURVE_SIZE = (6.4, 2.2)  # The diagram of a measure is this wide and high, inches.
ENDINGS = {"_ab": "a to b", "_ba": "b to a"}  # The end of a measure's name, and what the legend calls its curve.
REPORTS = ("evaluation.json", "checkpoints.json")  # By one of these a folder is known as that of an evaluation.
OTHER_FILES = ("evaluation.md", "curves.png", "sheet_ab.png", "sheet_ba.png", "strength_ab.png", "strength_ba.png")
PLOTTED = ("joint", "domain", "rank_one", "identity", "face_found")  # These measures are plotted over the strength.
PLOT_SIZE, PLOT_DPI = (6.4, 4.0), 120  # A plot is this wide and high, inches, at this many px per inch.
MISSING_PLOT = "the plot over the strength needs matplotlib; run: pip install -r requirements-extra.txt"
MISSING_CURVES = "the curves of the checkpoints need matplotlib; run: pip install -r requirements-extra.txt"


def check_folder(out: Path) -> None:
    """UserError if a folder holds files of the names that an evaluation writes, and these are not an evaluation's."""
    taken = [name for name in (*REPORTS, *OTHER_FILES) if os.path.lexists(out / name)]
    reports = [name for name in taken if name in REPORTS]
    foreign = [name for name in reports if not _is_report(out / name)]
    if foreign or (taken and not reports):
        name = printable(out / (foreign or taken)[0])
        raise UserError(f"{name} exists and was not written by this program: choose another folder with --out")


def _is_report(path: Path) -> bool:
    """Whether a file is the report of an evaluation, or of a ranking of checkpoints."""
    try:
        report = json.loads(path.read_bytes()) if path.is_file() else None  # Reading from a pipe would block for ever.
    except ValueError:
        return False
    if not isinstance(report, dict) or not report:
        return False
    is_ranking = all(isinstance(measures, dict) and "score" in measures for measures in report.values())
    return is_ranking or {"weights", "data_dir", "classifier_accuracy"} <= set(report)


def markdown_table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A Markdown table; all cells are text already, and `header` has as many as each line."""
    first, *others = ("| " + " | ".join(cells) + " |" for cells in (header, *lines))
    return "\n".join([first, "|---" * len(header) + "|", *others])


def evaluation_table(title: str, rows: Mapping[str, Row], *, features_name: str = INCEPTION) -> str:
    """A titled Markdown table of one direction's evaluation, with a line for each measure that any row has.

    Args:
        title: the heading above the table.
        rows: estimates by the name of the images that they describe; each name heads a column.
        features_name: the network whose features the kernel distance compares; it is KID for Inception's.
    """
    lines = []
    for key, (name, higher_is_better) in TITLES.items():
        cells = [str(row[key]) if key in row else "" for row in rows.values()]
        if key == "kid" and features_name != INCEPTION:
            name = f"kernel distance of {features_name}"
        if any(cells):
            better = {True: "higher is better", False: "lower is better", None: "1 is best"}[higher_is_better]
            lines.append([f"{name}, {better}", *cells])
    return f"### {title}\n\n{markdown_table(['', *rows], lines)}"


def ranking_table(ranking: Ranking) -> str:
    """A Markdown table of a run's checkpoints, the one with the highest score first."""
    best_first = sorted(ranking, key=lambda step: -ranking[step]["score"])
    lines = [[str(step), *(f"{value:.3f}" for value in ranking[step].values())] for step in best_first]
    return markdown_table(["step", *ranking[best_first[0]]], lines)


def plot_curves(path: Path, ranking: Ranking) -> None:
    """Plot each measure over the steps to a PNG file, in diagrams one below the other; both directions share one.

    Args:
        path: the file to write.
        ranking: the measures of each checkpoint.
    """
    from matplotlib.figure import Figure

    steps = sorted(ranking)
    curves: dict[str, dict[str, str]] = {}  # by measure: the names of its values by the legend's text
    for name in ranking[steps[0]]:
        end = next((end for end in ENDINGS if name.endswith(end)), "")
        curves.setdefault(name.removesuffix(end), {})[name] = ENDINGS.get(end, "both directions")
    width, height = CURVE_SIZE
    figure = Figure(figsize=(width, height * len(curves)), dpi=PLOT_DPI, layout="constrained")
    for axes, (measure, lines) in zip(figure.subplots(len(curves), squeeze=False)[:, 0], curves.items(), strict=True):
        title, unit = CURVES.get(measure, (measure, ""))
        for name, label in lines.items():
            axes.plot(steps, [ranking[step][name] for step in steps], marker="o", markersize=4, label=label)
        axes.set(title=title, xlabel="training step", ylabel=unit)
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    figure.savefig(path, format="png")


def has_matplotlib() -> bool:
    """Whether matplotlib, which is optional, is installed."""
    return find_spec("matplotlib") is not None


def plot_strengths(path: Path, curve: Mapping[float, Row], *, title: str, classifier_rate: float) -> None:
    """Plot the measures of translations over their strength, with their intervals, to a PNG file.

    Args:
        path: the file to write.
        curve: the estimates by strength.
        title: the plot's title.
        classifier_rate: the share of real images of the target domain that the classifier assigns to it.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=PLOT_SIZE, dpi=PLOT_DPI, layout="constrained")
    axes = figure.subplots()
    for key in PLOTTED:
        points = {strength: row[key] for strength, row in curve.items() if key in row}
        if points:
            (line,) = axes.plot([*points], [point.value for point in points.values()], marker="o", label=TITLES[key][0])
            low, high = ([getattr(point, end) for point in points.values()] for end in ("low", "high"))
            axes.fill_between([*points], low, high, color=line.get_color(), alpha=0.12, linewidth=0)
    axes.axhline(classifier_rate, color="grey", linestyle="--", label="read as target: real images")
    axes.set(xlabel="strength S", ylabel="share of the test images; identity: cosine", ylim=(-0.02, 1.02), title=title)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(path, format="png")
