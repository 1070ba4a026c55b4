"""Decode: what distributions mean, the seam of the angle, top-k a level, the exported graph."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from rgfl.nn.assign import distances
from rgfl.nn.config import ModelConfig
from rgfl.nn.decode import BoxDecoder, LevelDecoder, Raw, grid, half_atan2, reg_channels
from rgfl.nn.iou import rotated_iou_pairwise
from rgfl.spec import DetectorSpec

SPEC = DetectorSpec(classes=("a", "b", "c"), image_size=(128, 128), angle_bins=18, level_topk=20)
INTEGRAL = dataclasses.replace(SPEC, mode="integral", reg_max=8, angle_bins=0)
OF_MODE = {
    "gfl": (ModelConfig(mode="gfl"), SPEC),
    "gfl, no quality": (ModelConfig(mode="gfl", quality=False), SPEC),
    "integral": (ModelConfig(mode="integral", reg_max=8, anchor_scale=4), INTEGRAL),
}


def random_raw(config: ModelConfig, spec: DetectorSpec, batch: int = 2) -> Raw:
    generator = torch.Generator().manual_seed(0)
    channels = reg_channels(config)

    def level(count: int, stride: int) -> Tensor:
        size = (spec.image_size[0] // stride, spec.image_size[1] // stride)
        return 2 * torch.randn(batch, count, *size, generator=generator)

    return Raw(
        tuple(level(len(spec.classes), stride) for stride in spec.strides),
        tuple(level(channels, stride) for stride in spec.strides),
    )


def level_decoder(config: ModelConfig, spec: DetectorSpec) -> LevelDecoder:
    """One whose qualities differ, as after training."""
    decoder = LevelDecoder(config, spec)
    generator = torch.Generator().manual_seed(1)
    for parameter in decoder.parameters():
        parameter.requires_grad_(False).copy_(torch.randn(parameter.shape, generator=generator))
    return decoder


def two_bins(place: Tensor, bins: int) -> Tensor:
    """Logits whose distribution lies on the two bins around `place` and has it as expectation."""
    index = torch.arange(bins, dtype=torch.float64)
    return (1 - (place[..., None] - index).abs()).clamp(min=1e-12).log()


def test_half_atan2_is_half_of_atan2() -> None:
    angle = torch.linspace(-math.pi, math.pi, 2001, dtype=torch.float64)
    for length in (1e-6, 1.0):
        half = half_atan2(length * torch.sin(angle), length * torch.cos(angle))
        assert torch.sin(half - angle / 2).abs().max() < 1e-7
        assert half.min() >= -math.pi / 4 - 1e-7
        assert half.max() <= 3 * math.pi / 4 + 1e-7


def test_zero_resultant_is_finite() -> None:
    sin, cos = (torch.zeros(3, requires_grad=True) for _ in range(2))
    half = half_atan2(sin, cos)
    half.sum().backward()
    assert (half == 0).all()
    assert sin.grad.isfinite().all()
    assert cos.grad.isfinite().all()
    # A uniform distribution of the angle has none to give; the box stays finite.
    decoder = BoxDecoder(ModelConfig())
    box = decoder(torch.zeros(1, reg_channels(ModelConfig())), torch.zeros(1, 2), torch.full((1, 1), 8.0))
    assert box.isfinite().all()


def test_one_hot_distributions_give_their_bin() -> None:
    integral = BoxDecoder(ModelConfig(mode="integral", reg_max=8, anchor_scale=4))
    for bin_ in range(9):
        reg = torch.full((1, 5, 9), -100.0)
        reg[..., bin_] = 100.0
        box = integral(reg.flatten(1), torch.tensor([[80.0, 40.0]]), torch.tensor([[8.0]]))[0]
        delta, turns = -2 + 0.5 * bin_, -5 + 7 / 8 * bin_
        side = 32 * math.exp(delta)
        expected = [80 + 32 * delta, 40 + 32 * delta, side, side]
        torch.testing.assert_close(box[:4], torch.tensor(expected))
        assert math.sin(box[4].item() - math.pi * turns) == pytest.approx(0, abs=1e-5)
        assert -math.pi / 4 - 1e-6 <= box[4] < 3 * math.pi / 4 + 1e-6

    gfl = BoxDecoder(ModelConfig(reg_max=16, angle_bins=18))
    for bin_ in range(1, 16):  # bin 0 is the seam
        reg = torch.full((1, 6 * 17 + 18), -100.0)
        for row, place in enumerate((bin_, bin_, bin_ + 1, bin_, 9, 6)):  # l, t, r, b, x, y
            reg[0, 17 * row + place] = 100.0
        reg[0, 102 + bin_] = 100.0
        box = gfl(reg, torch.tensor([[80.0, 40.0]]), torch.tensor([[8.0]]))[0]
        angle = -math.pi / 4 + bin_ * math.pi / 18
        expected = [80 + 4, 40 - 8, 16 * bin_ + 8, 16 * bin_, angle]  # the shift's bins are 4 px, from −8
        torch.testing.assert_close(box, torch.tensor(expected), atol=2e-4, rtol=1e-5)


def boxes_around(points: Tensor, seed: int) -> Tensor:
    """Boxes that hold their point, with angles on the seam of le135 among them."""
    rng = np.random.default_rng(seed)
    count = len(points)
    size = torch.tensor(rng.uniform(20, 60, (count, 2)))
    angle = torch.tensor(rng.uniform(-math.pi / 4, 3 * math.pi / 4, count))
    angle[:6] = torch.tensor([-math.pi / 4, -math.pi / 4 + 1e-9, 3 * math.pi / 4 - 1e-9, 0, math.pi / 2, 2.3])
    shift = torch.tensor(rng.uniform(-8, 8, (count, 2)))
    return torch.cat((points.double() + shift, size, angle[:, None]), 1)


def test_integral_decode_inverts_the_encoding() -> None:
    decoder = BoxDecoder(OF_MODE["integral"][0])
    points = grid(4, 8, 8, decoder.offset)
    target = boxes_around(points, 0)
    side = 32.0
    delta = torch.cat(((target[:, :2] - points) / side, (target[:, 2:4] / side).log()), 1)  # (P, 4)
    assert delta.abs().max() < 2
    # An angle has as many encodings as whole turns fit into [−5, 2]; each decodes to it.
    for turns in range(-4, 1):
        place = target[:, 4:] / math.pi + turns
        reg = torch.cat((two_bins((delta + 2) * 2, 9), two_bins((place + 5) * 8 / 7, 9)), 1)
        decoded = decoder(reg.flatten(1), points, torch.tensor([[8.0]])).double()
        torch.testing.assert_close(decoded[:, :4], target[:, :4], atol=1e-3, rtol=1e-5)
        assert torch.sin(decoded[:, 4] - target[:, 4]).abs().max() < 1e-5
        assert ((decoded[:, 4] >= -math.pi / 4 - 1e-6) & (decoded[:, 4] <= 3 * math.pi / 4 + 1e-6)).all()


def test_gfl_decode_inverts_the_encoding() -> None:
    config = ModelConfig(angle_bins=18)
    decoder = BoxDecoder(config)
    points = grid(4, 8, 8, decoder.offset)
    target = boxes_around(points, 1)
    sides = distances(points.double(), target) / 8
    assert sides.min() > 0
    assert sides.max() < 16
    step = 2 * math.pi / 18
    place = (target[:, 4] + math.pi / 4) * 18 / math.pi
    turn = (place - place.floor()) * step
    share = torch.sin(turn) / (torch.sin(turn) + torch.sin(step - turn))
    angle = torch.zeros(len(points), 18, dtype=torch.float64)
    angle.scatter_(1, (place.floor().long() % 18)[:, None], (1 - share)[:, None])
    angle.scatter_(1, ((place.floor().long() + 1) % 18)[:, None], share[:, None])
    shift = decoder.shift_bins(target[:, :2], points, torch.full((1, 1), 8.0))
    lines = two_bins(torch.cat((sides, shift), 1), 17).flatten(1)
    decoded = decoder(torch.cat((lines, angle.clamp(min=1e-12).log()), 1), points, torch.full((1, 1), 8.0))
    # On the seam the angle may come back half a turn away: the box is the same.
    assert torch.sin(decoded[:, 4].double() - target[:, 4]).abs().max() < 1e-5
    assert rotated_iou_pairwise(decoded.double(), target).min() > 1 - 1e-4


def test_a_box_is_the_same_on_both_sides_of_the_seam() -> None:
    """A network hedges there between l and r, t and b: the box must not depend on which is which."""
    decoder = BoxDecoder(ModelConfig())
    reg = torch.randn(50, reg_channels(ModelConfig()), generator=torch.Generator().manual_seed(0))
    lines, angle = decoder.split(reg)
    swapped = torch.cat((lines[:, [2, 3, 0, 1, 4, 5]].flatten(1), angle), 1)
    place = torch.zeros(50, 2), torch.full((50, 1), 8.0)
    torch.testing.assert_close(decoder(swapped, *place), decoder(reg, *place))


def test_grid_runs_along_rows() -> None:
    assert grid(2, 3, 8, 0.0).tolist() == [[0, 0], [8, 0], [16, 0], [0, 8], [8, 8], [16, 8]]
    assert grid(1, 2, 8, 0.5).tolist() == [[4, 4], [12, 4]]


@pytest.mark.parametrize("mode", OF_MODE)
def test_level_topk_keeps_the_points_of_the_best_class_scores(mode: str) -> None:
    config, spec = OF_MODE[mode]
    raw = random_raw(config, spec)
    boxes, scores = level_decoder(config, spec)(raw)
    everything = level_decoder(config, dataclasses.replace(spec, level_topk=0))(raw)
    counts = [256, 64, 16, 4, 1]
    assert everything[0].shape == (2, sum(counts), 5)
    assert boxes.shape == (2, sum(min(count, 20) for count in counts), 5)
    first = start = 0
    for count in counts:
        kept = min(count, 20)
        for image in range(2):
            whole_scores = everything[1][image, start : start + count]
            best = raw.cls[counts.index(count)][image].amax(0).flatten()
            order = best.argsort(descending=True)[:kept] if kept < count else torch.arange(count)
            torch.testing.assert_close(scores[image, first : first + kept], whole_scores[order])
            torch.testing.assert_close(
                boxes[image, first : first + kept], everything[0][image, start : start + count][order]
            )
        start, first = start + count, first + kept


def test_quality_is_that_of_the_paper() -> None:
    """The distribution-guided quality predictor of arXiv 2011.12885, in NumPy."""
    config, spec = OF_MODE["gfl"]
    raw = random_raw(config, spec)
    decoder = level_decoder(config, spec)
    boxes, scores = decoder(raw)
    plain_boxes, plain = LevelDecoder(*OF_MODE["gfl, no quality"])(raw)
    assert torch.equal(boxes, plain_boxes)
    factor = scores / plain
    assert factor.max() - factor.min() > 0.2
    predictor = decoder.box.quality_predictor
    assert predictor is not None
    weights = [parameter.double().numpy() for parameter in predictor.parameters()]
    reg = raw.reg[4][:, :, 0, 0]  # the coarsest level has one point
    for image in range(2):
        logits = reg[image].double().numpy()
        statistics: list[float] = []
        for one in (*logits[: 6 * 17].reshape(6, 17), logits[6 * 17 :]):
            prob = np.exp(one) / np.exp(one).sum()
            top = np.sort(prob)[::-1][:4]
            statistics += [*top, top.mean()]
        hidden = np.maximum(weights[0] @ statistics + weights[1], 0)
        quality = 1 / (1 + np.exp(-(weights[2] @ hidden + weights[3])))
        np.testing.assert_allclose(factor[image, -1].numpy(), np.repeat(quality, 3), rtol=1e-5)


def test_scores_that_all_round_to_1_keep_their_order() -> None:
    config, spec = OF_MODE["gfl"]
    raw = random_raw(config, spec)
    order = torch.randperm(256, generator=torch.Generator().manual_seed(1))
    raw.cls[0].fill_(-9)[:, 0].copy_((30 + order.float()).view(16, 16))
    boxes, _ = level_decoder(config, spec)(raw)
    everything, _ = level_decoder(config, dataclasses.replace(spec, level_topk=0))(raw)
    torch.testing.assert_close(boxes[:, :20], everything[:, order.argsort(descending=True)[:20]])


def test_a_level_of_just_top_k_points_keeps_their_order() -> None:
    config, spec = OF_MODE["gfl"]
    raw = random_raw(config, spec)
    all_points, as_many = (
        level_decoder(config, dataclasses.replace(spec, level_topk=count))(raw) for count in (0, 256)
    )
    for one, two in zip(all_points, as_many, strict=True):
        assert torch.equal(one, two)


def test_decode_is_float32_under_autocast_and_half_inputs() -> None:
    config, spec = OF_MODE["gfl"]
    decoder = level_decoder(config, spec)
    half = Raw(*(tuple(level.bfloat16() for level in part) for part in random_raw(config, spec)))
    exact = Raw(*(tuple(level.float() for level in part) for part in half))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = decoder.with_uncertainty(half)
    for ours, expected in zip(found, decoder.with_uncertainty(exact), strict=True):
        assert ours.dtype == torch.float32
        assert torch.equal(ours, expected)


def test_other_image_sizes_decode_too() -> None:
    config, spec = OF_MODE["gfl"]
    other = dataclasses.replace(spec, image_size=(256, 128))
    raw = random_raw(config, other)
    torch.testing.assert_close(level_decoder(config, spec)(raw), level_decoder(config, other)(raw))


class DecodeOf(torch.nn.Module):
    """Raw tensors as separate inputs, as an exporter needs them."""

    def __init__(self, decoder: LevelDecoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        return self.decoder(Raw(tensors[:5], tensors[5:]))


@pytest.mark.parametrize("mode", OF_MODE)
@pytest.mark.filterwarnings(
    "ignore::torch.jit.TracerWarning", "ignore::UserWarning", "ignore::DeprecationWarning"
)
def test_exported_decode_equals_torch(mode: str, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    config, spec = OF_MODE[mode]
    module = DecodeOf(level_decoder(config, spec)).eval()
    tensors = [tensor for part in random_raw(config, spec) for tensor in part]
    names = [f"input_{index}" for index in range(len(tensors))]
    path = tmp_path / "decode.onnx"
    torch.onnx.export(
        module,
        tuple(tensors),
        str(path),
        input_names=names,
        output_names=["boxes", "scores"],
        dynamic_axes={name: {0: "batch"} for name in (*names, "boxes", "scores")},
        opset_version=17,
        dynamo=False,
    )
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for batch in (1, 2):
        feed = {name: tensor[:batch].numpy() for name, tensor in zip(names, tensors, strict=True)}
        boxes, scores = session.run(None, feed)
        expected_boxes, expected_scores = module(*(tensor[:batch] for tensor in tensors))
        np.testing.assert_allclose(scores, expected_scores.numpy(), atol=1e-6)
        np.testing.assert_allclose(boxes, expected_boxes.numpy(), atol=2e-3, rtol=1e-5)
