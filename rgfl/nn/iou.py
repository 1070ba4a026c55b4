"""Rotated IoU of pairs, differentiable, without polygons.

In the frame of box A the intersection is a boundary integral over the four edges of box B:

    area = −Σ_edges ∫ clamp(y(x), −H, H) dx,   x from clamp(p.x, −W, W) to clamp(q.x, −W, W)

Every term is continuous in its inputs, so touching, nested, equal and parallel boxes need no special case.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rgfl.nn.precision import full_precision

# Below this, in pixels, an edge is vertical or a stretch is level: the quotient's gradient would overflow.
_TINY = 1e-12


def rotated_iou_pairwise(a: Tensor, b: Tensor, eps: float = 1e-12) -> Tensor:
    """IoU of a[i] with b[i]; computed in float32 or better whatever autocast says.

    Args:
        a, b: (N, 5) boxes `cx, cy, w, h, θ`; any θ, either order of w and h.
        eps: smallest union in square pixels, so that degenerate boxes give 0.

    Returns:
        (N,) IoU; rounding may exceed 1 by an ulp.
    """
    if a.shape != b.shape or a.shape[-1] != 5:
        raise ValueError(f"expected two (N, 5) tensors of boxes, got {tuple(a.shape)} and {tuple(b.shape)}")
    with full_precision(a):
        if a.dtype != torch.float64:
            a = a.float()
        b = b.to(a.dtype)
        inter = _intersection(a, b)
        union = a[..., 2] * a[..., 3] + b[..., 2] * b[..., 3] - inter
        return inter / union.clamp(min=eps)


def _intersection(a: Tensor, b: Tensor) -> Tensor:
    """(N,) area of the intersection."""
    # b's centre and axes in the frame of a: centres are subtracted first, so coordinates stay small.
    shift = b[..., :2] - a[..., :2]
    cos_a, sin_a = torch.cos(a[..., 4]), torch.sin(a[..., 4])
    x = shift[..., 0] * cos_a + shift[..., 1] * sin_a
    y = shift[..., 1] * cos_a - shift[..., 0] * sin_a
    turn = b[..., 4] - a[..., 4]
    cos, sin = torch.cos(turn), torch.sin(turn)
    ux, uy = 0.5 * b[..., 2] * cos, 0.5 * b[..., 2] * sin  # half of the w side
    vx, vy = -0.5 * b[..., 3] * sin, 0.5 * b[..., 3] * cos  # half of the h side
    px = torch.stack((x - ux - vx, x + ux - vx, x + ux + vx, x - ux + vx), -1)  # (N, 4) corners of b
    py = torch.stack((y - uy - vy, y + uy - vy, y + uy + vy, y - uy + vy), -1)
    qx, qy = px.roll(-1, -1), py.roll(-1, -1)

    half_w = 0.5 * a[..., 2:3]
    half_h = 0.5 * a[..., 3:4]
    ex, ey = qx - px, qy - py
    x_clamped = torch.minimum(torch.maximum(px, -half_w), half_w)
    x0, x1 = x_clamped, x_clamped.roll(-1, -1)
    # t form: the slope ey/ex would lose the angle's gradient on parallel boxes. Dead branches of
    # `where` divide by 1, so no infinity can enter a gradient.
    upright = ex.abs() <= _TINY
    run = torch.where(upright, torch.ones_like(ex), ex)
    t0 = torch.where(upright, torch.zeros_like(ex), (x0 - px) / run)
    t1 = torch.where(upright, torch.ones_like(ex), (x1 - px) / run)
    y0, y1 = py + t0 * ey, py + t1 * ey

    # Mean of clamp(y) along the stretch: the middle of its clamped ends, pulled to the border by the
    # shares of the stretch that lie beyond it. Same value as the quotient of the integral, but
    # the inner stretch has no division at all, hence an exact gradient in float32. For the same reason
    # `above` and `below` clamp differences: maximum(hi, half_h) would send 1/rise into half_h twice, which on
    # almost parallel boxes swallows all else before it cancels.
    lo, hi = torch.minimum(y0, y1), torch.maximum(y0, y1)
    lo_in = torch.minimum(torch.maximum(lo, -half_h), half_h)
    hi_in = torch.minimum(torch.maximum(hi, -half_h), half_h)
    middle = 0.5 * (lo_in + hi_in)
    above = (hi - half_h).clamp(min=0) - (lo - half_h).clamp(min=0)
    below = (hi + half_h).clamp(max=0) - (lo + half_h).clamp(max=0)
    rise = hi - lo
    rise = torch.where(rise <= _TINY, torch.ones_like(rise), rise)
    mean = middle + (above * (half_h - middle) - below * (half_h + middle)) / rise
    return (mean * (x0 - x1)).sum(-1).clamp(min=0)
