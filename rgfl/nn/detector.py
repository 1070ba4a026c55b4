"""The detector: backbone, pyramid, head, decode and losses behind one module."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rgfl import postprocess
from rgfl.detections import Detections
from rgfl.nn.assign import Assigner, Targets
from rgfl.nn.backbone import Backbone
from rgfl.nn.config import ModelConfig
from rgfl.nn.decode import LevelDecoder, Raw
from rgfl.nn.head import GROUPS, Head
from rgfl.nn.loss import detection_losses, loss_normalisers
from rgfl.nn.neck import FeaturePyramid
from rgfl.nn.parts import PARTS
from rgfl.nn.quality import TOP
from rgfl.spec import DetectorSpec

# The pyramid makes coarser levels itself.
COARSEST_BACKBONE_STRIDE = 32


class Detector(nn.Module):
    """A rotated-object detector of one config for one spec.

    `forward` may round as autocast likes; `decode` and `losses` are float32. What `losses` are to come to,
    `assigner` makes from boxes and labels, in any process.
    """

    def __init__(self, config: ModelConfig, spec: DetectorSpec) -> None:
        super().__init__()
        self.config, self.spec = config, spec
        from_backbone = [stride for stride in spec.strides if stride <= COARSEST_BACKBONE_STRIDE]
        self.backbone = Backbone(config, from_backbone)
        levels = len(spec.strides)
        self.neck = (PARTS.neck or FeaturePyramid)(self.backbone.channels, config.neck_channels, levels)
        self.head = (PARTS.head or Head)(config, len(spec.classes), levels)
        self.decoder = LevelDecoder(config, spec)
        self.assigner = Assigner(spec.strides, self.decoder.box.offset, config.anchor_scale, config.atss_topk)
        self.register_buffer("mean", torch.tensor(spec.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(spec.std).view(3, 1, 1), persistent=False)

    mean: Tensor
    std: Tensor

    def normalise(self, images: Tensor) -> Tensor:
        """uint8 (B, H, W, 3) RGB → float32 (B, 3, H, W); cast first, as TensorRT's parser asks."""
        return (images.float().permute(0, 3, 1, 2) - self.mean) / self.std

    def forward(self, images: Tensor) -> Raw:
        """Normalised (B, 3, H, W) → raw head outputs; H and W are multiples of the coarsest stride."""
        coarsest = self.spec.strides[-1]
        if images.shape[2] % coarsest or images.shape[3] % coarsest:
            raise ValueError(
                f"expected height and width in multiples of {coarsest}, got {tuple(images.shape[2:])}; "
                "pad the image"
            )
        return self.head(self.neck(self.backbone(images)))

    def decode(self, raw: Raw) -> tuple[Tensor, Tensor]:
        """Boxes (B, P, 5) and scores (B, P, C), float32, before NMS; `spec.level_topk` is applied."""
        return self.decoder(raw)

    def decode_with_uncertainty(self, raw: Raw) -> tuple[Tensor, Tensor, Tensor]:
        """`decode`, and how wide each box's distributions are: (B, P, 5), l, t, r, b in pixels, θ in radians.

        See `BoxDecoder.uncertainty`; mode `gfl` only. The sides are those of the box as decoded, before
        it is made canonical.
        """
        return self.decoder.with_uncertainty(raw)

    def losses(self, raw: Raw, targets: Targets, normalisers: Tensor | None = None) -> dict[str, Tensor]:
        """Weighted parts of the loss; the total is their sum.

        Args:
            raw: from `forward`.
            targets: of the same images, from `assigner`, on the device of `raw`.
            normalisers: of the whole batch, if these images are a part of it; None: they are all of it.
        """
        losses = PARTS.losses or detection_losses
        return losses(raw, targets, self.config, self.decoder.box, normalisers)

    def normalisers(self, raw: Raw | None, targets: Targets) -> Tensor:
        """What the losses of these images are divided by, to be added up over the parts of a batch.

        Mode `integral` counts points and needs no `raw`; `gfl` weighs them by their scores.
        """
        return loss_normalisers(raw, targets, self.config, self.decoder.box)

    def checkpoint_activations(self) -> None:
        """Training keeps fewer activations from now on and computes the others again, of the same values."""
        self.backbone.checkpoint_activations()
        self.head.checkpointed = True

    @torch.no_grad()
    def predict(self, images: NDArray[np.uint8]) -> list[Detections]:
        """uint8 (B, H, W, 3) RGB tiles → one record a tile, after NMS; training mode stays as it was."""
        training = self.training
        self.eval()
        try:
            tensor = torch.from_numpy(np.ascontiguousarray(images)).to(self.mean.device)
            boxes, scores = self.decode(self(self.normalise(tensor)))
        finally:
            self.train(training)
        return postprocess.select(boxes.cpu().numpy(), scores.cpu().numpy(), self.spec)


def build_detector(config: ModelConfig, spec: DetectorSpec) -> Detector:
    """A detector, its config checked against the spec.

    Raises:
        ValueError: the two contradict each other, or the config asks for something impossible.
    """
    angle_bins = config.angle_bins if config.mode == "gfl" else 0
    for name, of_config, of_spec in (
        ("mode", config.mode, spec.mode),
        ("reg_max", config.reg_max, spec.reg_max),
        ("angle_bins", angle_bins, spec.angle_bins),
        ("finest_stride", config.finest_stride, spec.strides[0]),
    ):
        if of_config != of_spec:
            raise ValueError(f"{name}: the model says {of_config!r}, the spec {of_spec!r}; they must agree")
    if config.mode == "gfl" and config.angle_bins < 3:
        raise ValueError(f"angle_bins: a circle needs 3 or more, got {config.angle_bins}")
    if config.reg_max < 1:
        raise ValueError(f"reg_max: expected 1 or more, got {config.reg_max}")
    if config.quality and config.mode == "gfl" and min(config.reg_max + 1, config.angle_bins) < TOP:
        raise ValueError(
            f"quality: looks at the {TOP} greatest of reg_max + 1 = {config.reg_max + 1} and of angle_bins = "
            f"{config.angle_bins} probabilities; give more bins, or no quality"
        )
    if config.head_norm == "group" and config.head_convs and config.head_channels % GROUPS:
        raise ValueError(f"head_channels: GroupNorm needs a multiple of {GROUPS}, got {config.head_channels}")
    if any(coarse != 2 * fine for fine, coarse in zip(spec.strides, spec.strides[1:], strict=False)):
        raise ValueError(f"strides: each must be twice the one before, got {spec.strides}")
    return Detector(config, spec)
