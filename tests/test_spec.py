"""The contract that travels: equal specs give equal bytes, and a wrong one is named, never guessed at."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rgfl.detections import Detections
from rgfl.spec import MAX_JSON_BYTES, DetectorSpec, SpecError, unfit_name

SPEC = DetectorSpec(classes=("plane", "ship"), angle_bins=18)

NAMES = st.text(min_size=1, max_size=20).filter(lambda name: not unfit_name(name))


@given(
    classes=st.lists(NAMES, min_size=1, max_size=18, unique=True),
    size=st.integers(1, 16),
    threshold=st.floats(0, 1),
)
def test_json_and_back(classes: list[str], size: int, threshold: float) -> None:
    spec = DetectorSpec(
        classes=tuple(classes), image_size=(128 * size, 128), score_threshold=threshold, level_topk=size
    )
    again = DetectorSpec.from_json(spec.to_json())
    assert again == spec
    assert again.digest == spec.digest


def test_the_digest_tells_specs_apart() -> None:
    assert SPEC.digest != DetectorSpec(classes=("ship", "plane"), angle_bins=18).digest


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("classes", "abc"),
        ("classes", []),
        ("classes", ["a", "a"]),
        ("classes", [1, 2]),
        ("classes", ["x/../../../evil"]),
        ("classes", ["a\\b"]),
        ("classes", [".."]),
        ("classes", [""]),
        ("classes", ["small vehicle"]),
        ("classes", ["a\0b"]),
        ("classes", ["\ud800"]),
        ("classes", ["\x1b[2J"]),
        ("classes", ["a" * 201]),
        ("strides", []),
        ("strides", [0]),
        ("strides", ["8"]),
        ("image_size", [100, 128]),
        ("image_size", [128]),
        ("image_size", [128_000_000, 128_000_000]),
        ("pad_value", [-5, 0, 0]),
        ("pad_value", [0, 0, 256]),
        ("pad_value", [True, 0, 0]),
        ("mean", [math.inf, 0, 0]),
        ("std", [math.nan, 1, 1]),
        ("std", [math.inf, 1, 1]),
        ("score_threshold", True),
        ("max_detections", True),
        ("max_detections", 10**400),
        ("mean", None),
        ("std", [1, 0, 1]),
        ("score_threshold", "x"),
        ("iou_threshold", 1.5),
        ("level_topk", -1),
        ("mode", "other"),
        ("angle_convention", "le90"),
    ],
)
def test_a_wrong_field_is_named(field: str, value: object) -> None:
    record = {**json.loads(SPEC.to_json()), field: value}
    with pytest.raises(SpecError, match=field):
        DetectorSpec.from_json(json.dumps(record))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "not JSON"),
        ("[" * 100_000, "not JSON"),
        (f'{{"rgfl_spec": {"9" * 5000}}}', "not JSON"),
        ("[1]", "no rgfl spec"),
        ("{}", "no rgfl spec"),
        ('{"rgfl_spec": 99}', "99"),
        ('{"rgfl_spec": 1}', "classes"),
        ('{"rgfl_spec": 1, "classes": ["a"], "colour": 1}', "colour"),
    ],
)
def test_what_is_no_spec(text: str, said: str) -> None:
    with pytest.raises(SpecError, match=said):
        DetectorSpec.from_json(text)


def test_a_spec_fits_an_engines_name() -> None:
    with pytest.raises(SpecError, match=str(MAX_JSON_BYTES)):
        DetectorSpec(classes=tuple(f"{'long' * 20}-{index}" for index in range(60)))


def test_detections_check_their_shapes() -> None:
    empty = Detections.empty()
    assert len(Detections.concatenate([])) == len(Detections.concatenate([empty, empty])) == 0
    with pytest.raises(ValueError, match=r"boxes \(N, 5\)"):
        Detections(empty.boxes[:, :4], empty.scores, empty.labels)


@pytest.mark.parametrize(
    "module", ["rgfl", "rgfl.spec", "rgfl.detections", "rgfl.dota.merge", "rgfl.dota.average_precision"]
)
def test_the_base_imports_no_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("image_size", [0, 128]),
        ("image_size", [-128, 128]),
        ("pad_value", [0.5, 0, 0]),
        ("iou_threshold", -0.1),
        ("strides", [8, "16"]),
        ("mean", [1, 2, "3"]),
    ],
)
def test_every_number_of_a_field_is_looked_at(field: str, value: object) -> None:
    record = {**json.loads(SPEC.to_json()), field: value}
    with pytest.raises(SpecError, match=field):
        DetectorSpec.from_json(json.dumps(record))


def test_a_spec_fits_an_engines_name_in_bytes() -> None:
    """TensorRT counts bytes, and each of these letters is three."""
    with pytest.raises(SpecError, match=str(MAX_JSON_BYTES)):
        DetectorSpec(classes=tuple(f"{'船' * 60}-{index}" for index in range(22)))


def test_the_bytes_of_a_spec_do_not_change() -> None:
    """Digests stand in result files, and other languages read defaults that a file does not name."""
    assert DetectorSpec(classes=("ä",)).digest == "e280bef9ad7b"


def test_names_of_every_script_are_taken_and_white_space_around_them_is_not() -> None:
    for name in ("Flugzeug-größe", "飞机", "می\u200cدان"):  # the joiner is ordinary spelling in Persian
        assert DetectorSpec.from_json(DetectorSpec(classes=(name,)).to_json()).classes == (name,)
    with pytest.raises(SpecError, match="has white space"):
        DetectorSpec(classes=("ship ",))
