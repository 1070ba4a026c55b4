"""The differentiable IoU against the compiled core, and its gradient against differences."""

import math

import numpy as np
import pytest
import torch

from rgfl.geometry import rotated_iou_pairwise as core_iou
from rgfl.nn.iou import rotated_iou_pairwise


def random_boxes(count: int, seed: int, *, thin: bool = False) -> np.ndarray:
    rng = np.random.default_rng(seed)
    low = 0.05 if thin else 5.0
    return np.stack(
        (
            rng.uniform(0, 60, count),
            rng.uniform(0, 60, count),
            rng.uniform(5, 50, count),
            rng.uniform(low, 50, count) if not thin else rng.uniform(low, 0.5, count),
            rng.uniform(-4, 4, count),
        ),
        axis=1,
    )


PAIRS = {
    "random": (random_boxes(2000, 0), random_boxes(2000, 1)),
    "thin": (random_boxes(2000, 2, thin=True), random_boxes(2000, 3)),
    "identical": (random_boxes(500, 4), random_boxes(500, 4)),
    "nearly identical": (random_boxes(500, 4), random_boxes(500, 4) + 1e-9),
    "sides exchanged": (
        random_boxes(500, 5),
        random_boxes(500, 5)[:, [0, 1, 3, 2, 4]] + [0, 0, 0, 0, math.pi / 2],
    ),
    "disjoint": (random_boxes(500, 6), random_boxes(500, 7) + np.array([500, 0, 0, 0, 0])),
}


@pytest.mark.parametrize("name", PAIRS)
def test_equals_the_compiled_core(name: str) -> None:
    a, b = PAIRS[name]
    ours = rotated_iou_pairwise(torch.tensor(a), torch.tensor(b)).numpy()
    np.testing.assert_allclose(ours, core_iou(a, b), atol=1e-11)


def test_equals_polygon_clipping() -> None:
    shapely = pytest.importorskip("shapely")
    from rgfl.boxes import to_quads

    a, b = random_boxes(300, 8), random_boxes(300, 9)
    first, second = (shapely.polygons(to_quads(boxes).reshape(-1, 4, 2)) for boxes in (a, b))
    inter = shapely.area(shapely.intersection(first, second))
    expected = inter / (shapely.area(first) + shapely.area(second) - inter)
    np.testing.assert_allclose(
        rotated_iou_pairwise(torch.tensor(a), torch.tensor(b)).numpy(), expected, atol=1e-11
    )


# One differentiable pair of each kind: no corner of one box lies exactly on a side of the other.
SMOOTH = {
    "random": ([10, 20, 30, 12, 0.3], [14, 18, 22, 16, 1.2]),
    "parallel": ([10, 20, 30, 12, 0.3], [14, 18, 22, 16, 0.3]),
    "axis-aligned": ([10, 20, 30, 12, 0.0], [14, 18, 22, 16, 0.0]),
    "perpendicular": ([10, 20, 30, 12, 0.0], [14, 18, 22, 16, math.pi / 2]),
    "nested": ([10, 20, 40, 40, 0.3], [11, 19, 10, 6, 1.0]),
    "nested, parallel": ([10, 20, 40, 40, 0.3], [11, 19, 10, 6, 0.3]),
    "disjoint": ([10, 20, 30, 12, 0.3], [200, 20, 30, 12, 1.0]),
    "disjoint, beside": ([0, 0, 10, 10, 0.0], [2, 30, 10, 10, 0.0]),
}


@pytest.mark.parametrize("name", SMOOTH)
@pytest.mark.parametrize("swapped", [False, True])
def test_gradient(name: str, swapped: bool) -> None:
    pair = [torch.tensor([box], dtype=torch.float64, requires_grad=True) for box in SMOOTH[name]]
    assert torch.autograd.gradcheck(rotated_iou_pairwise, tuple(reversed(pair)) if swapped else tuple(pair))


def test_gradient_of_random_pairs() -> None:
    a, b = (torch.tensor(random_boxes(40, seed), requires_grad=True) for seed in (10, 11))
    assert torch.autograd.gradcheck(rotated_iou_pairwise, (a, b))


def test_gradient_of_identical_boxes_points_nowhere_but_down() -> None:
    # The maximum is a kink in centre, size and angle: any step loses, and no step is proposed along the
    # angle or the centre.
    box = torch.tensor([[10, 20, 30, 12, 0.3]], dtype=torch.float64, requires_grad=True)
    iou = rotated_iou_pairwise(box, box.detach())
    (gradient,) = torch.autograd.grad(iou.sum(), box)
    assert iou.item() == pytest.approx(1)
    assert gradient[0, [0, 1, 4]].abs().max() < 1e-9
    assert gradient.isfinite().all()
    for index in range(5):
        for step in (-1e-3, 1e-3):
            moved = box.detach().clone()
            moved[0, index] += step
            assert rotated_iou_pairwise(moved, box.detach()) < iou


def test_float32_gradient_is_that_of_float64() -> None:
    # Nearly parallel pairs: as one quotient the mean of a clamped line loses .01 a pixel in the centre's
    # gradient and .35 in the angle's to cancellation.
    a, b = random_boxes(2000, 12), random_boxes(2000, 13)
    b[:1000, 4] = a[:1000, 4] + np.random.default_rng(0).uniform(-1e-5, 1e-5, 1000)
    gradients = []
    for dtype in (torch.float64, torch.float32):
        inputs = [torch.tensor(boxes, dtype=torch.float32).to(dtype).requires_grad_() for boxes in (a, b)]
        rotated_iou_pairwise(*inputs).sum().backward()
        gradients.append(inputs[0].grad.double())
    assert (gradients[0] - gradients[1]).abs().max() < 1e-5


@pytest.mark.parametrize("turn", [0, 1e-7, 1e-6, 1e-5, math.pi / 2, -math.pi / 2])
def test_float32_gradient_of_almost_parallel_boxes(turn: float) -> None:
    """Sides that are parallel but for a rounding, as a quarter turn of float32: 1 in 8 had the wrong sign."""
    rng = np.random.default_rng(3)
    a = random_boxes(2000, 14)
    b = a + rng.normal(0, 1, a.shape) * [3, 3, 2, 2, 0]
    b[:, 2:4] = np.abs(b[:, 2:4]) + 2
    b[:, 4] = np.float32(a[:, 4]) + np.float32(turn)
    gradients = []
    for dtype in (torch.float64, torch.float32):
        inputs = [torch.tensor(boxes, dtype=torch.float32).to(dtype).requires_grad_() for boxes in (a, b)]
        rotated_iou_pairwise(*inputs).sum().backward()
        gradients.append(torch.stack([one.grad.double() for one in inputs]))
    sides = gradients[0][..., :4]
    assert (gradients[1][..., :4] - sides).abs().max() < 1e-4 * (1 + sides.abs().max())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("tiny", [0.0, 1e-45, 1e-40, 1e-38, 1e-30, 1e-20, 1e-13, 1e-12, 1e-11, 1e-8])
def test_touching_and_denormal_differences_are_finite(dtype: torch.dtype, tiny: float) -> None:
    a = torch.tensor(
        [
            [0, 0, 10, 10, 0],
            [0, 0, 10, 4, 0],
            [0, 0, 10, 10, 0],
            [0, 0, 10, 10, 0],
            [5, 5, 9, 9, 0],
            [5, 5, 0, 0, 0],
        ],
        dtype=dtype,
        requires_grad=True,
    )
    b = torch.tensor(
        [
            [0, 0, 10, 10, tiny],  # turned
            [tiny, tiny, 10, 4, tiny],  # moved and turned
            [10, 0, 10, 10, tiny],  # side on side
            [10, 10, 10, 10, tiny],  # corner on corner
            [5, 5, tiny, tiny, tiny],  # a point
            [5, 5, tiny, tiny, tiny],  # two points
        ],
        dtype=dtype,
        requires_grad=True,
    )
    iou = rotated_iou_pairwise(a, b)
    iou.sum().backward()
    assert iou.isfinite().all()
    assert a.grad.isfinite().all()
    assert b.grad.isfinite().all()
    assert (iou[:2] > 0.999).all()
    assert (iou[2:] < 1e-6).all()


def test_stays_float32_under_autocast() -> None:
    a = torch.tensor([[900.0, 900.0, 30.0, 12.0, 0.3]])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        iou = rotated_iou_pairwise(a, a + 0.25)
    assert iou.dtype == torch.float32
    assert iou.item() == rotated_iou_pairwise(a, a + 0.25).item()


def test_shapes_are_checked_and_empty_is_empty() -> None:
    assert rotated_iou_pairwise(torch.zeros(0, 5), torch.zeros(0, 5)).shape == (0,)
    with pytest.raises(ValueError, match=r"\(2, 4\)"):
        rotated_iou_pairwise(torch.zeros(2, 4), torch.zeros(2, 4))
