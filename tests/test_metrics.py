"""Numbers by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from metrics import mean_absolute_error, translate_in_batches


def test_the_error_is_on_the_scale_of_images_in_zero_to_one() -> None:
    black, white = torch.full((1, 3, 4, 4), -1.0), torch.full((1, 3, 4, 4), 1.0)
    assert mean_absolute_error(black, white) == 1.0
    assert mean_absolute_error(black, black + 0.5) == pytest.approx(0.25)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7])
def test_batches_do_not_change_a_translation(batch_size: int) -> None:
    images = torch.randn(5, 3, 8, 8)
    layer = nn.Conv2d(3, 3, 3, padding=1)
    torch.testing.assert_close(translate_in_batches(layer, images, batch_size), layer(images).detach())
