"""Quick measures of both generators on held-out images, during training and to rank a run's checkpoints."""

from __future__ import annotations

from torch import Tensor, nn

from evaluation.classifier import predicts_b, train_domain_classifier
from evaluation.metrics import absolute_errors, kernel_distance, ssim, translate_in_batches


class Validation:
    """Measures both generators cheaply: it detects no faces and runs no large network.

    Args:
        train_a, train_b: training images of both domains, (N, 3, H, W) in [-1, 1]; they train the domain classifier.
        test_a, test_b: held-out images to translate, (N, 3, H, W) in [-1, 1].
        paired: whether test images with the same index are true translations of each other.
    """

    def __init__(self, train_a: Tensor, train_b: Tensor, test_a: Tensor, test_b: Tensor, paired: bool) -> None:
        self.classifier, self.accuracy = train_domain_classifier(train_a, train_b)
        self.tests = {"a": test_a, "b": test_b}
        self.paired = paired
        self.references = {"a": self.classifier.embed(train_a), "b": self.classifier.embed(train_b)}

    def measure(self, gen_ab: nn.Module, gen_ba: nn.Module) -> dict[str, float]:
        """Measures by name, such as "domain_ab": the share of translations that the classifier reads as domain b.

        "score" ranks the checkpoints of a run. On true pairs it is 1 minus the mean error to the ground truth.
        Otherwise it is the share of translations that are read as the target domain, times the structural similarity
        of cycle reconstructions to their inputs.
        """
        values = self._measure_direction("a", "b", forward=gen_ab, backward=gen_ba)
        values |= self._measure_direction("b", "a", forward=gen_ba, backward=gen_ab)
        if self.paired:
            values["score"] = 1 - (values["truth_l1_ab"] + values["truth_l1_ba"]) / 2
        else:
            values["score"] = sum(values[f"domain_{name}"] * values[f"cycle_ssim_{name}"] for name in ("ab", "ba")) / 2
        return values

    def _measure_direction(
        self, source: str, target: str, *, forward: nn.Module, backward: nn.Module
    ) -> dict[str, float]:
        """The measures of one direction: `forward` translates to the target domain, `backward` closes the cycle."""
        name = source + target
        real = self.tests[source]
        fake = translate_in_batches(forward, real)
        rec = translate_in_batches(backward, fake)
        share_b = float(predicts_b(self.classifier, fake).mean())
        distance = kernel_distance(self.classifier.embed(fake), self.references[target])
        values = {
            f"domain_{name}": share_b if target == "b" else 1 - share_b,
            f"feature_distance_{name}": distance.value if distance else 0.0,
            f"cycle_l1_{name}": float(absolute_errors(rec, real).mean()),
            f"cycle_ssim_{name}": float(ssim(rec, real).mean()),
        }
        if self.paired:
            values[f"truth_l1_{name}"] = float(absolute_errors(fake, self.tests[target]).mean())
        return values
