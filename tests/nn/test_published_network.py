"""The published row's network and constants, against its description typed anew; no weights are made."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from rgfl.dota.labels import CLASSES
from rgfl.nn import assign, head
from rgfl.nn.decode import BoxDecoder, LevelDecoder, Raw
from rgfl.nn.detector import build_detector
from rgfl.nn.loss import focal_loss
from rgfl.recipes import RECIPES


@pytest.fixture(params=["rgfl_r50_dota_1x", "rgfl_r50_dota_1x_trainval"])
def recipe(request):
    return RECIPES[request.param]()


def test_layers(recipe):
    config = dataclasses.replace(recipe.model, pretrained=False)
    with torch.device("meta"):
        network = build_detector(config, recipe.spec(CLASSES["1.0"]))
    shapes = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    assert [shapes[f"neck.laterals.{level}.weight"] for level in range(3)] == [
        (256, wide, 1, 1) for wide in (512, 1024, 2048)
    ]
    assert sum(key.startswith("neck.outputs") for key in shapes) == 3 * 2
    assert sum(key.startswith("neck.extras") for key in shapes) == 2 * 2
    for tower in ("cls", "reg"):
        convs = [key for key in shapes if key.startswith(f"head.{tower}_tower.convs")]
        assert [shapes[key] for key in convs] == [(256, 256, 3, 3)] * 4  # no bias before GroupNorm
        norms = getattr(network.head, f"{tower}_tower").norms
        assert [m.num_groups for m in norms.modules() if isinstance(m, torch.nn.GroupNorm)] == [32] * 4
    assert shapes["head.cls.weight"] == (15, 256, 3, 3)
    assert shapes["head.reg.weight"] == (45, 256, 3, 3)
    assert network.head.scales is None
    frozen = {key for key, p in network.named_parameters() if not p.requires_grad}
    stem = ("backbone.net.conv1", "backbone.net.bn1", "backbone.net.layer1.")
    assert frozen == {key for key, _ in network.named_parameters() if key.startswith(stem)}
    norms = [m for m in network.train().backbone.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert len(norms) == 53
    assert not any(module.training for module in norms)


def test_points_of_a_tile_whole_and_deployed(recipe):
    spec = recipe.spec(CLASSES["1.0"])
    sizes = [1024 // stride for stride in (8, 16, 32, 64, 128)]
    raw = Raw(
        tuple(torch.zeros(1, 15, size, size) for size in sizes),
        tuple(torch.zeros(1, 45, size, size) for size in sizes),
    )
    boxes, scores = LevelDecoder(recipe.model, spec)(raw)
    assert boxes.shape == (1, 5344, 5)
    assert scores.shape == (1, 5344, 15)
    every = LevelDecoder(recipe.model, dataclasses.replace(spec, level_topk=0))(raw)[0]
    assert every.shape == (1, 21824, 5)


def test_decoding_of_even_distributions(recipe):
    """All bins alike: dx = dy = dw = dh = 0, dθ = −1.5: a square of 4 strides, turned by −1.5π ≡ π/2."""
    decoder = BoxDecoder(recipe.model)
    np.testing.assert_allclose(decoder.project[:4], np.tile(np.linspace(-2, 2, 9), (4, 1)), atol=1e-6)
    np.testing.assert_allclose(decoder.project[4], np.linspace(-5, 2, 9), atol=1e-6)
    box = decoder(torch.zeros(45), torch.tensor([24.0, 40.0]), torch.tensor([8.0]))
    np.testing.assert_allclose(box, [24, 40, 32, 32, math.pi / 2], atol=1e-5)
    assert decoder.offset == 0


def test_constants_of_head_assigner_and_loss(recipe):
    assert head.PRIOR == 0.01
    assert assign.INSIDE == 0.01
    logits, labels = torch.tensor([0.0, 0.0, 1.0]), torch.tensor([1.0, 0.0, 1.0])
    p = 1 / (1 + np.exp(-np.array([0.0, 0.0, 1.0])))
    expected = [0.25 * 0.5**2 * np.log(2), 0.75 * 0.5**2 * np.log(2), -0.25 * (1 - p[2]) ** 2 * np.log(p[2])]
    np.testing.assert_allclose(focal_loss(logits, labels), expected, rtol=1e-5)
