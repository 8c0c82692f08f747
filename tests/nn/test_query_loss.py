"""Points at which masks of queries are compared; the matching is tested with Mask2Former."""

import pytest
import torch

from maskkit.nn.query_loss import QueryLossConfig, uncertain_points


def test_points_are_where_the_mask_is_uncertain() -> None:
    ramp = torch.linspace(-10, 10, 32).expand(3, 1, 32, 32)
    points = uncertain_points(ramp, QueryLossConfig(points=400))
    assert points.shape == (3, 400, 2)
    sure = (points[..., 0] - 0.5).abs() > 0.25
    assert not sure[:, :300].any(), "the 300 most uncertain of 1200"
    assert sure[:, 300:].float().mean() == pytest.approx(0.5, abs=0.1)
