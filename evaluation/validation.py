"""Quick measures of both generators on held-out images, while they are trained and to rank a run's checkpoints."""

from __future__ import annotations

from torch import Tensor, nn

from evaluation.metrics import absolute_errors, kernel_distance, ssim, translate_in_batches
from evaluation.scorers import predicts_b, train_domain_classifier


class Validation:
    """Scorers both generators cheaply while they are trained: no faces are sought and no large network is run.

    Args:
        train_a, train_b: training images of both domains, (N, 3, H, W) in [-1, 1], for the judge of the domain.
        test_a, test_b: held-out images to translate.
        paired: whether these are true translations of each other, in order.
    """

    def __init__(self, train_a: Tensor, train_b: Tensor, test_a: Tensor, test_b: Tensor, paired: bool) -> None:
        self.judge, self.accuracy = train_domain_classifier(train_a, train_b)
        self.tests, self.paired = {"a": test_a, "b": test_b}, paired
        self.references = {"a": self.judge.embed(train_a), "b": self.judge.embed(train_b)}

    def measure(self, gen_ab: nn.Module, gen_ba: nn.Module) -> dict[str, float]:
        """Numbers by name, such as "domain_ab": the share of translations that the judge takes for domain b.

        "score" ranks the checkpoints of a run: on true pairs, how near the translations are to the truth; else the
        share that looks like the target domain, times the structural similarity after the way there and back.
        """
        values: dict[str, float] = {}
        for there, back, gen, undo in (("a", "b", gen_ab, gen_ba), ("b", "a", gen_ba, gen_ab)):
            name, real = there + back, self.tests[there]
            fake = translate_in_batches(gen, real)
            rec = translate_in_batches(undo, fake)
            looks_b = float(predicts_b(self.judge, fake).mean())
            distance = kernel_distance(self.judge.embed(fake), self.references[back])
            values[f"domain_{name}"] = looks_b if back == "b" else 1 - looks_b
            values[f"feature_distance_{name}"] = distance.value if distance else 0.0
            values[f"cycle_l1_{name}"] = float(absolute_errors(rec, real).mean())
            values[f"cycle_ssim_{name}"] = float(ssim(rec, real).mean())
            if self.paired:
                values[f"truth_l1_{name}"] = float(absolute_errors(fake, self.tests[back]).mean())
        if self.paired:
            values["score"] = 1 - (values["truth_l1_ab"] + values["truth_l1_ba"]) / 2
        else:
            values["score"] = sum(values[f"domain_{name}"] * values[f"cycle_ssim_{name}"] for name in ("ab", "ba")) / 2
        return values
