"""The page of a run: whole HTML that fetches nothing, true numbers, the right pixels, no training's end."""

import base64
import json
import re
import subprocess
import sys
from html.parser import HTMLParser

import cv2
import numpy as np
import pytest

from rgfl import page, page_curves, page_pictures
from rgfl.boxes import to_quads
from rgfl.chart import BOTTOM, HEIGHT, TOP, Line, chart, nice_ticks, number, smoothed, thinned
from rgfl.dataset import Picture
from rgfl.detections import Detections
from rgfl.dota.average_precision import evaluate_detections
from rgfl.dota.images import ImageError
from rgfl.dota.labels import Objects
from rgfl.nn.parts import PARTS
from rgfl.recipes import RECIPES

CLASSES = ("plane", "a<b>&'c'")  # a class file may hold any word


class Parsed(HTMLParser):
    """Fails on tags that do not close in order; keeps tags with their attributes, and the text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.text = [], [], ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.handle_startendtag(tag, attributes)
        if tag not in ("meta", "link", "input"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def count(self, tag, style):
        return sum(tag == name and style in (found.get("class") or "").split() for name, found in self.tags)


def rows(*values):
    table = np.array(values, np.float32).reshape(-1, 6)  # cx cy w h label score
    boxes = np.column_stack([table[:, :4], np.zeros(len(table), np.float32)])
    return boxes, table[:, 4].astype(np.int32), table[:, 5]


def labelled(*values):
    boxes, labels, difficult = rows(*values)
    return Objects(to_quads(boxes.astype(np.float64)).reshape(-1, 8), labels, difficult.astype(np.int32))


def detected(*values):
    boxes, labels, scores = rows(*values)
    return Detections(boxes, scores, labels)


def evaluation(folder, truth, found, size=(300, 400), step=20):
    """Of images whose every labelled object is a red rectangle on grey."""
    folder.mkdir(exist_ok=True)
    pictures = []
    for name, objects in truth.items():
        image = np.full((*size, 3), 90, np.uint8)
        cv2.fillPoly(image, list(np.round(objects.quads.reshape(-1, 4, 2)).astype(int)), (20, 20, 220))
        assert cv2.imwrite(str(folder / f"{name}.png"), image)
        pictures.append(Picture(name, folder / f"{name}.png", *size, objects))
    return page_pictures.Evaluation(step, evaluate_detections(found, truth, CLASSES), pictures, found)


@pytest.fixture
def one(tmp_path):
    """One image: a plane found, a large one missed, a ship taken for a plane, a box on nothing."""
    truth = {
        "i<1>": labelled((60, 60, 40, 20, 0, 0), (250, 200, 90, 60, 0, 0), (60, 200, 40, 20, 1, 0)),
        "empty": labelled(),
    }
    found = {
        "i<1>": detected(
            (61, 60, 40, 20, 0, 0.9), (60, 201, 40, 20, 0, 0.8), (350, 40, 30, 30, 1, 0.7),
            (350, 100, 30, 30, 1, 0.1),
        )
    }  # fmt: skip
    return evaluation(tmp_path / "images", truth, found)


def make_log(run, steps=40, evaluations=(10, 20), **changes):
    """A run of 40 steps of 10 an epoch, logged every step, whose second evaluation is the best."""
    run.mkdir(exist_ok=True)
    recipe = RECIPES["gfl_lite"]().replace(epochs=8, **changes).result_fields()
    records = [{"kind": "run", "step": 0, "data": "0123456789ab", "device": "CPU", **recipe, "time": 1e9}]
    for step in range(1, steps + 1):
        losses = {"loss": 30 / step, "loss_cls": 10 / step, "loss_box": 20 / step}
        timing = {"step_s": 2.0, "data_wait_s": 0.1, "time": 1e9 + 2 * step}
        records.append(
            {
                "kind": "step",
                "step": step,
                "epoch": step / 10,
                "lr": 1e-3,
                **losses,
                "grad_norm": 3.0,
                **timing,
            }
        )
        if step in evaluations:
            values = {"ap50": 0.02 * step, "ap75": 0.01 * step, "map": 0.0123 * step, "images": 2}
            by_class = {"classes": dict.fromkeys(CLASSES, 0.02 * step)}
            records.append({"kind": "eval", "step": step, **values, **by_class, "time": 1e9 + 2 * step})
    (run / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return records


def change_log(run, kind, **fields):
    """Write the log anew, with these fields in the records of a kind."""
    log = [record | fields if record["kind"] == kind else record for record in page.read_log(run)]
    (run / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in log))


def test_an_image_of_another_size_than_its_labels_is_not_drawn(one):
    """A window of it would show other pixels than the boxes belong to."""
    assert cv2.imwrite(str(one.pictures[0].path), np.zeros((400, 300, 3), np.uint8))
    with pytest.raises(ImageError, match=r"its header says 300 × 400 .*, its pixels are 400 × 300"):
        page_pictures.pictures_and_mistakes(one)


# ---------------------------------------------------------------------------------------------- the page


def test_it_is_whole_html_that_fetches_nothing_and_runs_nothing(tmp_path, one):
    make_log(tmp_path)
    text = page.write(tmp_path, one).read_text()
    parsed = Parsed(text)
    assert not {tag for tag, _ in parsed.tags} & {"script", "iframe", "object", "img"}
    assert "default-src 'none'" in text
    fetched = [found.get(key) for _, found in parsed.tags for key in ("href", "src") if key in found]
    assert len(fetched) > 3
    assert all(address.startswith("data:") for address in fetched)
    assert "://" not in text
    assert [path.name for path in tmp_path.glob("*page*")] == ["page.html"]  # and nothing half-written


def test_names_of_classes_and_images_are_text(tmp_path, one):
    make_log(tmp_path)
    parsed = Parsed(page.write(tmp_path, one).read_text())
    assert not {"b>", "1"} & {tag for tag, _ in parsed.tags}
    assert "i<1>: 1 of 3 objects found, 2 wrong detections" in parsed.text
    assert "a<b>&'c'" in parsed.text


def test_what_the_run_is(tmp_path, monkeypatch):
    monkeypatch.setattr(PARTS, "neck", Parsed)
    make_log(tmp_path, lr=0.5)
    text = Parsed(page.write(tmp_path).read_text()).text
    assert "50%" in text  # 40 steps of 8 epochs of 10
    assert "step 40 of 80" in text
    assert "lr 0.5 0.001" in text
    assert "epochs 8 60" in text
    assert "momentum" in text  # the whole recipe
    assert f"neck{__name__}.Parsed" in text
    assert "momentum 0.9" not in text  # which it did not change
    assert "24.6" in text  # the best mAP
    assert "at epoch 2" in text
    assert "80 s" in text  # trained, and as much is left
    assert "80 s left" in text


def test_numbers_by_class_are_those_of_the_result(tmp_path, one):
    make_log(tmp_path)
    text = page.write(tmp_path, one).read_text()
    table = text[text.index("<table>") : text.index("</table>")]
    shown = [re.findall(r">([^<>]+)</(?:td|span)>", row) for row in table.split("<tr>")]
    plane = next(row for row in shown if row and row[0] == "plane")
    result = one.result
    values = (result.ap[0, 0], result.ap[0, 5], result.ap[0].mean())
    assert 0 < values[0] < 1
    assert plane == ["plane", "2", *(f"{100 * value:.1f}" for value in values)]
    assert shown[-1][:2] == ["all", "3"]
    assert shown[-1][-1] == f"{100 * result.map:.1f}"


def test_objects_of_train_are_a_column_where_the_log_has_them(tmp_path):
    make_log(tmp_path)
    assert "train objects" not in page.write(tmp_path).read_text()
    change_log(tmp_path, "eval", objects=dict(zip(CLASSES, (2, 1), strict=True)))
    change_log(tmp_path, "run", train_objects=dict(zip(CLASSES, (70, 5), strict=True)))
    text = page.write(tmp_path).read_text()
    assert re.search(r">train objects</th><th[^>]*>objects</th>", text)
    shown = [re.findall(r'class="n">(\d+)</td>', row)[:2] for row in text.split("<tr>")]
    assert [row for row in shown if row] == [["70", "2"], ["5", "1"], ["75", "3"]]


def test_the_count_of_images_is_text(tmp_path):
    make_log(tmp_path)
    change_log(tmp_path, "eval", images="<script>")
    text = page.write(tmp_path).read_text()
    assert text.count("&lt;script&gt;") == 3  # of the best, of the data and of the table
    assert "<script" not in text


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("eval", {"map": "high"}),
        ("eval", {"classes": [1]}),
        ("run", {"total": "x"}),
        ("run", {"recipe": [1]}),
        ("eval", {"objects": {"plane": "<script>"}}),
        ("run", {"train_objects": {"plane": "<script>"}}),
        ("run", {"train_objects": 5}),
        ("step", {"loss": "x"}),
        ("step", {"step": 10**400}),
        ("step", {"time": 1e300}),
    ],
)
def test_wrong_kinds_of_values_are_one_line(tmp_path, capsys, kind, fields):
    make_log(tmp_path)
    change_log(tmp_path, kind, **fields)
    assert page.main([str(tmp_path)]) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"page: error: {tmp_path / 'log.jsonl'}: not what rgfl.train writes (")
    assert message.count("\n") == 1


def test_which_score_to_take(tmp_path):
    """Two planes of three found with .9 and .6, a wrong detection between them, one below."""
    truth = {"i": labelled((60, 60, 40, 20, 0, 0), (160, 60, 40, 20, 0, 0), (260, 60, 40, 20, 0, 0))}
    found = {
        "i": detected(
            (60, 60, 40, 20, 0, 0.9), (60, 200, 40, 20, 0, 0.7), (161, 60, 40, 20, 0, 0.6),
            (160, 200, 40, 20, 0, 0.2),
        )
    }  # fmt: skip
    result = evaluation(tmp_path / "images", truth, found).result
    parsed = Parsed(page_curves.scores_and_curves(result))
    assert "F1 at 0.21 66.7 precision 66.7 recall 66.7" in parsed.text  # the first that drops the last one
    assert "plane0.6066.766.766.7" in parsed.text  # its best score is that of a detection
    assert "plane AP50 54.5 AP75 54.5" in parsed.text  # 4 recalls of precision 1, 3 of 2/3: 6/11
    assert parsed.count("figure", "chart") == 2  # the class without objects has no curve

    [envelope, _] = re.findall(
        r'polyline class="c." points="([^"]*)"', page_curves.scores_and_curves(result)
    )[3:]
    levels = [round((HEIGHT - BOTTOM - float(point.split(",")[1])) / (HEIGHT - BOTTOM - TOP), 2)
              for point in envelope.split()]  # fmt: skip
    assert levels == [1.0] * 34 + [0.67] * 33 + [0.0] * 34


def test_where_nothing_is_right_no_score_is_recommended(tmp_path):
    truth = {"i": labelled((60, 60, 40, 20, 0, 0))}
    found = {"i": detected((200, 200, 40, 20, 0, 0.9))}
    assert page_curves.scores_and_curves(evaluation(tmp_path / "images", truth, found).result) == ""


def test_logs_of_the_first_kind_show_what_they_hold(tmp_path):
    """Without AP75 by class, objects, the total of steps; with infinities and a line cut by a kill."""
    make_log(tmp_path)
    with open(tmp_path / "log.jsonl", "a") as file:
        file.write('{"kind": "step", "step": 41, "epoch": 4.1, "loss": Infinity, "grad_norm": NaN}\n{"kin')
    text = page.write(tmp_path).read_text()
    Parsed(text)
    points = " ".join(re.findall(r'points="([^"]+)"', text))
    assert not re.search("nan|inf", points)
    assert "step 41 of 80" in text


def test_lines_of_a_damaged_log_are_passed_over(tmp_path):
    make_log(tmp_path)
    whole = page.read_log(tmp_path)
    with open(tmp_path / "log.jsonl", "ab") as file:
        file.write(b'12\n\xff\n{"kind": "x"}\n{"kind": "step"}\n{"kind": "eval", "step": 40}\n{"root": "\xc3')
    assert page.read_log(tmp_path) == whole
    Parsed(page.write(tmp_path).read_text())


def test_before_the_first_step_there_is_a_page_too(tmp_path):
    make_log(tmp_path, steps=0, evaluations=())
    parsed = Parsed(page.write(tmp_path).read_text())
    assert "not evaluated yet" in parsed.text
    assert "No step is logged yet" in parsed.text


# ---------------------------------------------------------------------------------- pictures and mistakes


def test_boxes_have_the_colour_of_their_fate(one):
    text = page_pictures.pictures_and_mistakes(one)
    parsed = Parsed(text[: text.index("</section>")] + "</section>")  # the samples
    counted = {style: parsed.count("path", style) for style in "tmxrwi"}
    assert counted == {"t": 1, "m": 2, "x": 0, "r": 1, "w": 2, "i": 0}  # the score of .1 is not drawn
    assert "labelled: plane, found with 0.90" in parsed.text
    assert "detected: plane 0.80, confused, IoU 0.90" in parsed.text


def crops(text, title):
    """(caption, pixels, viewBox) of each crop under a heading."""
    part = text[text.index(f"<h3>{title}</h3>") :]
    part = part[: part.find("<h3>", 4)]
    found = []
    for figure in part.split("<figure>")[1:]:
        data = base64.b64decode(re.search(r'base64,([^"]+)"', figure)[1])
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
        box = [int(value) for value in re.search(r'viewBox="([^"]+)"', figure)[1].split()]
        found.append((Parsed(figure[figure.index("<figcaption>") :].split("</figure>")[0]).text, image, box))
    return found


def test_mistakes_say_what_was_expected_and_what_came_over_the_right_pixels(one):
    text = page_pictures.pictures_and_mistakes(one)
    [(missed, pixels, (x, y, width, height))] = crops(text, "Missed")  # the ship is told as a confusion
    assert missed == "missedplane, 90 × 60 pxnothingi<1> at 250, 200"
    assert (x, y, width, height) == (151, 101, 198, 198)
    scale = pixels.shape[1] / width
    place = (int((200 - y) * scale), int((250 - x) * scale))
    assert np.abs(pixels[place].astype(int) - [220, 20, 20]).max() < 12  # the object is red
    assert np.abs(pixels[2, 2].astype(int) - 90).max() < 12

    [(confused, *_)] = crops(text, "Taken for another class")
    assert confused == "confused · IoU 0.90a<b>&'c'plane 0.80i<1> at 60, 201"
    first, second = crops(text, "Found where nothing is, or twice")
    assert first[0] == "backgroundnothing herea<b>&'c' 0.70i<1> at 350, 40"
    assert second[0].startswith("backgroundnothing herea<b>&'c' 0.10")
    assert crops(text, "Found, but placed badly") == []


def test_found_by_size(one):
    text = page_pictures.pictures_and_mistakes(one)
    table = text[text.index("by their size") :]
    table = table[table.index("<tbody>") : table.index("</table>")]
    # 40 × 20 twice, one of them found with .9; 90 × 60 missed
    assert re.findall(r">([^<>]+)</td>", table) == [
        "16 … 32",
        "2",
        "50.0",
        "50.0",
        "64 … 128",
        "1",
        "0.0",
        "0.0",
    ]


def test_confusions_are_a_matrix_of_the_classes_that_are_confused(one):
    text = page_pictures.pictures_and_mistakes(one)
    table = text[text.index("detected as another") :]
    table = table[table.index("<thead>") : table.index("</table>")]
    assert re.findall(r">([^<>]+)</t[hd]>", table) == ["plane", "a&lt;b&gt;&amp;&#x27;c&#x27;", "1"]


def test_a_crowd_of_mistakes_does_not_fill_the_page(tmp_path):
    truth = {f"P{i}": labelled(*((40 + 40 * k, 40, 30, 20, 0, 0) for k in range(9))) for i in range(9)}
    found = {name: detected(*((40 + 40 * k, 200, 30, 20, 0, 0.5) for k in range(9))) for name in truth}
    text = page_pictures.pictures_and_mistakes(evaluation(tmp_path, truth, found))
    for title in ("Missed", "Found where nothing is, or twice"):
        images = [caption.split("P")[-1][0] for caption, *_ in crops(text, title)]
        assert len(images) == page_pictures.MISTAKES
        assert max(images.count(image) for image in images) == page_pictures.PER_IMAGE
    assert text.count("<figure>") == page_pictures.PICTURES + 2 * page_pictures.MISTAKES


def test_of_a_large_scene_the_window_with_most_objects_is_shown(tmp_path):
    crowd = [(2300 + 30 * k, 1700, 20, 10, 0, 0) for k in range(10)]
    scene = evaluation(tmp_path, {"P1": labelled((100, 100, 20, 10, 0, 0), *crowd)}, {}, size=(2000, 3000))
    text = page_pictures.pictures_and_mistakes(scene)
    x, y, width, height = map(int, re.search(r'viewBox="([^"]+)"', text)[1].split())
    assert (width, height) == (page_pictures.SAMPLE_SIDE, page_pictures.SAMPLE_SIDE)
    assert x <= 2290 < 2580 <= x + width
    assert y <= 1690 < 1710 <= y + height <= 2000


def test_in_a_crowd_what_is_wrong_is_drawn_before_what_is_right(one, monkeypatch):
    monkeypatch.setattr(page_pictures, "BOXES", 4)
    text = page_pictures.pictures_and_mistakes(one)
    parsed = Parsed(text[: text.index("</section>")] + "</section>")
    assert {style: parsed.count("path", style) for style in "tmrw"} == {"t": 0, "m": 2, "r": 0, "w": 2}


def test_pictures_stay_when_the_curves_are_drawn_anew_and_go_with_their_run(tmp_path, one):
    make_log(tmp_path)
    page.write(tmp_path, one)
    make_log(tmp_path, steps=60)
    text = page.write(tmp_path).read_text()
    assert "step 60 of 80" in text
    assert "<h2>Worst mistakes</h2>" in text
    assert page.write(tmp_path).read_text() == text
    log = tmp_path / "log.jsonl"
    log.write_text(log.read_text().replace('"time": 1000000000.0', '"time": 2000000000.0'))
    assert "<h2>Worst mistakes</h2>" not in page.write(tmp_path).read_text()


@pytest.mark.parametrize(
    "foreign",
    [
        '<meta http-equiv="refresh" content="0;url=http://example.com">',
        '<A href="http://example.com">all pictures</A>',
        '<svg><a href="http://example.com"><text>all pictures</text></a></svg>',
        "<style>body{display:none}</style>",
        "<form action=http://example.com><input name=password></form>",
    ],
)
def test_pictures_with_elements_that_are_not_ours_do_not_stay(tmp_path, one, foreign):
    make_log(tmp_path)
    path = page.write(tmp_path, one)
    path.write_text(path.read_text().replace("<h2>Pictures</h2>", f"<h2>Pictures</h2>{foreign}"))
    text = page.write(tmp_path).read_text()
    assert "<h2>Pictures</h2>" not in text
    assert "form-action 'none'; base-uri 'none'" in text


def test_a_page_of_marks_is_read_at_once(tmp_path):
    """Of these, 32 KB took minutes."""
    make_log(tmp_path)
    (tmp_path / "page.html").write_text("<!--seen 1-->\nx\n" * 100_000)
    assert "<!--seen" not in page.write(tmp_path).read_text()


def test_a_norm_that_overflowed_is_a_gap(tmp_path):
    make_log(tmp_path)
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    first = next(index for index, line in enumerate(lines) if '"step_s"' in line)
    record = json.loads(lines[first])
    assert "grad_norm" in record
    lines[first] = json.dumps({**record, "grad_norm": None})
    (tmp_path / "log.jsonl").write_text("\n".join(lines) + "\n")
    text = page.write(tmp_path).read_text()
    assert "gradient norm" in text
    assert "nan" not in text.lower()


def test_what_cannot_be_drawn_is_told_in_a_line_and_leaves_the_page(tmp_path, one):
    make_log(tmp_path)
    told = page.draw(tmp_path, one)
    assert re.fullmatch(rf"page: {tmp_path}/page.html \(\d+\.\d s\)", told)
    before = (tmp_path / "page.html").read_text()
    one.pictures[0].path.unlink()
    told = page.draw(tmp_path, one)
    assert told.startswith(f"page not drawn: ImageError: {one.pictures[0].path}: cannot be read")
    assert "\n" not in told
    assert (tmp_path / "page.html").read_text() == before


# ---------------------------------------------------------------------------------------------- curves


def test_smoothing_keeps_a_level_and_the_ends():
    np.testing.assert_allclose(smoothed(np.full(9, 3.0), 2.0), 3.0)
    line = smoothed(np.arange(200.0), 4.0)
    np.testing.assert_allclose(line[20:-20], np.arange(20.0, 180.0))
    assert len(smoothed(np.arange(3.0), 50.0)) == 3
    rng = np.random.default_rng(0)
    assert smoothed(rng.normal(0, 1, 2000), 20.0).std() < 0.25


def test_thinning_keeps_peaks_and_ends():
    y = np.zeros(10_000)
    y[[4321, 8765]] = 5, -5
    x, y = thinned(np.arange(10_000.0), y)
    assert len(x) <= 402
    assert {4321, 8765, 0, 9999} <= set(x.tolist())
    assert (y.min(), y.max()) == (-5, 5)
    assert (np.diff(x) > 0).all()


@pytest.mark.parametrize(
    ("low", "high", "least", "ticks"),
    [
        (0, 1, 0, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (3, 97, 0, [20, 40, 60, 80]),
        (1, 3, 1, [1, 2, 3]),
        (0.2, 0.3, 0, [0.2, 0.22, 0.24, 0.26, 0.28, 0.3]),
        (7, 7, 0, [7]),
    ],
)
def test_ticks(low, high, least, ticks):
    assert nice_ticks(low, high, 5, least) == pytest.approx(ticks)


def test_numbers_for_a_person():
    shown = [number(value) for value in (0, 5.0, 0.12345, 1234.0, 90_000, 0.0005, 1e-5, 123.456)]
    assert shown == ["0", "5", "0.123", "1234", "90k", "5e-4", "1e-5", "123"]


def test_a_spike_is_cut_at_the_edge_and_does_not_flatten_the_rest():
    y = np.ones(300) + 0.01 * np.sin(np.arange(300.0))
    y[100] = 1e6
    text = chart("loss", [Line("loss", 0, np.arange(300.0), y)])
    raw = np.array(
        [pair.split(",") for pair in re.search(r'raw[^>]*points="([^"]+)"', text)[1].split()], float
    )
    assert raw[:, 1].min() >= TOP
    assert raw[:, 1].max() <= HEIGHT
    assert "nothing yet" in chart("loss", [Line("loss", 0, np.arange(2.0), np.full(2, np.nan))])
    assert "nothing yet" in chart("loss", [Line("loss", 0, np.arange(2.0), np.zeros(2))], log=True)


# ---------------------------------------------------------------------------------------- command line


def test_the_command_evaluates_and_draws(tmp_path, tiny_checkpoint, tiny_scenes, capsys):
    run = tmp_path / "run"
    make_log(run, test_size=128, test_stride=64)
    (run / "best.pt").write_bytes(tiny_checkpoint.read_bytes())
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        (tmp_path / split / "images").symlink_to(tiny_scenes.images)
        (tmp_path / split / "labelTxt").symlink_to(tiny_scenes.labels)
    assert page.main([str(run)]) == 0
    assert "<h2>Pictures</h2>" not in (run / "page.html").read_text()
    change_log(run, "eval", images=4)
    assert page.main([str(run), "--data", str(tmp_path), "--images", "2", "--device", "cpu"]) == 0
    printed = capsys.readouterr()
    assert printed.out == f"{run / 'page.html'}\n" * 2
    assert " 2/2 " in printed.err  # a bar of images, each of several tiles
    parsed = Parsed((run / "page.html").read_text())
    assert "on 2 and 4 full validation images" in parsed.text
    assert re.findall(r"(P\d+)(?:, [^:]*)?: \d+ of \d+ objects", parsed.text) == ["P0001", "P0004"]  # evenly
    assert parsed.count("path", "r") > 0


def test_a_folder_without_a_log_is_told_in_one_line(tmp_path, capsys):
    assert page.main([str(tmp_path)]) == 2
    assert capsys.readouterr().err == (
        f"page: error: {tmp_path / 'log.jsonl'}: no such file; "
        "expected the folder of a training (its --out)\n"
    )
    pytest.importorskip("torch", reason="needs PyTorch: pip install 'rgfl[train]'")
    make_log(tmp_path)
    assert page.main([str(tmp_path), "--data", str(tmp_path)]) == 2
    assert "best.pt: cannot be read" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_to_is_told_before_an_evaluation(tmp_path, capsys, monkeypatch):
    make_log(tmp_path)
    monkeypatch.setattr("os.access", lambda *_: False)
    monkeypatch.setattr(page, "look", lambda *_: pytest.fail("evaluated first"))
    assert page.main([str(tmp_path), "--data", str(tmp_path)]) == 2
    assert capsys.readouterr().err == (
        f"page: error: {tmp_path / 'page.html'}: the folder cannot be written to\n"
    )


def test_ctrl_c_is_one_line(tmp_path, capsys, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    make_log(tmp_path)
    monkeypatch.setattr(page, "look", interrupted)
    assert page.main([str(tmp_path), "--data", str(tmp_path)]) == 130
    assert capsys.readouterr().err == "\npage: interrupted; the page is as it was\n"
    assert not (tmp_path / "page.html").exists()


def test_drawing_from_the_log_needs_no_torch(tmp_path):
    make_log(tmp_path)
    code = (
        "import sys\nfrom rgfl.page import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        f"assert main([{str(tmp_path)!r}]) == 0\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
