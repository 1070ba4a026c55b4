"""TIFF as GDAL writes it: what the samples are is read from the directory, and never guessed wrongly."""

import contextlib
import itertools
import os
import tracemalloc
import warnings

import cv2
import numpy as np
import pytest
from tiff_bytes import assemble, tiff_bytes

from rgfl.dota import images, tiff
from rgfl.dota.images import ImageError, ImageWarning, read_image

DEPTHS = {8: np.uint8, 16: np.uint16}
GEO = {
    33550: (12, [0.5, 0.5, 0]),
    33922: (12, [0, 0, 0, 500000, 4600000, 0]),
    34735: (3, [1, 1, 0, 1, 3072, 0, 1, 32631]),
    34737: (2, "WGS 84 / UTM zone 31N|"),
    42112: (2, "<GDALMetadata/>"),
}


@pytest.fixture(autouse=True)
def nothing_warned_of_yet(monkeypatch):
    monkeypatch.setattr(images, "_warned_of", [])


def noise(samples, depth=8, size=(70, 90)):
    """Pixels (H, W, samples) that fill their range."""
    pixels = np.random.default_rng(samples).integers(0, 256, (*size, samples)).astype(np.uint8)
    return pixels if depth == 8 else pixels.astype(np.uint16) * 257


def seen(pixels):
    """What should be read of them: three bands, 8 bits."""
    pixels = pixels if pixels.dtype == np.uint8 else (pixels >> 8).astype(np.uint8)
    return pixels[:, :, :3] if pixels.shape[2] >= 3 else np.repeat(pixels[:, :, :1], 3, axis=2)


def written(tmp_path, data, name="scene.tif"):
    (tmp_path / name).write_bytes(data)
    return tmp_path / name


@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize("planar", [1, 2])
@pytest.mark.parametrize("samples", [1, 3, 4])
@pytest.mark.parametrize("photometric", [1, 2])
def test_bands_are_colours_whatever_the_file_calls_them(tmp_path, depth, planar, samples, photometric):
    """OpenCV read three bands that GDAL calls grey as band 1, and 16 bit grey in tiles scrambled."""
    if samples == 1 and photometric == 2:
        return
    pixels = noise(samples, depth)
    extra = [0] * (samples - (3 if photometric == 2 else 1))
    for order, big, tile, rows, deflate in itertools.product("<>", (0, 1), (0, 32), (0, 7), (0, 1)):
        data = tiff_bytes(
            pixels, photometric, order=order, big=big, planar=planar, tile=tile, rows=rows, extra=extra,
            deflate=deflate, tags=GEO,
        )  # fmt: skip
        image = read_image(written(tmp_path, data))
        np.testing.assert_array_equal(image, seen(pixels), str((order, big, tile, rows, deflate)))


@pytest.mark.parametrize("photometric", [1, 2, None])
def test_a_directory_that_says_little(tmp_path, photometric):
    """No photometric interpretation, no word on extra samples, and one number for the bits of all."""
    tags = {262: (3, [photometric]) if photometric is not None else None, 258: (3, [8]), 339: None, 284: None}
    for samples in (1, 3, 4) if photometric != 2 else (3, 4):
        image = read_image(written(tmp_path, tiff_bytes(noise(samples), 0, tags=tags)))
        np.testing.assert_array_equal(image, seen(noise(samples)))


@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize("planar", [1, 2])
@pytest.mark.parametrize("extra", [0, 1, 2])
def test_colours_are_not_multiplied_by_alpha(tmp_path, depth, planar, extra):
    """OpenCV multiplies them where the directory says that the fourth band is alpha."""
    pixels = noise(4, depth)
    for order, tile in itertools.product("<>", (0, 32)):
        data = tiff_bytes(pixels, 2, order=order, tile=tile, planar=planar, extra=[extra])
        np.testing.assert_array_equal(read_image(written(tmp_path, data)), seen(pixels))


@pytest.mark.parametrize("depth", [8, 16])
def test_grey_with_alpha_is_grey(tmp_path, depth):
    pixels = noise(2, depth)
    for order, extra in itertools.product("<>", (1, 2)):
        data = tiff_bytes(pixels, 1, order=order, extra=[extra])
        np.testing.assert_array_equal(read_image(written(tmp_path, data)), seen(pixels))


@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize("tile", [0, 32])
def test_grey_of_which_white_is_zero(tmp_path, depth, tile):
    image = read_image(written(tmp_path, tiff_bytes(noise(1, depth), 0, tile=tile)))
    np.testing.assert_array_equal(image, 255 - seen(noise(1, depth)))


@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize("tile", [0, 32])
def test_orientation_turns_the_image(tmp_path, depth, tile):
    """OpenCV turns each tile for itself."""
    upright = seen(noise(3))
    turned = {
        1: upright,
        2: upright[:, ::-1],
        3: np.rot90(upright, 2),
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, -1),
        7: np.rot90(upright, 2).transpose(1, 0, 2),
        8: np.rot90(upright),
    }
    for orientation, expected in turned.items():
        data = tiff_bytes(noise(3, depth), 2, tile=tile, tags={274: (3, [orientation])})
        np.testing.assert_array_equal(read_image(written(tmp_path, data)), expected, str(orientation))


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (
            np.zeros((40, 50, 8), np.uint16),
            r"8 bands; expected 1, 3 or 4; choose three \(gdal_translate .* -b 3",
        ),
        (np.zeros((40, 50, 5), np.uint8), "5 bands; expected 1, 3 or 4"),
        (
            np.zeros((40, 50, 2), np.uint16),
            r"2 bands; expected 1, 3 or 4; choose one \(gdal_translate .*-b 1 IN",
        ),
        (
            np.zeros((40, 50, 1), np.int16),
            r"got a signed TIFF; convert it to 8 bit first \(gdal_translate .*-ot",
        ),
        (np.zeros((40, 50, 3), np.int8), "expected 8 or 16 bit pixels, got a signed TIFF"),
        (np.zeros((40, 50, 1), np.float32), "expected 8 or 16 bit pixels, got a float TIFF"),
        (np.zeros((40, 50, 1), np.uint32), "expected 8 or 16 bit pixels, got 32 bits; convert it"),
    ],
)
def test_what_is_no_picture_is_told_with_the_remedy(tmp_path, capfd, pixels, message):
    for order, big in itertools.product("<>", (False, True)):
        path = written(tmp_path, tiff_bytes(pixels, 1, order=order, big=big, tags=GEO))
        with pytest.raises(ImageError, match=message) as error:
            read_image(path)
        assert str(error.value).startswith(f"{path}: ")
    assert capfd.readouterr().err == ""  # OpenCV prints lines of its own


def test_grey_with_alpha_in_tiles_is_refused(tmp_path):
    """OpenCV scrambles the last tile of each row."""
    with pytest.raises(ImageError, match="2 bands; expected 1, 3 or 4"):
        read_image(written(tmp_path, tiff_bytes(noise(2), 1, extra=[2], tile=32)))


def test_a_png_without_a_header_is_one_line(tmp_path):
    with pytest.raises(ImageError, match=r"a\.png: a damaged PNG file"):
        read_image(written(tmp_path, b"\x89PNG\r\n\x1a\n" + bytes(4) + b"IEND" + bytes(4), "a.png"))


def test_geotiff_prints_nothing(tmp_path, capfd):
    """OpenCV warned of each of their tags, for every tile that is read in training."""
    for samples in (1, 3, 4):
        read_image(written(tmp_path, tiff_bytes(noise(samples, 16), 1, tags=GEO)))
    assert capfd.readouterr().err == ""


# ------------------------------------------------------------------------------------- fewer bits than 16


@pytest.mark.parametrize("planar", [1, 2])
def test_11_bits_in_16_are_warned_of_once(tmp_path, planar):
    dark = (noise(3, 16) >> 5).astype(np.uint16)
    first = written(tmp_path, tiff_bytes(dark, 1, planar=planar), "first.tif")
    second = written(tmp_path, tiff_bytes(dark, 1), "second.tif")
    with pytest.warns(ImageWarning, match=r"first.tif: 16 bit .* is 2047: .*-scale 0 2047 0 255"):
        image = read_image(first)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_image(second)
    np.testing.assert_array_equal(image, seen(dark))  # as it is: no scale is guessed


def test_11_bits_in_a_png_are_warned_of(tmp_path):
    dark = (noise(3, 16) >> 5).astype(np.uint16)
    assert cv2.imwrite(str(tmp_path / "dark.png"), dark[:, :, ::-1])
    with pytest.warns(ImageWarning, match=r"dark.png: 16 bit pixels whose highest value is 2047"):
        image = read_image(tmp_path / "dark.png")
    np.testing.assert_array_equal(image, seen(dark))


@pytest.mark.parametrize("pixels", [noise(3, 16), np.zeros((9, 9, 3), np.uint16), noise(3)])
def test_full_depth_and_black_are_not_warned_of(tmp_path, pixels):
    assert cv2.imwrite(str(tmp_path / "full.png"), pixels)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_image(written(tmp_path, tiff_bytes(pixels, 1)))
        read_image(tmp_path / "full.png")
    assert not images._warned_of


# ------------------------------------------------------------------------------------ damaged directories


def test_pixels_that_are_cut_off(tmp_path):
    """The directory comes first in GDAL's files, so a short copy has a whole one."""
    pixels = noise(3)
    last = tiff_bytes(pixels, 1)
    entries = len(last) - 8 - pixels.size  # the directory and its values
    for share in (0.0, 0.5, 0.99):
        start = 8 + entries
        first = tiff_bytes(pixels, 1, tags={273: (4, [start])})
        directory = first[8 + pixels.size :]
        moved = relocate(first, directory, pixels.tobytes())
        np.testing.assert_array_equal(read_image(written(tmp_path, moved)), pixels)
        cut = moved[: start + int(share * pixels.size)]
        with pytest.raises(ImageError, match=f"cut off, {len(moved) - len(cut):,} bytes of its pixels"):
            read_image(written(tmp_path, cut))


def relocate(head, directory, body):
    """The same file with the directory before the pixels; values of tags move along."""
    out = bytearray(head[:4] + (8).to_bytes(4, "little") + directory)
    for position in range(10, 10 + 12 * int.from_bytes(directory[:2], "little"), 12):
        tag, kind = (int.from_bytes(out[position + at : position + at + 2], "little") for at in (0, 2))
        count = int.from_bytes(out[position + 4 : position + 8], "little")
        if count * {3: 2, 4: 4}[kind] > 4:
            place = int.from_bytes(out[position + 8 : position + 12], "little") - len(body)
            out[position + 8 : position + 12] = place.to_bytes(4, "little")
        assert tag
    return bytes(out) + body


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("big", [False, True])
def test_a_broken_directory_is_one_line_or_read(tmp_path, order, big):
    """Whatever a byte of header or directory becomes: an image, or an ImageError, soon."""
    whole = tiff_bytes(noise(3, size=(6, 5)), 1, order=order, big=big, extra=[0, 0], tags=GEO)
    head = 16 if big else 8
    changed = []
    for place, value in itertools.product([*range(head), *range(head + 90, len(whole))], (0, 127, 255)):
        changed.append(whole[:place] + bytes([value]) + whole[place + 1 :])
    for data in changed + [whole[:length] for length in range(4, len(whole))]:
        path = written(tmp_path, data)
        with contextlib.suppress(tiff.TiffError):
            tiff.read_file(path)
        try:
            assert read_image(path).dtype == np.uint8
        except ImageError as error:
            told = str(error)
            if told.count("\n") or not told.startswith(f"{path}: "):
                raise


def test_counts_are_not_believed():
    """A count of 2³² values must not be allocated, nor read from beyond the end."""
    for count in (3, 1 << 31, (1 << 32) - 1):
        data = bytearray(assemble(b"", {256: (4, [5]), 257: (4, [5]), 258: (3, [8, 8, 8])}))
        place = data.index((258).to_bytes(2, "little") + b"\3\0") + 4
        data[place : place + 8] = count.to_bytes(4, "little") + (len(data) - 2).to_bytes(4, "little")
        with pytest.raises(tiff.TiffError, match=f"{count:,} values of tag 258"):
            tiff.read(bytes(data))


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("big", [False, True])
def test_the_directory_from_the_file_alone(tmp_path, order, big):
    path = written(tmp_path, tiff_bytes(noise(4), 1, order=order, big=big, extra=[0, 2, 1], tags=GEO))
    found = tiff.read_file(path)
    assert found == tiff.read(path.read_bytes())
    assert (found.height, found.width, found.samples, found.bits) == (70, 90, 4, (8, 8, 8, 8))
    assert (found.photometric, found.planar, found.orientation, found.extra) == (1, 1, 1, (0, 2, 1))
    assert found.values[tiff.PIXEL_SCALE] == (0.5, 0.5, 0)
    assert found.values[tiff.TIEPOINT] == (0, 0, 0, 500000, 4600000, 0)
    assert found.texts[tiff.GEO_TEXT] == "WGS 84 / UTM zone 31N|"
    for broken in (b"", b"II", b"II*\0", b"\x89PNG\r\n"):
        with pytest.raises(tiff.TiffError):
            tiff.read_file(written(tmp_path, broken))


@pytest.mark.parametrize(("depth", "planar", "most"), [(8, 1, 2), (16, 1, 2.5), (16, 2, 3)])
def test_a_large_tiff_is_not_copied(tmp_path, depth, planar, most):
    """With a directory in front of OpenCV's there was a second copy of the file: 1.2 GB of a large scene."""
    pixels = noise(3, depth, size=(800, 900))
    path = written(tmp_path, tiff_bytes(pixels, 1, planar=planar, rows=64))
    read_image(path)
    tracemalloc.start()
    try:
        assert read_image(path).nbytes == pixels.size
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # The file, the image; of 16 bits also what becomes of it, or a band that is read as three.
    assert peak < 1.1 * most * pixels.nbytes


def test_a_name_that_is_no_text_is_refused(tmp_path):
    """As an archive of Windows holds it; TensorBoard and the result files would fail on it hours later."""
    (tmp_path / os.fsdecode(b"Z\xfcrich.png")).write_bytes(b"")
    with pytest.raises(ImageError, match=r"the name of 'Z\\udcfcrich.png' is not UTF-8; rename the file"):
        images.find_images(tmp_path)


def test_a_strip_that_says_more_bytes_than_it_needs_is_whole(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (33, 57, 3), np.uint8)
    counts = {279: (4, [pixels.nbytes + 3000])}
    (tmp_path / "a.tif").write_bytes(tiff_bytes(pixels, 2, tags=counts))
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), pixels)
    (tmp_path / "a.tif").write_bytes(tiff_bytes(pixels, 2, tags={273: (4, [5000]), **counts}))
    with pytest.raises(ImageError, match="the image is cut off"):
        read_image(tmp_path / "a.tif")


@pytest.mark.parametrize("value", [np.nan, np.inf, 1.0])
@pytest.mark.parametrize("tag", [256, 258, 274, 34735])
def test_a_number_that_is_not_whole_is_a_damaged_file(tmp_path, tag, value):
    path = tmp_path / "a.tif"
    path.write_bytes(tiff_bytes(np.zeros((4, 4, 3), np.uint8), 2, tags={tag: (12, [value])}))
    with pytest.raises(ImageError, match=f"a damaged TIFF, tag {tag} holds fractions"):
        read_image(path)
