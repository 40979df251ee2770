"""A model card in the Hub's format: what the weights are, how they were made, how good they are, and their limits."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from config import OnResume, knobs_that, to_dict
from utils import UserError
from weights.hub import MISSING, WEIGHTS_NAME
from weights.load import Weights, direction_names

MARK = "<!-- written by export.py -->"  # By this line a later export knows that it may replace the card.
TAGS = ["cyclegan", "unpaired-image-to-image-translation"]
PAPER = "https://arxiv.org/abs/1703.10593"
NAMES = {"preset", "domain_a", "domain_b"}  # These knobs may differ on resume, and say what was learned all the same.

CARD = """\
---
{metadata}
---

{mark}

# CycleGAN: {a} and {b}

{summary}

## Files

{files}

## Use

{use}

## Training

{training}

## Evaluation

{evaluation}

## Responsible use

{responsible_use}
"""
WITH_THE_PROGRAM = """\
In the folder of the program that exported these weights:

```sh
python translate.py photo.jpg --weights {address}
```"""
WITH_ONNX = """\
The inputs of an ONNX file are `image`, (N, 3, H, W) float32 RGB in [-1, 1] with sides that are multiples of 4, and
`strength`, a float32 scalar: 0 changes nothing, and 1 is what the network gives. The output is `translation` and, where
the network moves pixels, `shift`: from how far away each was taken, in sides. The metadata give the image size of the
training, the best strength and, for faces, the template: where the landmarks of an aligned face lie, as fractions of
the side."""
ON_FACES = """\
A translated picture shows no real person as they are. Do not pass it off as a photograph, do not use it to deceive,
mock or profile anyone, and ask people before you translate their faces. "{a}" and "{b}" are the names of two
folders: the model has learned whatever separates them, including their makers' choices and prejudices, and nothing
about ancestry. Do not use it to judge who somebody is."""
ON_OTHER_IMAGES = """\
A translated picture does not show what was photographed: do not pass it off as a photograph. "{a}" and "{b}" are the
names of two folders, and the model has learned whatever separates them, wanted or not."""


@dataclass(frozen=True)
class CardFacts:
    """What a card says beside what the weights say of themselves.

    Attributes:
        files: what each file beside the card is, by its name.
        address: what to give to --weights.
        commit: the commit of the program that exported them; "" if it is not known.
        data_check: what check_data.py found in the training data, as text; "" if that is not known.
        evaluation: the tables of evaluate.py; "" if there are none.
        license_id: the Hub's identifier of the weights' licence; "" leaves it open.
    """

    files: Mapping[str, str]
    address: str
    commit: str = ""
    data_check: str = ""
    evaluation: str = ""
    license_id: str = ""


def model_card(weights: Weights, facts: CardFacts) -> str:
    """The text of a card, with the metadata that the Hub reads at its top.

    Raises:
        UserError: huggingface_hub is missing.
    """
    try:
        from huggingface_hub import ModelCard, ModelCardData
    except ImportError as error:
        raise UserError(f"the model card needs another package: {MISSING}") from error
    metadata = ModelCardData(
        license=facts.license_id or None, library_name="pytorch", pipeline_tag="image-to-image", tags=TAGS
    )
    a, b = weights.config.domain_a, weights.config.domain_b
    text = CARD.format(
        metadata=metadata.to_yaml(), mark=MARK, a=a, b=b, summary=_summary(weights), use=_use(facts),
        files="\n".join(f"- `{name}`: {what}" for name, what in facts.files.items()),
        training=_training(weights, facts), evaluation=facts.evaluation or "No evaluation came with these weights.",
        responsible_use=(ON_FACES if weights.template else ON_OTHER_IMAGES).format(a=a, b=b),
    )  # fmt: skip
    return str(ModelCard(text))


def _summary(weights: Weights) -> str:
    """What the weights do."""
    config = weights.config
    names, size = direction_names(config.domain_a, config.domain_b), config.image_size
    what = "faces in photographs" if weights.template else "whole images"
    directions = [
        f"- `gen_{direction}`: {names[direction]}, at strength {weights.strength(direction):g}"
        for direction in weights.generators
    ]
    return "\n".join([f"ResNet generators of a [CycleGAN]({PAPER}), {size} px, for {what}:\n", *directions])


def _use(facts: CardFacts) -> str:
    """How to use the files."""
    parts = [WITH_THE_PROGRAM.format(address=facts.address)] if WEIGHTS_NAME in facts.files else []
    return "\n\n".join([*parts, *([WITH_ONNX] if any(name.endswith(".onnx") for name in facts.files) else [])])


def _training(weights: Weights, facts: CardFacts) -> str:
    """What the weights were trained on, for how long, and with which configuration."""
    config, counts = weights.config, weights.num_images
    on = " and ".join(f"{counts[x]} images of {name}" for x, name in (("a", config.domain_a), ("b", config.domain_b))
                      if x in counts)  # fmt: skip
    lines = [f"Trained on {on}." if on else "The file does not record how many images they were trained on."]
    if weights.step is not None:
        lines.append(f"Trained for {weights.step} steps of batch size {config.batch_size}.")
    if config.init_from:
        lines.append(f"Started from the trained networks of {Path(config.init_from).name}.")
    if facts.commit:
        lines.append(f"Exported by commit {facts.commit}.")
    parts = ["\n".join(lines)]
    if facts.data_check:
        parts.append(f"What `check_data.py` found in the data:\n\n```\n{facts.data_check}\n```")
    hidden = knobs_that(OnResume.MAY_DIFFER) - NAMES  # places and hardware
    knobs = {name: value for name, value in to_dict(config).items() if name not in hidden}
    parts.append(f"The configuration:\n\n```json\n{json.dumps(knobs, indent=2)}\n```")
    return "\n\n".join(parts)
