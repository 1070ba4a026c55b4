"""The spread of the distributions, against its formula in NumPy and against what it must mean."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from rgfl.nn.config import ModelConfig
from rgfl.nn.decode import BoxDecoder, LevelDecoder, Raw
from rgfl.nn.detector import build_detector
from rgfl.spec import DetectorSpec

CONFIG = ModelConfig(
    pretrained=False, backbone="test_resnet", neck_channels=32, head_channels=64, head_convs=1
)
SPEC = DetectorSpec(classes=("a", "b"), image_size=(128, 128), angle_bins=18, level_topk=20)


def slow(logits, stride):
    """One point in float64, bin by bin; the angle as the root mean square of the chords, halved."""
    variance = []
    for line in logits[:102].reshape(6, 17):
        prob = np.exp(line - line.max())
        prob /= prob.sum()
        mean = sum(p * k for k, p in enumerate(prob))
        variance.append(sum(p * (k - mean) ** 2 for k, p in enumerate(prob)))
    left, top, right, bottom, x, y = variance
    spread = [stride / 2 * math.sqrt(x), stride / 2 * math.sqrt(y)]
    spread += [stride * math.sqrt(left + right), stride * math.sqrt(top + bottom)]
    prob = np.exp(logits[102:] - logits[102:].max())
    prob /= prob.sum()
    twice = [2 * (-math.pi / 4 + k * math.pi / 18) for k in range(18)]
    resultant = sum(p * complex(math.cos(t), math.sin(t)) for p, t in zip(prob, twice, strict=True))
    direction = resultant / abs(resultant)
    chords = [abs(complex(math.cos(t), math.sin(t)) - direction) for t in twice]
    spread.append(math.sqrt(sum(p * chord**2 for p, chord in zip(prob, chords, strict=True))) / 2)
    return spread


def test_formula():
    logits = torch.randn(50, 120, generator=torch.Generator().manual_seed(0)) * 4
    strides = torch.full((50, 1), 16.0)
    found = BoxDecoder(CONFIG).uncertainty(logits, strides)
    expected = [slow(row, 16.0) for row in logits.double().numpy()]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    half = logits.bfloat16()
    assert torch.equal(*(BoxDecoder(CONFIG).uncertainty(reg, strides) for reg in (half, half.float())))


def peaked(lines, angle):
    """Logits of one point: shares of neighbouring bins, as DFL's targets are."""
    prob = torch.full((120,), 1e-12)
    for row, value in enumerate(lines):
        low = int(value)
        prob[row * 17 + low] += 1 - (value - low)
        prob[row * 17 + low + 1] += value - low
    place = (angle + math.pi / 4) / math.pi * 18
    low = int(place)
    prob[102 + low % 18] += 1 - (place - low)
    prob[102 + (low + 1) % 18] += place - low
    return prob.log()


def test_what_is_certain_has_at_most_half_a_bin_also_across_the_seam():
    decoder = BoxDecoder(CONFIG)
    lines = [3, 4.5, 5.25, 0, 8, 9.5]  # l, t, r, b, x, y
    found = decoder.uncertainty(peaked(lines, 0.0 - math.pi / 4 + math.pi / 18), torch.tensor([8.0]))
    half, quarter = 8 * 0.5, 8 * math.sqrt(0.25 * 0.75)
    np.testing.assert_allclose(found, [0, half / 2, quarter, half, 0], atol=2e-3)
    seam = 3 * math.pi / 4 - math.pi / 36  # between the last bin and the first
    across = decoder.uncertainty(peaked(lines, seam), torch.tensor([8.0]))[4]
    assert float(across) == pytest.approx(math.pi / 36, rel=0.01)


def test_no_idea_is_the_most_and_wider_is_more():
    decoder = BoxDecoder(CONFIG)
    flat = decoder.uncertainty(torch.zeros(120), torch.tensor([8.0]))
    line = 8 * math.sqrt((17**2 - 1) / 12)
    expected = [line / 2] * 2 + [line * math.sqrt(2)] * 2 + [1 / math.sqrt(2)]
    np.testing.assert_allclose(flat, expected, rtol=1e-5)
    hump = torch.zeros(120)
    hump[102:] = torch.cos(2 * math.pi * (torch.arange(18) - 5.3) / 18)
    narrower = [float(decoder.uncertainty(scale * hump, torch.ones(1))[4]) for scale in (0.5, 1, 2, 4, 8, 16)]
    assert narrower == sorted(narrower, reverse=True)
    # A narrow hump is a normal distribution: exp(16 cos 2δ) has the deviation 1/(2·√16) of δ.
    assert narrower[-1] == pytest.approx(1 / 8, rel=0.03)


def test_points_are_those_of_the_boxes():
    torch.manual_seed(0)
    decoder = LevelDecoder(CONFIG, SPEC)
    sizes = [128 // stride for stride in SPEC.strides]
    raw = Raw(
        tuple(torch.randn(2, 2, size, size) for size in sizes),
        tuple(torch.randn(2, 120, size, size) for size in sizes),
    )
    boxes, scores, spread = decoder.with_uncertainty(raw)
    for ours, alone in zip((boxes, scores), decoder(raw), strict=True):
        assert torch.equal(ours, alone)
    assert spread.shape == boxes.shape == (2, 20 + 20 + 16 + 4 + 1, 5)
    # The coarsest level is one point: its logits are known.
    expected = slow(raw.reg[4][1, :, 0, 0].double().numpy(), 128.0)
    np.testing.assert_allclose(spread[1, -1], expected, rtol=1e-4)


def test_detector_gives_it_and_the_published_row_refuses():
    detector = build_detector(CONFIG, SPEC).eval()
    with torch.no_grad():
        raw = detector(torch.randn(1, 3, 128, 128))
        boxes, _, spread = detector.decode_with_uncertainty(raw)
    assert spread.shape == boxes.shape
    assert spread.isfinite().all()
    integral = BoxDecoder(dataclasses.replace(CONFIG, mode="integral", reg_max=8))
    with pytest.raises(ValueError, match="only mode 'gfl' trains the shape"):
        integral.uncertainty(torch.zeros(45), torch.ones(1))
