"""Tables in Markdown, and curves of a run's checkpoints."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from PIL import Image, ImageDraw

from evaluation.metrics import Estimate
from evaluation.scorers import INCEPTION

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
CURVE_SIZE = (640, 140)  # A diagram and its caption are this wide and high, px.
CAPTION_HEIGHT = 24  # A diagram's caption is this high, px.
MARGIN = 8  # A diagram's box keeps this distance from the left, right and bottom edges, px.
DOT_RADIUS = 3  # A dot of this radius marks each checkpoint, px.
PLOTTED = ("joint", "domain", "rank_one", "identity", "face_found")  # These measures are plotted over the strength.
PLOT_SIZE, PLOT_DPI = (6.4, 4.0), 120  # A plot is this wide and high, inches, at this many px per inch.
MISSING_PLOT = "the plot over the strength needs matplotlib; run: pip install -r requirements-extra.txt"


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


def draw_curves(ranking: Ranking) -> Image.Image:
    """Draw each measure over the steps, in diagrams one below the other, each scaled to its own range."""
    steps = sorted(ranking)
    names = list(ranking[steps[0]])
    width, height = CURVE_SIZE
    picture = Image.new("RGB", (width, height * len(names)), "white")
    for index, name in enumerate(names):
        curve = _draw_curve(name, {step: ranking[step][name] for step in steps})
        picture.paste(curve, (0, index * height))
    return picture


def _draw_curve(name: str, values: dict[int, float]) -> Image.Image:
    """A captioned diagram of one measure; `values` holds it by step, in ascending order."""
    steps = list(values)
    low, high = min(values.values()), max(values.values())
    left, top = MARGIN, CAPTION_HEIGHT
    right, bottom = CURVE_SIZE[0] - MARGIN, CURVE_SIZE[1] - MARGIN
    step_range = max(steps[-1] - steps[0], 1)
    value_range = (high - low) or 1
    points = []
    for step, value in values.items():
        x = left + (right - left) * (step - steps[0]) / step_range
        y = bottom - (bottom - top) * (value - low) / value_range
        points.append((x, y))
    picture = Image.new("RGB", CURVE_SIZE, "white")
    draw = ImageDraw.Draw(picture)
    draw.text((MARGIN, 4), f"{name}: {low:.4f} to {high:.4f}, steps {steps[0]} to {steps[-1]}", fill="black")
    draw.rectangle((left, top, right, bottom), outline="lightgrey")
    draw.line(points, fill="navy", width=2)
    for x, y in points:
        draw.ellipse((x - DOT_RADIUS, y - DOT_RADIUS, x + DOT_RADIUS, y + DOT_RADIUS), fill="navy")
    return picture


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
