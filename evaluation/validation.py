"""Measure both generators on held-out images, during training and to rank a run's checkpoints."""

from __future__ import annotations

from torch import Tensor, nn

from evaluation.metrics import absolute_errors, kernel_distance, ssim, translate_in_batches
from evaluation.scorers import load_scorers
from evaluation.scoring import Domain, Task, best_strength, read_as_target, strength_curve
from utils import Template
from weights.load import Direction

MAX_IMAGES = 100  # At most this many test images of each domain are translated, because finding faces takes time.
SUCCESS = ("joint", "domain", "rank_one", "face_found")  # These are measured at the best strength.


class Validation:
    """Measures both generators on held-out images.

    Args:
        train_a, train_b: training images of both domains, (N, 3, H, W) in [-1, 1]; they train the domain classifier.
        test_a, test_b: held-out images to translate, (N, 3, H, W) in [-1, 1].
        paired: whether test images with the same index are true translations of each other.
        template: where the landmarks of faces are in the images; None for images of other things.
    """

    def __init__(
        self,
        train_a: Tensor,
        train_b: Tensor,
        test_a: Tensor,
        test_b: Tensor,
        *,
        paired: bool,
        template: Template | None,
    ) -> None:
        self.scorers = load_scorers(train_a, train_b)
        a = Domain("a", lambda: [train_a], test_a[:MAX_IMAGES])
        b = Domain("b", lambda: [train_b], test_b[:MAX_IMAGES])
        ab, ba = Task("ab", a, b, paired, template=template), Task("ba", b, a, paired, template=template)
        self.tasks = {"ab": ab, "ba": ba}
        embed = self.scorers.domain.embed
        self.references = {"ab": embed(train_b), "ba": embed(train_a)}
        self.paired = paired

    def measure(self, gen_ab: nn.Module, gen_ba: nn.Module) -> dict[str, float]:
        """Measures by name, such as "domain_ab": the share of translations that the classifier reads as domain b.

        Success is measured at each direction's best strength, "strength_ab" and "strength_ba", as photographs take the
        translations on; other measures are of whole translations at strength 1. "score" ranks the checkpoints of a
        run. On true pairs it is 1 minus the mean error to the ground truth. On faces, and with SFace installed, it is
        the share of translations that are read as the target, at rank 1, and with a face found. Otherwise it is the
        share that is read as the target, times the structural similarity of cycle reconstructions to their inputs.
        """
        values = self._measure_direction("ab", forward=gen_ab, backward=gen_ba)
        values |= self._measure_direction("ba", forward=gen_ba, backward=gen_ab)
        if self.paired:
            values["score"] = 1 - (values["truth_l1_ab"] + values["truth_l1_ba"]) / 2
        elif "joint_ab" in values and "joint_ba" in values:
            values["score"] = (values["joint_ab"] + values["joint_ba"]) / 2
        else:
            values["score"] = sum(values[f"domain_{name}"] * values[f"cycle_ssim_{name}"] for name in ("ab", "ba")) / 2
        return values

    def _measure_direction(self, name: Direction, *, forward: nn.Module, backward: nn.Module) -> dict[str, float]:
        """The measures of one direction: `forward` translates to the target domain, `backward` closes the cycle."""
        task, scorers = self.tasks[name], self.scorers
        real, target = task.source.test, task.target.test
        fake = translate_in_batches(forward, real)
        rec = translate_in_batches(backward, fake)
        distance = kernel_distance(scorers.domain.embed(fake), self.references[name])
        values = {
            "real_domain": float(read_as_target(target, task, scorers=scorers).mean()),
            "domain": float(read_as_target(fake, task, scorers=scorers).mean()),
            "feature_distance": distance.value if distance else 0.0,
            "cycle_l1": float(absolute_errors(rec, real).mean()),
            "cycle_ssim": float(ssim(rec, real).mean()),
        }
        if self.paired:
            values["truth_l1"] = float(absolute_errors(fake, target).mean())
        if scorers.identity:
            curve = strength_curve(forward, task, scorers=scorers)
            strength = best_strength(curve)
            if "joint" in curve[strength]:  # there are faces
                values |= {key: curve[strength][key].value for key in SUCCESS} | {"strength": strength}
        return {f"{key}_{name}": value for key, value in values.items()}


def strengths_in(values: dict[str, float]) -> dict[str, float] | None:
    """The best strength by direction, "ab" and "ba", among the measures of `Validation`; None where it is unknown."""
    found = {name: values[f"strength_{name}"] for name in ("ab", "ba") if f"strength_{name}" in values}
    return found if len(found) == 2 else None
