"""Losses, as pure functions of logits and targets, and their sum over one batch.

Shapes: B images, P points of all levels, C classes, R regression channels, N positive points.
Everything is float32 whatever autocast says.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from rgfl.nn.assign import Assignment, Level, atss, distances
from rgfl.nn.config import ModelConfig
from rgfl.nn.decode import LevelDecoder, Raw
from rgfl.nn.iou import rotated_iou_pairwise
from rgfl.nn.precision import full_precision


def summed_over_replicas(normalisers: Tensor) -> Tensor:
    """Sum of the normalisers over the processes of a distributed run; here and nowhere else."""
    if not _distributed():
        return normalisers
    normalisers = normalisers.detach().clone()
    dist.all_reduce(normalisers)
    return normalisers


def replicas() -> int:
    """Processes over which gradients are averaged: a sum divided by a global count must be times this."""
    return dist.get_world_size() if _distributed() else 1


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def log_scores(cls: Tensor, quality: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """log p and log(1 − p) of p = σ(cls)·σ(quality), without cancellation at either end."""
    if quality is None:
        return F.logsigmoid(cls), F.logsigmoid(-cls)
    rest = torch.sigmoid(-cls) + torch.sigmoid(cls) * torch.sigmoid(-quality)
    return F.logsigmoid(cls) + F.logsigmoid(quality), rest.clamp(min=1e-30).log()


def focal_loss(logits: Tensor, labels: Tensor, alpha: float | None = 0.25, gamma: float = 2.0) -> Tensor:
    """Sigmoid focal loss, elementwise; labels are 0 or 1, `alpha=None` weighs both alike."""
    log_p, log_rest = log_scores(logits)
    hit = -log_p * log_rest.exp().pow(gamma) * labels
    miss = -log_rest * log_p.exp().pow(gamma) * (1 - labels)
    return hit + miss if alpha is None else alpha * hit + (1 - alpha) * miss


def quality_focal_loss(
    logits: Tensor, labels: Tensor, beta: float = 2.0, quality: Tensor | None = None
) -> Tensor:
    """Quality Focal Loss, elementwise: |label − p|^β · cross-entropy(p, label), labels in [0, 1]."""
    log_p, log_rest = log_scores(logits, quality)
    entropy = -(labels * log_p + (1 - labels) * log_rest)
    return (labels - log_p.exp()).abs().pow(beta) * entropy


def distribution_focal_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy to the two bins around the target, so that the expectation meets it.

    Args:
        logits: (…, bins).
        target: (…) in [0, bins − 1), in bins.
    """
    left = target.floor()
    share = target - left
    index = left.long()
    log_p = logits.log_softmax(-1)
    low = log_p.gather(-1, index.unsqueeze(-1)).squeeze(-1)
    high = log_p.gather(-1, index.unsqueeze(-1) + 1).squeeze(-1)
    return -((1 - share) * low + share * high)


def circular_distribution_focal_loss(logits: Tensor, angle: Tensor) -> Tensor:
    """DFL of an angle of period π on K bins −π/4 + kπ/K; the last bin's neighbour is the first.

    The shares are those whose resultant on the doubled circle points at the target exactly.

    Args:
        logits: (…, K).
        angle: (…) radians, any.
    """
    bins = logits.shape[-1]
    place = torch.remainder((angle + math.pi / 4) * (bins / math.pi), bins)
    left = place.floor()
    turn, step = (place - left) * (2 * math.pi / bins), 2 * math.pi / bins
    share = torch.sin(turn) / (torch.sin(turn) + torch.sin(step - turn))
    index = left.long() % bins  # remainder may round up to K
    log_p = logits.log_softmax(-1)
    low = log_p.gather(-1, index.unsqueeze(-1)).squeeze(-1)
    high = log_p.gather(-1, ((index + 1) % bins).unsqueeze(-1)).squeeze(-1)
    return -((1 - share) * low + share * high)


def nearest_description(
    sides: Tensor, angle: Tensor, predicted_angle: Tensor, square_ratio: float
) -> tuple[Tensor, Tensor]:
    """Of the descriptions (θ + kπ/2; l, t, r, b rolled by k) of one box, the one nearest to a prediction.

    Every box has two, k = 0 and 2: the decoded angle has period π, so a prediction just beyond the seam
    of [−π/4, 3π/4) needs l and r, t and b exchanged, or its box lands on the other side of the point.
    A near-square has four: k = 1 and 3 exchange its nearly equal sides. They lie opposite on the doubled
    circle, so one fixed choice would tear the angle's loss.

    Args:
        sides: (N, 4) l, t, r, b.
        angle: (N,) θ of the same description.
        predicted_angle: (N,).
        square_ratio: greatest ratio of the sides at which a box counts as a near-square.
    """
    width, height = sides[:, 0] + sides[:, 2], sides[:, 1] + sides[:, 3]
    square = torch.maximum(width, height) <= square_ratio * torch.minimum(width, height)
    quarters = (predicted_angle - angle) / (math.pi / 2)
    turns = torch.where(square, quarters.round(), 2 * (quarters / 2).round())
    order = torch.arange(4, device=sides.device) + turns.nan_to_num(0.0).long()[:, None]
    return sides.gather(1, order % 4), angle + turns * (math.pi / 2)


def detection_losses(
    raw: Raw,
    boxes: Sequence[Tensor],
    labels: Sequence[Tensor],
    config: ModelConfig,
    decoder: LevelDecoder,
    normalisers: Tensor | None = None,
) -> dict[str, Tensor]:
    """Weighted parts of the loss of one batch; the total is their sum.

    Args:
        raw: of the B images.
        boxes: one (G_i, 5) an image, canonical, pixels; may be empty.
        labels: one (G_i,) an image.
        normalisers: what the sums are divided by, of the whole batch of which these images are a part: the
            sum over parts and processes of `loss_normalisers`. None: these images are all of this process.
    """
    if not len(boxes) == len(labels) == len(raw.cls[0]):
        raise ValueError(
            f"expected boxes and labels for {len(raw.cls[0])} images, got {len(boxes)} and {len(labels)}"
        )
    with full_precision(raw.cls[0]):
        assigned, places = _assign([level.shape[2:] for level in raw.cls], boxes, config, decoder)
        device = places.device
        points = places[:, :2]  # (P, 2)
        strides = places[assigned.point, 2:]  # (N, 1)
        cls, quality = _flat(raw)
        reg = torch.cat([level.flatten(2) for level in raw.reg], 2)  # (B, R, P)
        reg = reg[assigned.image, :, assigned.point].float()  # (N, R)
        target = torch.cat([box.reshape(-1, 5) for box in boxes]).to(device, torch.float32)[assigned.target]
        label = torch.cat([label.reshape(-1) for label in labels]).to(device, torch.int64)[assigned.target]
        predicted = decoder.box(reg, points[assigned.point], strides)
        iou = rotated_iou_pairwise(predicted, target)
        if config.mode == "integral":
            if normalisers is None:
                normalisers = summed_over_replicas(_count_positives(assigned, len(boxes)))
            return _integral_losses(cls, iou, label, assigned, normalisers, config)
        weight = _weights(cls, quality, assigned)
        if normalisers is None:
            normalisers = summed_over_replicas(_count_weights(weight))
        sides = distances(points[assigned.point], target) / strides
        angles = predicted[:, 4].detach()
        return _gfl_losses(
            cls, quality, reg, angles, sides, target[:, 4], iou, label, weight, assigned, normalisers, config
        )


@torch.no_grad()
def loss_normalisers(
    raw: Raw | None,
    boxes: Sequence[Tensor],
    size: tuple[int, int],
    config: ModelConfig,
    decoder: LevelDecoder,
) -> Tensor:
    """What `detection_losses` divides by, of these images alone: to be added up over parts and processes.

    Args:
        raw: of the images; may be None in mode `integral`, which counts objects' points only.
        boxes: one (G_i, 5) an image.
        size: height and width of the images, pixels.
    """
    sizes = [(size[0] // stride, size[1] // stride) for stride in decoder.strides]
    assigned, places = _assign(sizes, boxes, config, decoder)
    if config.mode == "integral":
        return _count_positives(assigned, len(boxes))
    if raw is None:
        raise ValueError("mode 'gfl' weighs its points by their scores: expected the raw outputs, got None")
    with full_precision(places):
        return _count_weights(_weights(*_flat(raw), assigned))


def _assign(
    sizes: Sequence[Sequence[int]], boxes: Sequence[Tensor], config: ModelConfig, decoder: LevelDecoder
) -> tuple[Assignment, Tensor]:
    """Which points answer for which object, and the places (P, 3) of all points."""
    levels = [
        Level(height, width, stride) for (height, width), stride in zip(sizes, decoder.strides, strict=True)
    ]
    places = torch.cat([decoder.places(i, level.height, level.width) for i, level in enumerate(levels)])
    assigned = atss(
        boxes,
        levels,
        places[:, :2],
        offset=decoder.box.offset,
        anchor_scale=config.anchor_scale,
        topk=config.atss_topk,
    )
    return assigned, places


def _flat(raw: Raw) -> tuple[Tensor, Tensor | None]:
    """Class logits (B, C, P) of all levels and those of the quality (B, 1, P), if there are any; float32."""
    cls = torch.cat([level.flatten(2) for level in raw.cls], 2).float()
    if not raw.quality:
        return cls, None
    return cls, torch.cat([level.flatten(2) for level in raw.quality], 2).float()


def _count_positives(assigned: Assignment, images: int) -> Tensor:
    """(1,) Positive points, at least one an image, as the published row counts."""
    return torch.bincount(assigned.image, minlength=images).clamp(min=1).sum().float()[None]


@torch.no_grad()
def _weights(cls: Tensor, quality: Tensor | None, assigned: Assignment) -> Tensor:
    """(N,) Best score of each positive point."""
    score = cls[assigned.image, :, assigned.point].sigmoid().amax(-1)
    return score if quality is None else score * quality[assigned.image, 0, assigned.point].sigmoid()


def _count_weights(weight: Tensor) -> Tensor:
    """(2,) Positive points, and the sum of their weights."""
    return torch.stack((weight.new_tensor(float(len(weight))), weight.sum()))


def _integral_losses(
    cls: Tensor, iou: Tensor, label: Tensor, assigned: Assignment, normalisers: Tensor, config: ModelConfig
) -> dict[str, Tensor]:
    """Focal loss over all points and −log IoU over the positives, as the published row."""
    count = normalisers[0] / replicas()
    # All points as if negative, then the positives put right: no dense tensor of labels.
    focal = focal_loss(cls, torch.zeros((), device=cls.device)).sum()
    chosen = cls[assigned.image, label, assigned.point]
    zero, one = torch.zeros_like(chosen), torch.ones_like(chosen)
    focal = focal + (focal_loss(chosen, one) - focal_loss(chosen, zero)).sum()
    regression = -iou.clamp(min=1e-6).log().sum()
    return {
        "cls": config.cls_loss_weight * focal / count,
        "iou": config.iou_loss_weight * regression / count,
    }


def _gfl_losses(
    cls: Tensor,
    quality: Tensor | None,
    reg: Tensor,
    predicted_angle: Tensor,
    sides: Tensor,
    angle: Tensor,
    iou: Tensor,
    label: Tensor,
    weight: Tensor,
    assigned: Assignment,
    normalisers: Tensor,
    config: ModelConfig,
) -> dict[str, Tensor]:
    """QFL over all points; IoU and the distributions over the positives, weighted by the best score."""
    chosen = cls[assigned.image, label, assigned.point]
    chosen_quality = None if quality is None else quality[assigned.image, 0, assigned.point]
    soft_label = iou.detach().clamp(0, 1)
    positives = normalisers[0].clamp(min=1) / replicas()
    total_weight = normalisers[1].clamp(min=1e-6) / replicas()

    focal = quality_focal_loss(cls, torch.zeros((), device=cls.device), quality=quality).sum()
    positive = quality_focal_loss(chosen, soft_label, quality=chosen_quality)
    negative = quality_focal_loss(chosen, torch.zeros_like(chosen), quality=chosen_quality)
    focal = focal + (positive - negative).sum()

    bins = config.reg_max + 1
    sides, angle = nearest_description(sides, angle, predicted_angle, config.square_ratio)
    side_logits = reg[:, : 4 * bins].unflatten(1, (4, bins))
    side_loss = distribution_focal_loss(side_logits, sides.clamp(0, config.reg_max - 0.1)).mean(-1)
    angle_loss = circular_distribution_focal_loss(reg[:, 4 * bins :], angle)
    return {
        "cls": config.cls_loss_weight * focal / positives,
        "iou": config.iou_loss_weight * ((1 - iou) * weight).sum() / total_weight,
        "dfl": config.dfl_loss_weight * (side_loss * weight).sum() / total_weight,
        "angle": config.angle_loss_weight * (angle_loss * weight).sum() / total_weight,
    }
