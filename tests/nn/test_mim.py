"""Masked image modelling: what is masked, what the loss sees, what the teacher gets."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from maskkit.errors import MaskkitError
from maskkit.nn.mim import MaskedStudent, block_mask, cosine_loss

TINY = "eva_tiny_patch16_224"


def student(size: int = 64, features: int = 8) -> MaskedStudent:
    torch.manual_seed(0)
    return MaskedStudent(TINY, size, features, depth=2, embed_dim=48).eval()


@given(st.integers(2, 20), st.integers(2, 20), st.floats(0.05, 0.95), st.integers(0, 1000))
def test_masks_have_exactly_so_many_patches(height: int, width: int, share: float, seed: int) -> None:
    count = int(share * height * width)
    mask = block_mask((height, width), count, np.random.default_rng(seed))
    assert mask.shape == (height, width)
    assert mask.sum() == count


def test_masks_are_blocks() -> None:
    """Of the paper's 102 of 256 patches far more have all four neighbours masked than of as many scattered ones."""

    def inner(mask: np.ndarray) -> int:
        return int((mask[1:-1, 1:-1] & mask[:-2, 1:-1] & mask[2:, 1:-1] & mask[1:-1, :-2] & mask[1:-1, 2:]).sum())

    rng = np.random.default_rng(0)
    masks = [block_mask((16, 16), 102, rng) for _ in range(300)]
    scattered = [rng.permuted(m.reshape(-1)).reshape(16, 16) for m in masks]
    assert sum(map(inner, masks)) > 10 * sum(map(inner, scattered))
    assert len({m.tobytes() for m in masks}) == 300
    assert np.any(masks, 0).all(), "every place has its turn"


def test_cosine_loss() -> None:
    wanted = torch.randn(5, 8)
    assert cosine_loss(wanted * torch.rand(5, 1) * 9, wanted).item() == pytest.approx(-1)
    assert cosine_loss(-wanted, wanted).item() == pytest.approx(1)
    predicted = torch.randn(5, 8)
    assert cosine_loss(3 * predicted, wanted).item() == pytest.approx(cosine_loss(predicted, wanted).item())
    assert cosine_loss(predicted.bfloat16(), wanted).dtype == torch.float32


def test_the_student_does_not_see_what_is_masked() -> None:
    model = student()
    mask = torch.zeros(1, 16, dtype=torch.bool)
    mask[0, [0, 5]] = True
    images = torch.randn(1, 3, 64, 64)
    hidden, shown = images.clone(), images.clone()
    hidden[:, :, :16, :16] += 5  # patch 0
    shown[:, :, :16, 16:32] += 5  # patch 1
    with torch.no_grad():
        assert torch.equal(model(hidden, mask), model(images, mask))
        assert not torch.allclose(model(shown, mask), model(images, mask), atol=1e-4)


def test_the_loss_is_computed_at_masked_places_alone() -> None:
    """What the teacher says elsewhere changes nothing; of the predictions there are as many as masked patches."""
    model = student()
    mask = torch.rand(2, 16) < 0.4
    predicted = model(torch.randn(2, 3, 64, 64), mask)
    assert predicted.shape == (int(mask.sum()), 8)
    wanted = torch.randn(2, 16, 8)
    other = torch.where(mask[..., None], wanted, torch.randn(2, 16, 8))
    assert cosine_loss(predicted, wanted[mask]) == cosine_loss(predicted, other[mask])
    cosine_loss(predicted, wanted[mask]).backward()
    assert model.mask_token.grad is not None
    assert model.mask_token.grad.any()


def test_students_of_other_families_are_refused() -> None:
    with pytest.raises(MaskkitError, match="not a plain transformer"):
        MaskedStudent("resnet50", 64, 8)
    with pytest.raises(MaskkitError, match="no model 'eva_none'"):
        MaskedStudent("eva_none", 64, 8)
