"""Labels and pixels go through the same map; flips and right angles change no pixel."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rgfl import augment, boxes
from rgfl.augment import about, map_pixels, map_points, map_round, random_color, random_turn
from rgfl.recipes import AugmentConfig

ALL = AugmentConfig(flip_horizontal=0.5, flip_vertical=0.5, right_angle=0.5, rotate=0.7, scale=(0.6, 1.7))
FINE = 16  # sub-pixels a side of a rendered mask


def mask(quad, size):
    """(size, size) share of each pixel inside a quad: pixel (i, j) is [i, i+1) × [j, j+1)."""
    fine = np.zeros((size * FINE, size * FINE), np.uint8)
    corners = np.round((quad.reshape(4, 2) * FINE - 0.5) * 256).astype(np.int32)
    cv2.fillPoly(fine, [corners], 255, shift=8)
    return cv2.resize(fine, (size, size), interpolation=cv2.INTER_AREA)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_mapped_labels_are_where_mapped_pixels_are(seed):
    rng = np.random.default_rng(seed)
    source, size = 128, 320  # neither edge cuts the object: an edge blurs differently from a side
    quad = boxes.to_quads(np.array([[*rng.uniform(40, 88, 2), *rng.uniform(12, 50, 2), rng.uniform(-4, 4)]]))
    affine = about(random_turn(rng, ALL).linear, rng.uniform(44, 84, 2), size)
    image = np.repeat(mask(quad, source)[..., None], 3, 2)
    seen = map_pixels(image, affine, size, (0, 0, 0))[..., 0].astype(float)
    drawn = mask(map_points(affine, quad), size).astype(float)
    assert np.abs(seen - drawn).sum() < 0.08 * drawn.sum() + 255 * 4
    # And not beside it: half a pixel of the image would be .3 here at the least. (Shrinking aliases: .11 of
    # 3,000 seeds.)
    for index in np.indices(seen.shape):
        assert (index * seen).sum() / seen.sum() == pytest.approx(
            (index * drawn).sum() / drawn.sum(), abs=0.15
        )


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_boxes_after_the_map_are_canonical_and_similar(seed):
    rng = np.random.default_rng(seed)
    before = np.column_stack(
        [rng.uniform(0, 500, (20, 2)), rng.uniform(5, 90, (20, 2)), rng.uniform(-9, 9, 20)]
    )
    turn = random_turn(rng, ALL)
    after = boxes.from_quads(
        map_points(about(turn.linear, rng.uniform(0, 500, 2), 512), boxes.to_quads(before))
    )
    assert (after[:, 2] >= after[:, 3]).all()
    assert ((after[:, 4] >= -np.pi / 4) & (after[:, 4] < 3 * np.pi / 4)).all()
    sides = np.sort(before[:, 2:4], 1)[:, ::-1] * turn.factor
    np.testing.assert_allclose(after[:, 2:4], sides, rtol=1e-4)  # the map is a similarity


@pytest.mark.parametrize(
    ("linear", "expected"),
    [
        ([[1, 0], [0, 1]], lambda image: image),
        ([[-1, 0], [0, 1]], np.fliplr),
        ([[1, 0], [0, -1]], np.flipud),
        ([[0, -1], [1, 0]], lambda image: np.rot90(image, -1)),
        ([[0, 1], [-1, 0]], np.rot90),
        ([[-1, 0], [0, -1]], lambda image: np.rot90(image, 2)),
    ],
)
def test_flips_and_right_angles_move_whole_pixels(linear, expected):
    image = np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    affine = about(np.array(linear, float), np.array([64.0, 64.0]), 128)
    np.testing.assert_array_equal(map_pixels(image, affine, 128, (0, 0, 0)), expected(image))


@settings(max_examples=120, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_flips_and_right_angles_give_what_a_warp_gives(seed):
    """They are a copy, since the warp was three quarters of what a tile from the cache cost."""
    rng = np.random.default_rng(seed)
    height, width = rng.integers(1, 400, 2).tolist()
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    size = int(rng.choice([64, 128, 256]))
    turn = random_turn(rng, AugmentConfig(flip_horizontal=0.5, flip_vertical=0.5, right_angle=0.7))
    corner = rng.integers(-size - 3, [width + 3, height + 3])
    affine = about(turn.linear, corner + size / 2, size)
    color = random_color(rng, AugmentConfig(brightness=0.3, contrast=0.3, saturation=0.3, hue=9))
    for arguments in ((affine, size, (3, 2, 1)), (affine, size, (3, 2, 1), color)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(cv2, "warpAffine", None)
            moved = map_pixels(image, *arguments)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(augment, "_moves_whole_pixels", lambda *_: False)
            np.testing.assert_array_equal(moved, map_pixels(image, *arguments))


@pytest.mark.parametrize(
    "affine",
    [
        about(np.eye(2), np.array([64.5, 64.0]), 128),  # half a pixel beside
        about(np.diag([1.0, 0.5]), np.array([64.0, 64.0]), 128),
        about(np.array([[0.6, -0.8], [0.8, 0.6]]), np.array([64.0, 64.0]), 128),
        about(np.array([[1.0, 1.0], [0.0, 1.0]]), np.array([64.0, 64.0]), 128),
    ],
)
def test_other_maps_are_no_copies(affine, monkeypatch):
    image = np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    expected = map_pixels(image, affine, 128, (0, 0, 0))
    monkeypatch.setattr(augment, "_moves_whole_pixels", lambda *_: False)
    np.testing.assert_array_equal(map_pixels(image, affine, 128, (0, 0, 0)), expected)


@pytest.mark.parametrize("linear", [[[1, 0], [0, 1]], [[-1, 0], [0, 1]], [[0, 1], [1, 0]]])
def test_a_tile_shares_no_memory_with_its_image(linear):
    image = np.zeros((128, 128, 3), np.uint8)
    tile = map_pixels(image, about(np.array(linear, float), np.array([64.0, 64.0]), 128), 128, (0, 0, 0))
    assert not np.shares_memory(tile, image)
    assert tile.flags.c_contiguous


def test_a_window_of_a_larger_image_is_copied_and_padded():
    image = np.random.default_rng(0).integers(1, 256, (90, 300, 3), dtype=np.uint8)
    tile = map_pixels(image, about(np.eye(2), np.array([150.0 + 64, 64.0]), 128), 128, (7, 8, 9))
    np.testing.assert_array_equal(tile[:90], image[:, 150:278])
    assert (tile[90:] == [7, 8, 9]).all()


def test_a_window_beside_the_image_is_padding():
    image = np.full((64, 64, 3), 200, np.uint8)
    tile = map_pixels(image, about(np.eye(2), np.array([5000.0, -900.0]), 128), 128, (1, 2, 3))
    assert (tile == [1, 2, 3]).all()


def test_between_pixels_is_interpolated():
    image = np.repeat(np.arange(0, 200, 10, dtype=np.uint8)[None, :, None], 20, 0).repeat(3, 2)
    tile = map_pixels(image, about(np.eye(2), np.array([10.5, 10.0]), 20), 20, (0, 0, 0))
    np.testing.assert_array_equal(tile[5, :19, 0], np.arange(5, 195, 10))


def test_colour_changes_the_image_and_not_the_padding():
    image = np.full((64, 64, 3), 100, np.uint8)
    color = random_color(np.random.default_rng(1), AugmentConfig(brightness=0.5))
    tile = map_pixels(image, about(np.eye(2), np.array([64.0, 64.0]), 128), 128, (100, 100, 100), color)
    assert (tile[:64, :64] != 100).any()
    assert (tile[64:, 64:] == 100).all()


def test_no_change_wanted_none_made():
    rng = np.random.default_rng(0)
    for _ in range(20):
        turn = random_turn(rng, AugmentConfig())
        np.testing.assert_array_equal(turn.linear, np.eye(2))
        assert turn.factor == 1
        assert random_color(rng, AugmentConfig()) is None


def test_turns_are_what_was_asked_for():
    def draws(**config):
        return [random_turn(np.random.default_rng(seed), AugmentConfig(**config)) for seed in range(200)]

    def linear_maps(**config):
        return {tuple(turn.linear.ravel()) for turn in draws(**config)}

    assert linear_maps(flip_horizontal=1) == {(-1, 0, 0, 1)}
    assert linear_maps(flip_vertical=1) == {(1, 0, 0, -1)}
    assert len(linear_maps(right_angle=1)) == 4
    angles = [np.arctan2(turn.linear[1, 0], turn.linear[0, 0]) for turn in draws(rotate=1)]
    assert (min(angles), max(angles)) == pytest.approx((-np.pi, np.pi), abs=0.2)
    octaves = np.log2([turn.factor for turn in draws(scale=(0.25, 4))])  # as often smaller as larger
    assert (octaves.min(), octaves.mean(), octaves.max()) == pytest.approx((-2, 0, 2), abs=0.2)


def test_gray_has_three_equal_channels():
    colors = np.random.default_rng(0).uniform(0, 255, (500, 3))
    matrix = random_color(np.random.default_rng(0), AugmentConfig(gray=1))
    assert np.ptp(colors @ matrix[:, :3].T + matrix[:, 3], axis=-1).max() < 1e-6


def test_colours_change_both_ways_as_far_as_asked():
    grey, light, red = np.array([[128, 128, 128, 1], [228, 228, 228, 1], [200, 40, 40, 1]], float)

    def bounds(change, **config):
        matrices = [random_color(np.random.default_rng(seed), AugmentConfig(**config)) for seed in range(200)]
        found = [change(matrix) for matrix in matrices]
        return min(found), max(found)

    def hue(matrix):
        _, i, q = augment.RGB_TO_YIQ @ matrix @ red
        _, was_i, was_q = augment.RGB_TO_YIQ @ red[:3]
        return np.degrees(np.arctan2(q, i) - np.arctan2(was_q, was_i))

    for change, config in (
        (lambda matrix: (matrix @ grey)[0] / 128, {"brightness": 0.3}),
        (lambda matrix: (matrix @ grey)[0] / 128, {"brightness": 0.3, "contrast": 0.3}),  # about mid-grey
        (lambda matrix: (matrix @ (light - grey))[0] / 100, {"contrast": 0.3}),
        (lambda matrix: np.ptp(matrix @ red) / 160, {"saturation": 0.3}),
    ):
        assert bounds(change, **config) == pytest.approx((0.7, 1.3), abs=0.02), config
    assert bounds(hue, hue=9) == pytest.approx((-9, 9), abs=0.5)


def test_hue_and_saturation_leave_greys_alone():
    greys = np.repeat(np.arange(0, 256.0)[:, None], 3, 1)
    for seed in range(5):
        matrix = random_color(np.random.default_rng(seed), AugmentConfig(hue=90, saturation=0.9, gray=0.3))
        np.testing.assert_allclose(greys @ matrix[:, :3].T + matrix[:, 3], greys, atol=0.2)


def test_round_objects_stay_upright_under_a_free_turn():
    quad = boxes.to_quads(np.array([[50.0, 60.0, 20.0, 20.0, 0.0]]))
    turn = random_turn(np.random.default_rng(3), AugmentConfig(rotate=1, scale=(2, 2)))
    affine = about(turn.linear, np.array([50.0, 60.0]), 256)
    mapped = map_round(affine, turn.upright, quad)
    expected = boxes.to_quads(np.array([[128.0, 128.0, 40.0, 40.0, 0.0]]))
    np.testing.assert_allclose(mapped, expected, atol=1e-9)
    assert not np.allclose(map_points(affine, quad), expected, atol=1)
