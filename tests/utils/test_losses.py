"""Losses: torch's own where torch has one, the papers' formulas where it has none."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from utils.losses import class_balanced_weights, classification_loss


def draw(batch: int = 7, classes: int = 5, *, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits float32 (B, K), labels int64 (B,), and shares float32 (B, K)."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(batch, classes, generator=generator) * 3
    labels = torch.randint(classes, (batch,), generator=generator)
    shares = torch.rand(batch, classes, generator=generator).softmax(1)
    return logits, labels, shares


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_without_gamma_it_is_torchs_cross_entropy_bit_for_bit(smoothing):
    logits, labels, shares = draw()
    for target in (labels, shares):
        expected = functional.cross_entropy(logits, target, reduction="none", label_smoothing=smoothing)
        assert torch.equal(classification_loss(logits, target, label_smoothing=smoothing), expected)


def test_focal_loss_of_labels_is_the_papers():
    logits, labels, _ = draw()
    p = logits.double().softmax(1)[torch.arange(7), labels]
    for gamma in (0.5, 1.0, 2.0, 5.0):
        expected = -((1 - p) ** gamma) * p.log()
        found = classification_loss(logits.double(), labels, focal_gamma=gamma)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-15)
        assert (found < functional.cross_entropy(logits.double(), labels, reduction="none")).all()


def test_focal_loss_by_hand():
    logits = torch.tensor([[math.log(3.0), 0.0]], dtype=torch.float64)  # probabilities 3/4 and 1/4
    assert classification_loss(logits, torch.tensor([0]), focal_gamma=2.0).item() == pytest.approx(
        math.log(4 / 3) / 16, rel=1e-12
    )
    mixed = torch.tensor([[0.5, 0.5]], dtype=torch.float64)
    expected = 0.5 * math.log(4 / 3) / 16 + 0.5 * math.log(4) * 9 / 16
    assert classification_loss(logits, mixed, focal_gamma=2.0).item() == pytest.approx(expected, rel=1e-12)


def test_focal_loss_of_one_hot_shares_is_that_of_labels():
    logits, labels, _ = draw()
    shares = functional.one_hot(labels, 5).float()
    options = {"focal_gamma": 2.0, "label_smoothing": 0.1}
    assert torch.equal(classification_loss(logits, labels, **options), classification_loss(logits, shares, **options))


@pytest.mark.parametrize("kind", ["labels", "shares"])
def test_focal_loss_with_gamma_towards_zero_is_smoothed_cross_entropy(kind):
    logits, labels, shares = draw()
    target = {"labels": labels, "shares": shares.double()}[kind]
    expected = functional.cross_entropy(logits.double(), target, reduction="none", label_smoothing=0.2)
    found = classification_loss(logits.double(), target, label_smoothing=0.2, focal_gamma=1e-12)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)


def test_focal_gradients_are_finite_where_the_network_is_certain():
    for gamma in (0.5, 1.0, 2.0):
        logits = torch.tensor([[200.0, 0.0, -200.0]] * 2, requires_grad=True)
        losses = classification_loss(logits, torch.tensor([0, 2]), focal_gamma=gamma)
        losses.sum().backward()
        assert losses.tolist() == [0.0, 400.0]
        assert logits.grad[0].tolist() == [0.0, 0.0, 0.0], "right and certain"
        assert logits.grad[1].tolist() == [1.0, 0.0, -1.0], "wrong and certain: as cross-entropy"


def test_focal_gradients_are_those_of_the_formula():
    logits, labels, shares = draw()
    logits = logits.double().requires_grad_()
    for target in (labels, shares.double()):
        assert torch.autograd.gradcheck(lambda x, t=target: classification_loss(x, t, focal_gamma=2.0), logits)


def test_half_precision_is_computed_in_float32():
    logits, labels, shares = draw()
    for target in (labels, shares):
        for gamma in (0.0, 2.0):
            found = classification_loss(logits.bfloat16(), target, focal_gamma=gamma)
            expected = classification_loss(logits.bfloat16().float(), target, focal_gamma=gamma)
            assert found.dtype == torch.float32
            assert torch.equal(found, expected)


def test_shares_of_another_shape_are_refused():
    logits, labels, _ = draw()
    with pytest.raises(ValueError, match=r"target has shape \(7, 1\), the logits \(7, 5\)"):
        classification_loss(logits, torch.ones(7, 1), focal_gamma=2.0)
    with pytest.raises(ValueError, match=r"target has shape \(6, 5\)"):
        classification_loss(logits, labels[:6], focal_gamma=2.0)


def test_class_balanced_weights():
    weights = class_balanced_weights([0, 0, 3, 0, 3, 5, 0])
    assert weights.dtype == torch.float64
    assert weights.tolist() == [0.25, 0.25, 0.5, 0.25, 0.5, 1.0, 0.25]
    assert class_balanced_weights(torch.tensor([], dtype=torch.int64)).shape == (0,)
    labels = torch.randint(10, (1000,), generator=torch.Generator().manual_seed(0))
    assert class_balanced_weights(labels).sum().item() == pytest.approx(10, abs=1e-12)


def test_class_balanced_weights_draw_all_classes_equally_often():
    labels = torch.tensor([0] * 900 + [1] * 90 + [2] * 10)
    drawn = torch.multinomial(
        class_balanced_weights(labels), 30_000, replacement=True, generator=torch.Generator().manual_seed(0)
    )
    counts = torch.bincount(labels[drawn]).tolist()
    assert all(abs(count - 10_000) < 4 * math.sqrt(30_000 * 2 / 9) for count in counts), counts
