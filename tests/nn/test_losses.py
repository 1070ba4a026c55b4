"""Losses by their identities."""

import math

import pytest
import torch
import torch.nn.functional as F

from rgfl.nn.assign import Targets
from rgfl.nn.config import ModelConfig
from rgfl.nn.decode import BoxDecoder, Raw
from rgfl.nn.loss import (
    EMPTY,
    circular_distribution_focal_loss,
    distribution_focal_loss,
    focal_loss,
    log_scores,
    loss_normalisers,
    nearest_description,
    quality_focal_loss,
)


@pytest.fixture
def logits() -> torch.Tensor:
    return torch.linspace(-8, 8, 33, dtype=torch.float64)


@pytest.mark.parametrize("label", [0.0, 1.0])
def test_quality_focal_loss_of_hard_labels_is_focal_loss(logits: torch.Tensor, label: float) -> None:
    labels = torch.full_like(logits, label)
    torch.testing.assert_close(
        quality_focal_loss(logits, labels, beta=2), focal_loss(logits, labels, alpha=None, gamma=2)
    )


def test_quality_focal_loss_is_least_where_the_score_is_the_label() -> None:
    for label in (0.1, 0.5, 0.83):
        score = torch.linspace(0.01, 0.99, 981, dtype=torch.float64)
        loss = quality_focal_loss(score.logit(), torch.full_like(score, label))
        assert score[loss.argmin()].item() == pytest.approx(label, abs=1e-3)
        assert loss.min() == pytest.approx(0, abs=1e-4)


def test_focal_loss_without_focus_is_cross_entropy(logits: torch.Tensor) -> None:
    for label in (0.0, 1.0):
        labels = torch.full_like(logits, label)
        torch.testing.assert_close(
            focal_loss(logits, labels, alpha=None, gamma=0),
            F.binary_cross_entropy_with_logits(logits, labels, reduction="none"),
        )
    weighted = focal_loss(torch.tensor(2.0).double(), torch.tensor(1.0)).item()
    assert weighted == pytest.approx(0.25 * (1 - 1 / (1 + math.exp(-2))) ** 2 * math.log1p(math.exp(-2)))


def test_scores_with_quality_are_a_product(logits: torch.Tensor) -> None:
    quality = logits.flip(0) / 2
    log_p, log_rest = log_scores(logits, quality)
    product = logits.sigmoid() * quality.sigmoid()
    torch.testing.assert_close(log_p.exp(), product)
    torch.testing.assert_close(log_rest.exp(), 1 - product)
    sure = torch.full_like(logits, 60.0)  # quality of 1 changes nothing
    torch.testing.assert_close(
        quality_focal_loss(logits, logits * 0 + 0.3, quality=sure),
        quality_focal_loss(logits, logits * 0 + 0.3),
    )


@pytest.mark.parametrize("quality", [None, -1e4, 1e4])
def test_extreme_logits_have_finite_losses_and_gradients(quality: float | None) -> None:
    for loss in (focal_loss, quality_focal_loss):
        for label in (0.0, 0.5, 1.0):
            x = torch.tensor([-1e4, -100.0, -1e-30, 0.0, 100.0, 1e4], requires_grad=True)
            extra = {} if quality is None or loss is focal_loss else {"quality": torch.full((6,), quality)}
            value = loss(x, torch.full((6,), label), **extra)
            value.sum().backward()
            assert value.isfinite().all()
            assert x.grad is not None
            assert x.grad.isfinite().all()


@pytest.mark.parametrize("target", [0.0, 0.25, 3.0, 7.5, 15.9])
def test_distribution_focal_loss_is_least_at_the_two_neighbours(target: float) -> None:
    left, share = int(target), target - int(target)
    best = torch.full((17,), -40.0, dtype=torch.float64)
    best[left] = math.log(max(1 - share, 1e-12))
    best[left + 1] = math.log(max(share, 1e-12))
    best.requires_grad_()
    goal = torch.tensor(target, dtype=torch.float64)
    loss = distribution_focal_loss(best, goal)
    (gradient,) = torch.autograd.grad(loss, best)
    assert gradient.abs().max() < 1e-6
    assert (best.softmax(-1) @ torch.arange(17, dtype=torch.float64)).item() == pytest.approx(
        target, abs=1e-6
    )
    assert distribution_focal_loss(torch.randn(50, 17, dtype=torch.float64), goal.expand(50)).min() > loss


@pytest.mark.parametrize("bins", [3, 18, 36])
def test_circular_loss_trains_to_the_exact_angle_even_across_the_seam(bins: int) -> None:
    decoder = BoxDecoder(ModelConfig(angle_bins=bins))
    step = math.pi / bins
    angles = [
        -math.pi / 4,
        -math.pi / 4 + 0.3 * step,
        0.0,
        1.0,
        3 * math.pi / 4 - 0.4 * step,
        3 * math.pi / 4,
    ]
    angle = torch.tensor(angles, dtype=torch.float64)
    # The loss is a cross-entropy to fixed shares: its gradient at equal logits is 1/K − share.
    logits = torch.zeros(len(angle), bins, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(circular_distribution_focal_loss(logits, angle).sum(), logits)
    shares = 1 / bins - gradient
    assert ((shares > 1e-9).sum(1) <= 2).all()
    reg = torch.cat((torch.zeros(len(angle), 6 * 17), shares.clamp(min=1e-12).log().float()), 1)
    decoded = decoder(reg, torch.zeros(len(angle), 2), torch.full((len(angle), 1), 8.0))[:, 4].double()
    assert torch.sin(decoded - angle).abs().max() < 1e-6


def test_circular_loss_has_period_pi() -> None:
    logits = torch.randn(100, 18, dtype=torch.float64)
    angle = torch.linspace(-1, 2, 100, dtype=torch.float64)
    for turns in (-2, 1, 3):
        torch.testing.assert_close(
            circular_distribution_focal_loss(logits, angle + turns * math.pi),
            circular_distribution_focal_loss(logits, angle),
        )


def box_of(sides, angle, point):
    """(N, 5) the box whose sides lie l, t, r, b (N, 4) from its point, in its own axes turned by θ (N, 1)."""
    u, v = ((sides[:, 2:] - sides[:, :2]) / 2).split(1, 1)
    shift = torch.cat((u * angle.cos() - v * angle.sin(), u * angle.sin() + v * angle.cos()), 1)
    return torch.cat((point + shift, sides[:, :2] + sides[:, 2:], angle), 1)


def test_near_squares_have_two_descriptions_of_one_box() -> None:
    point = torch.tensor([[30.0, 40.0]])
    sides = torch.tensor([[5.0, 7.0, 6.0, 3.0]])  # 11 × 10
    angle = torch.tensor([0.3])
    near, near_angle = nearest_description(sides, angle, torch.tensor([0.4]), 1.2)
    assert torch.equal(near, sides)
    assert torch.equal(near_angle, angle)
    far, far_angle = nearest_description(sides, angle, torch.tensor([1.7]), 1.2)
    assert far.tolist() == [[7.0, 6.0, 3.0, 5.0]]  # t, r, b, l
    assert far_angle.item() == pytest.approx(0.3 + math.pi / 2)
    one = box_of(sides, angle[:, None], point)
    other = box_of(far, far_angle[:, None], point)
    torch.testing.assert_close(one[:, :2], other[:, :2])
    torch.testing.assert_close(one[:, 2:4], other[:, [3, 2]])
    # Just beyond the seam the same box is described from its other end.
    seam = torch.tensor([-math.pi / 4 + 0.01])
    turned, turned_angle = nearest_description(sides, seam, torch.tensor([3 * math.pi / 4 - 0.01]), 1.0)
    assert turned.tolist() == [[6.0, 3.0, 5.0, 7.0]]  # r, b, l, t
    torch.testing.assert_close(
        box_of(sides, seam[:, None], point)[:, :4],
        box_of(turned, turned_angle[:, None], point)[:, :4],
    )
    # An elongated box has no quarter turn, however far the prediction.
    long = torch.tensor([[15.0, 7.0, 16.0, 3.0]])
    kept, kept_angle = nearest_description(long, angle, torch.tensor([1.7]), 1.2)
    assert torch.equal(kept, long)
    assert torch.equal(kept_angle, angle)


def targets_of(*counts: int) -> Targets:
    """So many positive points in each image."""
    image = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    number = len(image)
    zero = torch.zeros(number, dtype=torch.int64)
    return Targets(image, zero, torch.zeros(number, 3), torch.ones(number, 5), zero, counts)


@pytest.mark.parametrize(
    ("counts", "gfl", "integral"),
    [((7, 5), 12, 12), ((1, 1), 2, 2), ((7, 0), 7 + EMPTY, 8), ((0, 0), 2 * EMPTY, 2)],
)
def test_images_without_objects_count_for_some(counts: tuple[int, ...], gfl: int, integral: int) -> None:
    """A batch without any was divided by one point, and its gradient was 588 to 1,293 in place of 3."""
    targets = targets_of(*counts)
    raw = Raw((torch.zeros(2, 1, 4, 4),), (torch.zeros(2, 6 * 17 + 18, 4, 4),))
    config, integral_config = ModelConfig(quality=False), ModelConfig(mode="integral")
    found = loss_normalisers(raw, targets, config, BoxDecoder(config))
    assert found.tolist() == [gfl, sum(counts) / 2]  # each weighs its score of a half
    one = Raw((raw.cls[0][:1],), (raw.reg[0][:1],))
    parts = [loss_normalisers(one, targets.of_images(i, i + 1), config, BoxDecoder(config)) for i in range(2)]
    assert torch.equal(parts[0] + parts[1], found)
    assert loss_normalisers(None, targets, integral_config, BoxDecoder(integral_config)).tolist() == [
        integral
    ]
