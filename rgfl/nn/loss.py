"""Losses, as pure functions of logits and targets, and their sum over one batch.

Shapes: B images, P points of all levels, C classes, R regression channels, N positive points.
Everything is float32 whatever autocast says.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from rgfl.nn.assign import Targets, distances
from rgfl.nn.config import ModelConfig
from rgfl.nn.decode import BoxDecoder, Raw
from rgfl.nn.iou import rotated_iou_pairwise
from rgfl.nn.precision import full_precision

# What an image without positive points counts for in mode gfl: about the points of three objects. Divided by
# one point, as where no object is left out, a batch of them alone moved the weights hundreds of times as much
# as one with objects.
EMPTY = 16


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

    Every box has two, k = 0 and 2: the decoded angle has period π, and just beyond the seam of
    [−π/4, 3π/4) l and r, t and b have changed places.
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
    targets: Targets,
    config: ModelConfig,
    decode: BoxDecoder,
    normalisers: Tensor | None = None,
) -> dict[str, Tensor]:
    """Weighted parts of the loss of one batch; the total is their sum.

    Nothing in it makes the host wait for the device: no shape and no branch depends on what a tensor holds.

    Args:
        raw: of the B images.
        targets: of the same images, on the device of `raw`.
        normalisers: what the sums are divided by, if these images are a part of a batch: `loss_normalisers`
            added up over all its parts, on whichever process. None: these images are the whole batch.
    """
    if len(targets.counts) != len(raw.cls[0]):
        raise ValueError(f"expected targets of {len(raw.cls[0])} images, got {len(targets.counts)}")
    with full_precision(raw.cls[0]):
        points, strides = targets.place[:, :2], targets.place[:, 2:]
        cls, reg = _flat(raw)
        quality = decode.quality(reg.transpose(1, 2))  # (B, P, 1)
        reg = reg[targets.image, :, targets.point].float()  # (N, R)
        predicted = decode(reg, points, strides)
        iou = rotated_iou_pairwise(predicted, targets.box)
        if config.mode == "integral":
            if normalisers is None:
                normalisers = _count_positives(targets)
            return _integral_losses(cls, iou, targets, normalisers, config)
        weight = _weights(cls, reg, targets, decode)
        if normalisers is None:
            normalisers = _count_weights(weight, targets)
        return _gfl_losses(cls, quality, reg, predicted, iou, weight, targets, normalisers, config, decode)


@torch.no_grad()
def loss_normalisers(raw: Raw | None, targets: Targets, config: ModelConfig, decode: BoxDecoder) -> Tensor:
    """What `detection_losses` divides by, of these images alone: to be added up over parts and processes.

    Positive points, and in mode `gfl` the sum of their weights too. An image without positive points counts
    for one, as the published row has it, and for `EMPTY` in mode `gfl`: as published where each image has
    some, which is what training on tiles with objects alone comes to.

    Args:
        raw: of the images; may be None in mode `integral`, which counts objects' points only.
        targets: of the same images.
    """
    if config.mode == "integral":
        return _count_positives(targets)
    if raw is None:
        raise ValueError("mode 'gfl' weighs its points by their scores: expected the raw outputs, got None")
    with full_precision(raw.cls[0]):
        cls, reg = _flat(raw)
        return _count_weights(_weights(cls, reg[targets.image, :, targets.point], targets, decode), targets)


def _flat(raw: Raw) -> tuple[Tensor, Tensor]:
    """Logits of all levels: of the classes (B, C, P), float32, and of the distributions (B, R, P)."""
    cls, reg = (torch.cat([level.flatten(2) for level in part], 2) for part in raw)
    return cls.float(), reg


def _count_positives(targets: Targets) -> Tensor:
    """(1,) Positive points, at least one an image."""
    positives = sum(count or 1 for count in targets.counts)
    return torch.full((1,), float(positives), device=targets.box.device)


@torch.no_grad()
def _weights(cls: Tensor, reg: Tensor, targets: Targets, decode: BoxDecoder) -> Tensor:
    """(N,) Best score of each positive point, from logits (B, C, P) of all points and (N, R) of these."""
    score = cls[targets.image, :, targets.point].sigmoid().amax(-1)
    quality = decode.quality(reg)
    return score if quality is None else score * quality[:, 0].sigmoid()


def _count_weights(weight: Tensor, targets: Targets) -> Tensor:
    """(2,) Positive points, `EMPTY` of an image without any, and the sum of their weights."""
    positives = sum(count or EMPTY for count in targets.counts)
    return torch.stack((weight.new_full((), positives), weight.sum()))


def _integral_losses(
    cls: Tensor, iou: Tensor, targets: Targets, normalisers: Tensor, config: ModelConfig
) -> dict[str, Tensor]:
    """Focal loss over all points and −log IoU over the positives, as the published row."""
    count = normalisers[0]
    # All points as if negative, then the positives put right: no dense tensor of labels.
    focal = focal_loss(cls, torch.zeros((), device=cls.device)).sum()
    chosen = cls[targets.image, targets.label, targets.point]
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
    predicted: Tensor,
    iou: Tensor,
    weight: Tensor,
    targets: Targets,
    normalisers: Tensor,
    config: ModelConfig,
    decode: BoxDecoder,
) -> dict[str, Tensor]:
    """QFL over all points; IoU and the distributions over the positives, weighted by the best score."""
    chosen = cls[targets.image, targets.label, targets.point]
    chosen_quality = None if quality is None else quality[targets.image, targets.point, 0]
    soft_label = iou.detach().clamp(0, 1)
    positives = normalisers[0]
    total_weight = normalisers[1].clamp(min=1e-6)

    dense_quality = None if quality is None else quality.transpose(1, 2)  # (B, 1, P)
    focal = quality_focal_loss(cls, torch.zeros((), device=cls.device), quality=dense_quality).sum()
    positive = quality_focal_loss(chosen, soft_label, quality=chosen_quality)
    negative = quality_focal_loss(chosen, torch.zeros_like(chosen), quality=chosen_quality)
    focal = focal + (positive - negative).sum()

    points, strides = targets.place[:, :2], targets.place[:, 2:]
    sides, angle = nearest_description(
        distances(points, targets.box) / strides,
        targets.box[:, 4],
        predicted[:, 4].detach(),
        config.square_ratio,
    )
    shift = decode.shift_bins(targets.box[:, :2], points, strides)
    lines, angle_logits = decode.split(reg)
    goal = torch.cat((sides, shift), 1).clamp(0, config.reg_max - 0.1)
    line_loss = distribution_focal_loss(lines, goal)  # (N, 6)
    dfl = line_loss[:, :4].mean(1) + line_loss[:, 4:].mean(1)
    angle_loss = circular_distribution_focal_loss(angle_logits, angle)
    return {
        "cls": config.cls_loss_weight * focal / positives,
        "iou": config.iou_loss_weight * ((1 - iou) * weight).sum() / total_weight,
        "dfl": config.dfl_loss_weight * (dfl * weight).sum() / total_weight,
        "angle": config.angle_loss_weight * (angle_loss * weight).sum() / total_weight,
    }
