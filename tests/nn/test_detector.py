"""The whole detector, tiny: both modes run, learn one image, refuse what cannot be."""

import dataclasses

import numpy as np
import pytest
import torch

from rgfl.geometry import rotated_iou_pairwise
from rgfl.nn.assign import distances
from rgfl.nn.config import ModelConfig
from rgfl.nn.decode import Raw
from rgfl.nn.detector import Detector, build_detector
from rgfl.nn.head import Head
from rgfl.nn.loss import (
    EMPTY,
    circular_distribution_focal_loss,
    detection_losses,
    distribution_focal_loss,
    focal_loss,
    nearest_description,
    quality_focal_loss,
)
from rgfl.nn.neck import FeaturePyramid
from rgfl.nn.parts import PARTS
from rgfl.spec import DetectorSpec

SPEC = DetectorSpec(classes=("a", "b", "c"), image_size=(128, 128), angle_bins=18)
TINY = ModelConfig(
    backbone="test_resnet",  # timm's own: .4 M parameters
    pretrained=False,
    frozen_stages=0,
    norm_eval=False,
    neck_channels=32,
    head_channels=32,
    head_convs=1,
)
INTEGRAL_SPEC = dataclasses.replace(SPEC, mode="integral", reg_max=8, angle_bins=0)
VARIANTS = {
    "gfl": (TINY, SPEC),
    "gfl, no quality, batch norm": (dataclasses.replace(TINY, quality=False, head_norm="batch"), SPEC),
    "integral": (
        dataclasses.replace(TINY, mode="integral", reg_max=8, anchor_scale=4.0, iou_loss_weight=1.0),
        INTEGRAL_SPEC,
    ),
}
BOXES = [torch.tensor([[40.0, 50.0, 60.0, 24.0, 0.4], [90.0, 90.0, 30.0, 29.0, 2.0]]), torch.zeros(0, 5)]
LABELS = [torch.tensor([0, 2]), torch.zeros(0, dtype=torch.int64)]


def build(name: str) -> Detector:
    torch.manual_seed(0)
    return build_detector(*VARIANTS[name])


def losses(
    detector: Detector,
    raw: Raw,
    boxes: list[torch.Tensor],
    labels: list[torch.Tensor],
    normalisers: torch.Tensor | None = None,
) -> dict[str, torch.Tensor]:
    return detector.losses(raw, detector.assigner(boxes, labels, (128, 128)), normalisers)


@pytest.mark.parametrize("name", VARIANTS)
def test_losses_and_gradients_are_finite_and_reach_every_parameter(name: str) -> None:
    detector = build(name)
    raw = detector(torch.randn(2, 3, 128, 128))
    parts = losses(detector, raw, BOXES, LABELS)
    assert set(parts) == ({"cls", "iou"} if "integral" in name else {"cls", "iou", "dfl", "angle"})
    torch.stack(list(parts.values())).sum().backward()
    for parameter_name, parameter in detector.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name
    boxes, scores = detector.decode(raw)
    assert boxes.shape == (2, 341, 5)
    assert scores.shape == (2, 341, 3)
    assert scores.max() < 0.05  # the prior


@pytest.mark.parametrize("name", VARIANTS)
def test_losses_are_what_a_loop_over_the_points_adds_up(name: str) -> None:
    config, spec = VARIANTS[name]
    weights = {"cls": 3.0, "iou": 5.0, "dfl": 7.0, "angle": 11.0}
    config = dataclasses.replace(config, **{f"{part}_loss_weight": value for part, value in weights.items()})
    torch.manual_seed(0)
    detector = build_detector(config, spec)
    shapes = detector(torch.zeros(2, 3, 128, 128))
    raw = Raw(*(tuple(3 * torch.randn_like(level) for level in part) for part in shapes))
    boxes = [torch.cat((BOXES[0], torch.tensor([[64.0, 60.0, 120.0, 110.0, 0.1]]))), BOXES[1]]
    targets = detector.assigner(boxes, [torch.tensor([0, 2, 1]), LABELS[1]], (128, 128))
    assert len(targets.place[:, 2].unique()) > 1  # strides
    cls, reg = (torch.cat([level.flatten(2) for level in part], 2).transpose(1, 2) for part in raw)
    with torch.no_grad():
        quality = detector.decoder.box.quality(reg)
    goal, sums, total = torch.zeros_like(cls), dict.fromkeys(weights, 0.0), 0.0
    for image, point, (x, y, stride), box, label in zip(*targets[:5], strict=True):
        own, place = reg[image, point], torch.stack((x, y))
        found = detector.decoder.box(own, place, stride[None])
        iou = float(rotated_iou_pairwise(found[None].detach().numpy(), box[None].numpy())[0])
        if config.mode == "integral":
            goal[image, point, label] = 1
            sums["iou"] -= np.log(max(iou, 1e-6))
            continue
        goal[image, point, label] = iou
        score = cls[image, point].sigmoid().max() * (
            1 if quality is None else quality[image, point, 0].sigmoid()
        )
        sides, angle = nearest_description(
            distances(place, box)[None] / stride, box[None, 4], found[None, 4], config.square_ratio
        )
        goal_shift = (box[:2] - place) / (stride / 2) + 8
        lines = own[: 6 * 17].reshape(6, 17)
        total += score
        sums["iou"] += score * (1 - iou)
        sums["dfl"] += score * distribution_focal_loss(lines[:4], sides[0].clamp(0, 15.9)).mean()
        sums["dfl"] += score * distribution_focal_loss(lines[4:], goal_shift.clamp(0, 15.9)).mean()
        sums["angle"] += score * circular_distribution_focal_loss(own[None, 6 * 17 :], angle)[0]
    if config.mode == "integral":
        sums["cls"] = focal_loss(cls, goal).sum()
        positives = total = len(targets.point) + 1  # of the second image
    else:
        sums["cls"] = quality_focal_loss(cls, goal, quality=quality).sum()
        positives = len(targets.point) + EMPTY
    for part, value in detector.losses(raw, targets).items():
        expected = weights[part] * sums[part] / (positives if part == "cls" else total)
        assert float(value.detach()) == pytest.approx(float(expected), rel=1e-4), part


def test_scores_move_no_box_but_through_its_quality() -> None:
    detector = build("gfl, no quality, batch norm")
    raw = detector(torch.randn(2, 3, 128, 128))
    grads = torch.autograd.grad(losses(detector, raw, BOXES, LABELS)["cls"], raw.reg, allow_unused=True)
    assert all(grad is None or not grad.any() for grad in grads)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_batch_without_objects_still_has_a_gradient_everywhere(name: str) -> None:
    detector = build(name)
    parts = losses(detector, detector(torch.randn(2, 3, 128, 128)), [BOXES[1]] * 2, [LABELS[1]] * 2)
    torch.stack(list(parts.values())).sum().backward()
    assert parts["cls"] > 0
    assert all(value == 0 for key, value in parts.items() if key != "cls")
    for parameter_name, parameter in detector.named_parameters():
        assert parameter.grad is not None, parameter_name  # distributed training waits for each
        assert parameter.grad.isfinite().all(), parameter_name


@pytest.mark.parametrize("name", VARIANTS)
def test_one_image_is_learnt(name: str) -> None:
    detector = build(name).train()
    image = torch.randn(1, 3, 128, 128).repeat(2, 1, 1, 1)  # BatchNorm needs two values at 1×1 cells
    optimizer = torch.optim.Adam([p for p in detector.parameters() if p.requires_grad], lr=1e-3)
    totals = []
    for _ in range(12):
        parts = losses(detector, detector(image), BOXES[:1] * 2, LABELS[:1] * 2)
        total = torch.stack(list(parts.values())).sum()
        optimizer.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(detector.parameters(), 35)
        optimizer.step()
        totals.append(total.item())
    assert np.isfinite(totals).all()
    assert min(totals[-3:]) < 0.75 * totals[0]


def test_losses_are_float32_under_autocast() -> None:
    detector = build("gfl")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        raw = detector(torch.randn(2, 3, 128, 128))
        parts = losses(detector, raw, BOXES, LABELS)
    assert raw.cls[0].dtype == torch.bfloat16
    assert all(part.dtype == torch.float32 for part in parts.values())
    torch.stack(list(parts.values())).sum().backward()


def test_predict_gives_canonical_detections_and_leaves_the_mode() -> None:
    detector = build("gfl").train()
    torch.nn.init.normal_(detector.head.cls.weight, std=0.3)
    images = np.random.default_rng(0).integers(0, 256, (2, 128, 128, 3), dtype=np.uint8)
    before = {key: value.clone() for key, value in detector.state_dict().items()}
    found = detector.predict(images)
    assert detector.training
    assert all(torch.equal(value, before[key]) for key, value in detector.state_dict().items())
    assert len(found) == 2
    assert len(found[0]) > 0
    assert (found[0].boxes[:, 2] >= found[0].boxes[:, 3]).all()
    assert (np.diff(found[0].scores) <= 0).all()
    assert [len(record) for record in detector.predict(np.zeros((1, 256, 128, 3), np.uint8))]  # another size


def test_normalise_is_the_spec() -> None:
    detector = build("gfl")
    pixels = torch.tensor([[[[0, 128, 255]]]], dtype=torch.uint8)
    expected = (np.array([0, 128, 255]) - SPEC.mean) / SPEC.std
    np.testing.assert_allclose(detector.normalise(pixels)[0, :, 0, 0], expected, rtol=1e-5)


def test_batch_norm_is_one_a_level_and_convolutions_are_shared() -> None:
    head = build("gfl, no quality, batch norm").head
    assert len(head.cls_tower.convs) == 1
    assert len(head.cls_tower.norms[0]) == 5
    assert not any(isinstance(module, torch.nn.GroupNorm) for module in head.modules())


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"mode": "integral"}, "mode"),
        ({"reg_max": 8}, "reg_max"),
        ({"angle_bins": 12}, "angle_bins"),
        ({"head_channels": 80}, "head_channels"),
        ({"finest_stride": 4}, "finest_stride"),
    ],
)
def test_contradictions_are_refused(change: dict, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        build_detector(dataclasses.replace(TINY, **change), SPEC)


def test_quality_needs_as_many_bins_as_it_looks_at() -> None:
    few, spec = {"reg_max": 2}, dataclasses.replace(SPEC, reg_max=2)
    with pytest.raises(ValueError, match=r"reg_max \+ 1 = 3 .*no quality"):
        build_detector(dataclasses.replace(TINY, **few), spec)
    build_detector(dataclasses.replace(TINY, **few, quality=False), spec)


def test_parts_of_one_s_own_are_taken_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    class Neck(FeaturePyramid):
        pass

    class OwnHead(Head):
        pass

    def doubled(*arguments: object) -> dict[str, torch.Tensor]:
        return {name: 2 * value for name, value in detection_losses(*arguments).items()}  # type: ignore[arg-type]

    images = torch.randn(2, 3, 128, 128)
    before = losses(build("gfl"), build("gfl")(images), BOXES, LABELS)
    assert PARTS.names() == {}
    for name, part in {"neck": Neck, "head": OwnHead, "losses": doubled}.items():
        monkeypatch.setattr(PARTS, name, part)
        assert PARTS.names()[name] == f"{__name__}.{part.__qualname__}"
    detector = build("gfl")
    assert (type(detector.neck), type(detector.head)) == (Neck, OwnHead)
    for name, value in losses(detector, detector(images), BOXES, LABELS).items():
        torch.testing.assert_close(value, 2 * before[name])
    with pytest.raises(AttributeError):
        PARTS.nekc = Neck  # type: ignore[attr-defined]


def test_odd_image_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="multiples of 128"):
        build("gfl")(torch.zeros(1, 3, 160, 128))


@pytest.mark.parametrize("name", VARIANTS)
def test_losses_of_parts_by_the_normalisers_of_the_whole_add_up_to_it(name: str) -> None:
    detector = build(name).eval()  # BatchNorm would see the parts singly
    images = torch.randn(4, 3, 128, 128)
    boxes, labels = [*BOXES, BOXES[0][:1], BOXES[0].roll(1, 0)], [*LABELS, LABELS[0][:1], LABELS[0].roll(1)]
    targets = detector.assigner(boxes, labels, (128, 128))
    whole = detector.losses(detector(images), targets)
    parts = [(images[first : first + 2], targets.of_images(first, first + 2)) for first in (0, 2)]
    integral = detector.config.mode == "integral"  # which counts, and needs no scores
    normalisers = torch.stack(
        [detector.normalisers(None if integral else detector(images), of) for images, of in parts]
    ).sum(0)
    found = [detector.losses(detector(images), of, normalisers) for images, of in parts]
    for key, value in whole.items():
        torch.testing.assert_close(sum(part[key] for part in found), value)


def test_targets_of_another_number_of_images_are_refused() -> None:
    detector = build("gfl")
    raw = detector(torch.randn(2, 3, 128, 128))
    with pytest.raises(ValueError, match="expected targets of 2 images, got 1"):
        losses(detector, raw, BOXES[:1], LABELS[:1])


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize(
    "box",
    [
        [0.0, 0.0, 30.0, 20.0, 0.3],  # its centre on the corner
        [127.9, 64.0, 40.0, 10.0, 1.5],
        [64.0, 64.0, 400.0, 300.0, 0.0],  # larger than the tile
        [-30.0, 64.0, 40.0, 20.0, 0.0],  # wholly outside
        [64.0, 64.0, 3.0, 2.0, 0.7],  # smaller than any cell
    ],
)
def test_boxes_at_the_border_have_finite_losses_and_gradients(name: str, box: list[float]) -> None:
    detector = build(name)
    boxes, labels = [torch.tensor([box]), torch.zeros(0, 5)], [torch.tensor([1]), LABELS[1]]
    parts = losses(detector, detector(torch.randn(2, 3, 128, 128)), boxes, labels)
    torch.stack(list(parts.values())).sum().backward()
    assert all(value.isfinite() for value in parts.values())
    assert all(parameter.grad is not None for parameter in detector.parameters())
    assert all(parameter.grad.isfinite().all() for parameter in detector.parameters())


@pytest.mark.parametrize("backbone_can", [True, False])
@pytest.mark.parametrize("name", VARIANTS)
def test_checkpointed_activations_keep_less_and_give_the_same_gradients(
    name: str, backbone_can: bool
) -> None:
    def cannot(enable: bool) -> None:
        assert not enable, "gradient checkpointing not supported"

    images, found, kept = torch.randn(2, 3, 128, 128), [], []
    for checkpointed in (False, True):
        detector = build(name)
        if checkpointed:
            if not backbone_can:  # as timm's networks do that have no way of their own
                detector.backbone.net.set_grad_checkpointing = cannot
            detector.checkpoint_activations()
        sizes: dict[int, int] = {}

        def keep(tensor: torch.Tensor, sizes: dict[int, int] = sizes) -> torch.Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            raw = detector(images)
        torch.stack(list(losses(detector, raw, BOXES, LABELS).values())).sum().backward()
        kept.append(sum(sizes.values()))
        found.append([parameter.grad for parameter in detector.parameters()])
    assert kept[1] < 0.8 * kept[0]
    for plain, again in zip(*found, strict=True):
        torch.testing.assert_close(again, plain)
