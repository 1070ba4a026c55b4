"""TIFF as GDAL writes it: what the samples are is read from the directory, and never guessed wrongly."""

import itertools
import os
import tracemalloc
import warnings
from pathlib import Path

import cv2
import numpy as np
import pytest
import rasterio
from PIL import Image
from rasterio.enums import ColorInterp, MaskFlags
from tiff_bytes import tiff_bytes

from rgfl.dota import georeference, images, rasters
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
    for order, extra, tile in itertools.product("<>", (1, 2), (0, 32)):
        data = tiff_bytes(pixels, 1, order=order, extra=[extra], tile=tile)
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
            r"8 bands, and which are colours is not said; .* choose three: .*\(such as gdal_translate -b 3",
        ),
        (np.zeros((40, 50, 5), np.uint8), "5 bands, .*; expected 1, 3 or 4"),
        (
            np.zeros((40, 50, 2), np.uint16),
            r"2 bands, .*; expected 1, 3 or 4; choose one \(gdal_translate -b 1 IN",
        ),
        (
            np.zeros((40, 50, 1), np.int16),
            r"expected 8 or 16 bit pixels, got int16; convert it to 8 bit first \(gdal_translate -ot",
        ),
        (np.zeros((40, 50, 3), np.int8), "expected 8 or 16 bit pixels, got int8"),
        (np.zeros((40, 50, 1), np.float32), "expected 8 or 16 bit pixels, got float32"),
        (np.zeros((40, 50, 1), np.uint32), "expected 8 or 16 bit pixels, got uint32; convert it"),
    ],
)
def test_what_is_no_picture_is_told_with_the_remedy(tmp_path, capfd, pixels, message):
    for order, big in itertools.product("<>", (False, True)):
        path = written(tmp_path, tiff_bytes(pixels, 1, order=order, big=big, tags=GEO))
        for use in (read_image, images.image_size):  # whose pixels training first reads epochs later
            with pytest.raises(ImageError, match=message) as error:
                use(path)
            assert str(error.value).startswith(f"{path}: ")
    assert capfd.readouterr().err == ""  # the libraries print lines of their own


def test_a_png_without_a_header_is_one_line(tmp_path):
    with pytest.raises(ImageError, match=r"a\.png: a damaged PNG file"):
        read_image(written(tmp_path, b"\x89PNG\r\n\x1a\n" + bytes(4) + b"IEND" + bytes(4), "a.png"))


@pytest.mark.parametrize("height", [1, 64, 65, 200])
def test_every_row_of_a_png_is_rgb(tmp_path, height):
    pixels = noise(3, size=(height, 7))
    data = cv2.imencode(".png", pixels[:, :, ::-1])[1].tobytes()
    np.testing.assert_array_equal(read_image(written(tmp_path, data, "a.png")), pixels)


def test_geotiff_prints_nothing(tmp_path, capfd):
    """OpenCV warned of each of their tags, for every tile that is read in training."""
    for samples in (1, 3, 4):
        read_image(written(tmp_path, tiff_bytes(noise(samples, 16), 1, tags=GEO)))
    assert capfd.readouterr().err == ""


# ------------------------------------------------------------------------------------ as GDAL writes it


def gdal(path, pixels, names=(), colours=(), band_tags=None, **profile):
    """A raster of pixels (H, W, bands) by GDAL itself."""
    height, width, count = pixels.shape
    profile = {"driver": "GTiff", "dtype": pixels.dtype.name, "photometric": None, **profile}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        with rasterio.open(path, "w", height=height, width=width, count=count, **profile) as file:
            file.write(np.moveaxis(pixels, 2, 0))
            if colours:
                file.colorinterp = [ColorInterp[name] for name in colours]
            for band, name in enumerate(names, 1):
                file.set_band_description(band, name)
    return path


@pytest.mark.parametrize(
    "compress", ["lzw", "deflate", "packbits", "zstd", "lzma", "lerc", "ccittfax4", "webp", "jpeg"]
)
@pytest.mark.parametrize("tiled", [False, True])
def test_every_compression_is_read(tmp_path, compress, tiled):
    """OpenCV gave black pixels, and no error, for those that it lacks."""
    pixels = noise(3, size=(96, 80))
    options = {}
    if compress == "ccittfax4":
        pixels, options = noise(1, size=(96, 80)) & 1, {"nbits": 1}
    if compress == "webp":
        options = {"webp_lossless": True}
    if compress == "jpeg":
        pixels = np.full((96, 80, 3), (200, 100, 50), np.uint8)
    tiles = {"tiled": True, "blockxsize": 32, "blockysize": 32} if tiled else {}
    path = gdal(tmp_path / "a.tif", pixels, compress=compress, **tiles, **options)
    expected = pixels * 255 if compress == "ccittfax4" else pixels
    np.testing.assert_allclose(read_image(path), seen(expected), atol=3 if compress == "jpeg" else 0)


def test_a_compression_that_nothing_reads_is_told(tmp_path):
    data = tiff_bytes(noise(3), 2, tags={259: (3, [33003])})
    with pytest.raises(ImageError, match=r"a.tif: GDAL cannot read it: .*missing codec of code 33003"):
        read_image(written(tmp_path, data, "a.tif"))


@pytest.mark.parametrize("compress", ["lzw", "packbits"])
def test_damaged_pixels_are_told(tmp_path, compress):
    """OpenCV gave what it had, with no error."""
    data = bytearray(gdal(tmp_path / "a.tif", noise(3), compress=compress).read_bytes())
    data[len(data) // 2 : len(data) // 2 + 4000] = bytes(4000)
    with pytest.raises(ImageError, match="GDAL cannot read it"):
        read_image(written(tmp_path, bytes(data)))


def test_blocks_that_are_not_there_are_black(tmp_path):
    path = gdal(tmp_path / "a.tif", np.zeros((64, 64, 3), np.uint8), sparse_ok=True, tiled=True,
                blockxsize=32, blockysize=32, compress="deflate")  # fmt: skip
    assert not read_image(path).any()


@pytest.mark.parametrize("how", ["names", "interpretation"])
@pytest.mark.parametrize("count", [3, 4, 6])
def test_bands_that_are_named_come_in_the_order_of_colours(tmp_path, how, count):
    """Satellites deliver blue, green, red, near infrared; read as RGB, AP50 of ships fell from 87 to 72."""
    pixels = noise(count)
    order = ["Blue", "Green", "Red", "NIR", "SWIR", "Edge"][:count]
    if how == "names":
        path = gdal(tmp_path / "a.tif", pixels, names=order)
    else:
        called = [name.lower() if name in ("Blue", "Green", "Red") else "undefined" for name in order]
        path = gdal(tmp_path / "a.tif", pixels, colours=called)
    np.testing.assert_array_equal(read_image(path), pixels[:, :, 2::-1])


def test_a_palette_becomes_its_colours(tmp_path):
    pixels = noise(1) % 3
    path = tmp_path / "a.tif"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        profile = {"height": 70, "width": 90, "count": 1, "dtype": "uint8", "photometric": "palette"}
        with rasterio.open(path, "w", driver="GTiff", **profile) as file:
            file.write(pixels[:, :, 0], 1)
            file.write_colormap(1, {0: (9, 8, 7, 255), 1: (200, 0, 3, 255), 2: (1, 2, 3, 255)})
    colours = np.array([[9, 8, 7], [200, 0, 3], [1, 2, 3]], np.uint8)
    np.testing.assert_array_equal(read_image(path), colours[pixels[:, :, 0]])


@pytest.mark.parametrize("bits", [1, 2, 4, 9, 11, 12, 15])
def test_bits_that_the_file_declares_fill_the_range(tmp_path, bits):
    pixels = (noise(3, 16) >> (16 - bits)).astype(np.uint16 if bits > 8 else np.uint8)
    path = gdal(tmp_path / "a.tif", pixels, nbits=bits)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image = read_image(path)
    expected = pixels >> (bits - 8) if bits > 8 else pixels.astype(int) * 255 // ((1 << bits) - 1)
    np.testing.assert_array_equal(image, expected)


@pytest.mark.parametrize(("depth", "nodata"), [(8, 255), (8, 8), (16, 65535)])
def test_what_holds_no_data_is_black(tmp_path, depth, nodata):
    pixels = np.minimum(noise(3, depth), nodata - 1) | 1
    pixels[:20] = nodata
    pixels[30, 30] = (nodata, nodata, 1)  # not in every band
    path = gdal(tmp_path / "a.tif", pixels, nodata=nodata)
    expected = pixels.copy()
    expected[:20] = 0
    np.testing.assert_array_equal(read_image(path), seen(expected))


def test_jpeg_2000_and_mosaics_are_read(tmp_path):
    (tmp_path / "images").mkdir()
    pixels = noise(3)
    path = gdal(tmp_path / "images/a.jp2", pixels, driver="JP2OpenJPEG", quality=100, reversible=True)
    assert images.find_images(tmp_path / "images") == {"a": path}
    np.testing.assert_array_equal(read_image(path), pixels)
    assert images.image_size(path) == (70, 90)
    bands = "".join(
        f'<VRTRasterBand dataType="Byte" band="{band}"><SimpleSource><SourceFilename relativeToVRT="1">'
        f"images/a.jp2</SourceFilename><SourceBand>{band}</SourceBand></SimpleSource></VRTRasterBand>"
        for band in (1, 2, 3)
    )
    text = f'<VRTDataset rasterXSize="90" rasterYSize="70">{bands}</VRTDataset>'
    np.testing.assert_array_equal(read_image(written(tmp_path, text.encode(), "a.vrt")), pixels)
    for use in (read_image, images.image_size):  # such as a data set that was downloaded
        with pytest.raises(ImageError, match=r"b.png: a VRT file, which may name other .* \.vrt, got \.png"):
            use(written(tmp_path, text.encode(), "b.png"))


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("prefix", [b"", b"Exif\0\0", b"Exif\0\0\0"])
def test_the_size_of_a_webp_with_exif_is_that_of_its_pixels_and_needs_none(
    tmp_path, monkeypatch, orientation, prefix
):
    pixels, exif = Image.fromarray(noise(3)), Image.Exif()
    exif[0x0112] = orientation
    path, block = tmp_path / "a.webp", exif.tobytes().removeprefix(b"Exif\0\0")
    pixels.save(path, exif=block)
    data = path.read_bytes()[8:].replace(b"EXIF" + len(block).to_bytes(4, "little") + block, b"")
    block = prefix + block
    data += b"EXIF" + len(block).to_bytes(4, "little") + block + b"\0" * (len(block) % 2)
    path.write_bytes(b"RIFF" + len(data).to_bytes(4, "little") + data)
    size = read_image(path).shape[:2]
    monkeypatch.setattr(images, "read_image", lambda _: pytest.fail("pixels were read"))
    assert images.image_size(path) == size


def test_what_a_disk_has_for_itself_is_no_folder_of_a_data_set(tmp_path):
    for name in ("lost+found", ".Trash", "train"):
        (tmp_path / name).mkdir()
    assert images.subfolders(tmp_path) == [tmp_path / "train"]


# ------------------------------------------------------------------------------------- fewer bits than 16


@pytest.mark.parametrize("planar", [1, 2])
def test_11_bits_in_16_are_warned_of_once(tmp_path, planar):
    dark = (noise(3, 16) >> 5).astype(np.uint16)
    first = written(tmp_path, tiff_bytes(dark, 1, planar=planar), "first.tif")
    second = written(tmp_path, tiff_bytes(dark, 1), "second.tif")
    with pytest.warns(ImageWarning, match=r"first.tif: nearly all .* 20.. or less: .*-scale 0 2047 0 255"):
        image = read_image(first)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_image(second)
    np.testing.assert_array_equal(image, seen(dark))  # as it is: no scale is guessed


def test_11_bits_in_a_png_are_warned_of(tmp_path):
    dark = (noise(3, 16) >> 5).astype(np.uint16)
    assert cv2.imwrite(str(tmp_path / "dark.png"), dark[:, :, ::-1])
    with pytest.warns(ImageWarning, match=r"dark.png: nearly all of its 16 bit pixels are 20.. or less"):
        image = read_image(tmp_path / "dark.png")
    np.testing.assert_array_equal(image, seen(dark))


@pytest.mark.parametrize("what", ["a hot pixel", "a white collar that holds no data", "a small cloud"])
def test_few_bright_pixels_do_not_hide_that_the_rest_is_dark(tmp_path, what):
    dark = (noise(3, 16, (400, 400)) >> 5).astype(np.uint16)
    nodata = None
    if what == "a hot pixel":
        dark[8, 8] = 65535
    elif what == "a small cloud":
        dark[100:110, 100:110] = 12000
    else:
        dark[:200], nodata = 65535, 65535
    with pytest.warns(ImageWarning, match="or less: 0…65535 becomes 0…255, so this image is dark"):
        read_image(gdal(tmp_path / "a.tif", dark, nodata=nodata))


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
        with pytest.raises(ImageError, match=r"scene.tif: GDAL cannot read it: .*copy or download it again"):
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


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # GDAL quotes what is no text
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
        try:
            assert read_image(path).dtype == np.uint8
        except ImageError as error:
            told = str(error)
            if told.count("\n") or not told.startswith(f"{path}: "):
                raise


@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize("planar", [1, 2])
@pytest.mark.parametrize("tile", [0, 32])
def test_a_large_tiff_takes_the_memory_of_its_image(tmp_path, monkeypatch, depth, planar, tile):
    """Of 16 bits too: strips become 8 bit one by one."""
    monkeypatch.setattr(rasters, "STRIP", 1 << 17)
    pixels = noise(3, depth, size=(800, 900))
    path = written(tmp_path, tiff_bytes(pixels, 1, planar=planar, rows=64, tile=tile))
    np.testing.assert_array_equal(read_image(path), seen(pixels))
    tracemalloc.start()
    try:
        assert read_image(path).nbytes == pixels.size
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1.5 * pixels.size


@pytest.mark.parametrize("name", [b"Z\xfcrich.png", b"\x1b[2J.png", b"a\nb.png", "a\x9b2J.png".encode()])
def test_a_name_that_is_no_text_is_refused(name, tmp_path):
    """As an archive of Windows holds it: TensorBoard and the result files would fail on it hours later; or
    as it would command a terminal."""
    path = tmp_path / os.fsdecode(name)
    path.write_bytes(b"")
    with pytest.raises(ImageError, match="is not UTF-8 or has control characters; rename the file") as told:
        images.find_images(tmp_path)
    assert ascii(path.name) in str(told.value)
    assert str(told.value).isprintable()


def test_what_is_no_file_is_no_image_but_a_link_that_leads_nowhere_is_not_passed_over(tmp_path):
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "device.png").symlink_to(os.devnull)
    (tmp_path / "gone.png").symlink_to("elsewhere/gone.png")
    assert list(images.find_images(tmp_path)) == ["gone"]


def test_a_folder_may_be_called_as_an_address_begins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("http:/127.0.0.1:9/a.tif", "file:/a.tif"):
        path = Path(name)
        path.parent.mkdir(parents=True)
        gdal(path.absolute(), noise(3), crs="EPSG:32631", transform=rasterio.Affine(1, 0, 5, 0, -1, 5))
        np.testing.assert_array_equal(read_image(path), noise(3))
        assert images.image_size(path) == (70, 90)
        assert georeference.find(path).code == "EPSG:32631"


def test_a_mask_beside_an_image_leads_nowhere(tmp_path):
    """GDAL opens it in any driver, also one that fetches from the network."""
    place = rasterio.Affine(1, 0, 5, 0, -1, 5)
    path, mask = gdal(tmp_path / "a.tif", noise(3), transform=place), tmp_path / "a.tif.msk"
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False), rasterio.open(path, "r+") as file:
        file.write_mask(True)
    np.testing.assert_array_equal(read_image(path), noise(3))
    with rasters.opened(path) as file:
        assert MaskFlags.per_dataset in file.mask_flag_enums[0]
    mask = mask.rename(tmp_path / "A.tif.Msk")
    with rasters.opened(path) as file:
        assert MaskFlags.per_dataset not in file.mask_flag_enums[0]
    mask.unlink()
    for ending in (".msk", ".MSK"):
        mask = Path(f"{path}{ending}")
        for make in (lambda: mask.write_text("<VRTDataset/>"), lambda: os.mkfifo(mask)):  # noqa: B023
            make()
            with pytest.raises(ImageError, match=rf"a.tif{ending} beside it is no TIFF .*; remove it"):
                read_image(path)
            mask.unlink()


def test_a_strip_that_says_more_bytes_than_it_needs_is_whole(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (33, 57, 3), np.uint8)
    counts = {279: (4, [pixels.nbytes + 3000])}
    (tmp_path / "a.tif").write_bytes(tiff_bytes(pixels, 2, tags=counts))
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), pixels)
    (tmp_path / "a.tif").write_bytes(tiff_bytes(pixels, 2, tags={273: (4, [5000]), **counts}))
    with pytest.raises(ImageError, match="GDAL cannot read it"):
        read_image(tmp_path / "a.tif")
