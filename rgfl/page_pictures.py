"""Pictures of an evaluation for rgfl/page.py: samples and the worst mistakes, as HTML.

The pixels are JPEG inside the page, the boxes SVG over them in pixels of the image, each with a title that
says what it is. What counts as a mistake is said in rgfl/dota/mistakes.py.
"""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from rgfl import boxes, geometry
from rgfl.dataset import Picture
from rgfl.detections import Detections
from rgfl.dota import mistakes
from rgfl.dota.average_precision import Result
from rgfl.dota.labels import quad_areas
from rgfl.dota.mistakes import Verdicts
from rgfl.evenly import evenly

PICTURES = 6  # samples, spread evenly over the validation images, the same at every evaluation
WHOLE = 1280  # pixels a side up to which an image is shown whole
SAMPLE_SIDE, CROP_SIDE = 768, 288  # pixels of the JPEGs; larger scenes show a window of the former
QUALITY = 80
MISTAKES = 8  # of each kind
PER_IMAGE = 3  # mistakes of one kind in one image: a strange image must not fill the page
SIZES = (8, 16, 32, 64, 128)  # √area in pixels: borders of the table of sizes
SHOWN = 0.3  # score from which on detections are drawn and counted
BOXES, NAMES = 1000, 14  # drawn and named in one picture at most; small boxes are not named


@dataclass(frozen=True)
class Evaluation:
    """One evaluation with what it looked at: `found` by the names of `pictures`."""

    step: int
    result: Result
    pictures: Sequence[Picture]
    found: Mapping[str, Detections]


@dataclass(frozen=True)
class _View:
    """A part of an image to show: x, y, width, height of the window in pixels; what to stress; the words."""

    image: str
    window: tuple[int, int, int, int]
    side: int  # of the JPEG
    detections: tuple[int, ...]  # to stress; with none of either everything is drawn alike
    objects: tuple[int, ...]
    words: str  # HTML


def pictures_and_mistakes(evaluation: Evaluation) -> str:
    """Two sections of the page: sample pictures, and the worst mistakes of each kind."""
    result, classes = evaluation.result, evaluation.result.classes
    truth = {picture.name: picture.objects for picture in evaluation.pictures}
    verdicts = mistakes.judge(evaluation.found, truth, classes, version=result.version)
    pictures = {picture.name: picture for picture in evaluation.pictures}
    samples = [_sample(picture, verdicts) for picture in evenly(evaluation.pictures, PICTURES)]
    images_D, images_G = verdicts.matching.images_D, verdicts.matching.images_G
    invented, misplaced, confused = (
        _varied(verdicts.false_positives(*fates), images_D)
        for fates in (
            (mistakes.BACKGROUND, mistakes.DUPLICATE),
            (mistakes.MISPLACED,),
            (mistakes.CONFUSED,),
        )
    )
    told = verdicts.about_D[misplaced + confused]  # objects that are seen there already
    missed = _varied([g for g in verdicts.missed().tolist() if g not in told], images_G)
    groups = {
        "Found where nothing is, or twice": [_false(d, verdicts, pictures, classes) for d in invented],
        "Found, but placed badly": [_false(d, verdicts, pictures, classes) for d in misplaced],
        "Missed": [_missed(g, verdicts, pictures, classes) for g in missed],
        "Taken for another class": [_false(d, verdicts, pictures, classes) for d in confused],
    }
    views = [*samples, *(view for group in groups.values() for view in group)]
    drawn = _render(views, pictures, verdicts, classes)
    parts = [
        f'<section class="seen"><h2>Pictures</h2><p>Validation images at step {evaluation.step:,}; '
        f"detections of score {SHOWN:g} and more. Point at a box to read what it is.</p>",
        LEGEND,
        '<div class="samples">',
        *(next(drawn) for _ in samples),
        '</div></section><section class="seen"><h2>Worst mistakes</h2>',
        _fates_table(verdicts, classes),
    ]
    for title, group in groups.items():
        figures = "".join(next(drawn) for _ in group) or "<p>None.</p>"
        parts.append(f'<h3>{title}</h3><div class="crops">{figures}</div>')
    if result.notes:
        parts.append("".join(f"<p><small>{escape(note)}</small></p>" for note in result.notes))
    return "".join([*parts, "</section>"])


def _sample(picture: Picture, verdicts: Verdicts) -> _View:
    """A picture, or of a large scene the window that holds most objects."""
    x, y, width, height = 0, 0, picture.width, picture.height
    if max(width, height) > WHOLE:
        width, height = min(width, SAMPLE_SIDE), min(height, SAMPLE_SIDE)
    if (picture.width, picture.height) != (width, height) and len(picture.objects):
        middles = picture.objects.quads.reshape(-1, 4, 2).mean(axis=1)
        room = np.array([picture.width - width, picture.height - height])
        corners = np.clip(np.array(evenly(list(middles), 200)) - [width / 2, height / 2], 0, room).astype(int)
        inside = (middles >= corners[:, None]) & (middles < corners[:, None] + [width, height])
        x, y = corners[int(inside.all(axis=2).sum(axis=1).argmax())].tolist()
    matching = verdicts.matching
    number_of = matching.images.index(picture.name)
    own_G = matching.images_G == number_of
    found = int((verdicts.found_by_G[own_G] >= 0).sum())
    counted = int((~matching.difficult_G[own_G]).sum())
    wrong = (matching.images_D == number_of) & (matching.scores_D >= SHOWN)
    wrong &= verdicts.fate_D > mistakes.IGNORED
    part = "" if (width, height) == (picture.width, picture.height) else f", {width} × {height} at {x}, {y}"
    words = (
        f"<b>{escape(picture.name)}</b>{part}: {found} of {counted} objects found"
        f"{' in the whole image' if part else ''}, {int(wrong.sum())} wrong detections"
    )
    return _View(picture.name, (x, y, width, height), SAMPLE_SIDE, (), (), words)


def _false(
    detection: int, verdicts: Verdicts, pictures: Mapping[str, Picture], classes: Sequence[str]
) -> _View:
    """A false positive: the nearest object, and why it does not match."""
    matching, about = verdicts.matching, int(verdicts.about_D[detection])
    fate, iou = int(verdicts.fate_D[detection]), float(verdicts.iou_D[detection])
    came = f"{classes[matching.labels_D[detection]]} {matching.scores_D[detection]:.2f}"
    expected = classes[matching.labels_G[about]] if about >= 0 else "nothing here"
    if fate == mistakes.DUPLICATE:
        first = matching.scores_D[verdicts.found_by_G[about]]
        expected += f", found already with {first:.2f}"
    elif about >= 0 and matching.difficult_G[about]:
        expected += " (difficult)"
    name = matching.images[matching.images_D[detection]]
    quads = [matching.quads_D8[detection], *([matching.quads_G8[about]] if about >= 0 else [])]
    words = _words(expected, came, iou if about >= 0 else None, name, quads[0], mistakes.FATES[fate])
    objects = (about,) if about >= 0 else ()
    return _View(name, _around(quads, pictures[name]), CROP_SIDE, (detection,), objects, words)


def _missed(
    missed: int, verdicts: Verdicts, pictures: Mapping[str, Picture], classes: Sequence[str]
) -> _View:
    """An object that was not found, and the nearest thing that was."""
    matching = verdicts.matching
    quad = matching.quads_G8[missed]
    same = np.flatnonzero(matching.images_D == matching.images_G[missed])
    iou = geometry.quad_iou(quad[None], matching.quads_D8[same])[0]
    near = int(same[iou.argmax()]) if len(same) and iou.max() > mistakes.NEAR else -1
    w, h = boxes.from_quads(quad[None])[0, 2:4]
    expected = f"{classes[matching.labels_G[missed]]}, {w:.0f} × {h:.0f} px"
    came = f"{classes[matching.labels_D[near]]} {matching.scores_D[near]:.2f}" if near >= 0 else "nothing"
    name = matching.images[matching.images_G[missed]]
    words = _words(expected, came, float(iou.max()) if near >= 0 else None, name, quad, "missed")
    stressed = (near,) if near >= 0 else ()
    return _View(name, _around([quad], pictures[name]), CROP_SIDE, stressed, (missed,), words)


def _words(
    expected: str, came: str, iou: float | None, image: str, quad: NDArray[np.float64], kind: str
) -> str:
    x, y = quad.reshape(4, 2).mean(axis=0)
    overlap = f" · IoU {iou:.2f}" if iou is not None else ""
    return (
        f'<span class="kind">{kind}{overlap}</span><span class="want">{escape(expected)}</span>'
        f'<span class="got">{escape(came)}</span><small>{escape(image)} at {x:.0f}, {y:.0f}</small>'
    )


def _around(quads: Sequence[NDArray[np.float64]], picture: Picture) -> tuple[int, int, int, int]:
    """A square about these quads with as much again around them, inside the picture."""
    corners = np.concatenate([quad.reshape(4, 2) for quad in quads])
    low, high = corners.min(axis=0), corners.max(axis=0)
    side = max(96, round(2.2 * float((high - low).max())))
    width, height = min(side, picture.width), min(side, picture.height)
    room = np.array([picture.width - width, picture.height - height])
    x, y = np.clip((low + high) / 2 - [width / 2, height / 2], 0, room).astype(int).tolist()
    return x, y, width, height


def _fates_table(verdicts: Verdicts, classes: Sequence[str]) -> str:
    """What became of everything, in numbers."""
    matching = verdicts.matching
    sure_D = matching.scores_D >= SHOWN
    kinds = (mistakes.BACKGROUND, mistakes.MISPLACED, mistakes.DUPLICATE, mistakes.CONFUSED)
    rows = []
    for label, name in enumerate(classes):
        own_G = (matching.labels_G == label) & ~matching.difficult_G
        own_D = (matching.labels_D == label) & sure_D
        cells = [int(own_G.sum()), int((own_G & (verdicts.found_by_G >= 0)).sum())]
        cells += [int((own_G & verdicts.missed_G).sum())]
        cells += [int((own_D & (verdicts.fate_D == kind)).sum()) for kind in kinds]
        rows.append(
            f"<tr><td>{escape(name)}</td>{''.join(f'<td class=n>{value}</td>' for value in cells)}</tr>"
        )
    head = "".join(f"<th>{title}</th>" for title in ("objects", "found", "missed"))
    head += "".join(f"<th>{mistakes.FATES[kind]}</th>" for kind in kinds)
    return (
        f'<div class="scroll"><table><thead><tr><th>class</th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
        "<p><small>By the rule of AP50. Found and missed count detections of any score, the kinds of false "
        f"positives those of {SHOWN:g} and more.</small></p>"
        f"{_sizes_table(verdicts)}{_confusions_table(verdicts, classes)}"
        "<p>Of each kind the worst: the highest scores, the largest missed objects, no more than "
        f"{PER_IMAGE} of one image. Strong lines are what a picture is about: red what came, yellow or "
        "dashed blue what was expected; faint ones are the rest.</p>"
    )


def _sizes_table(verdicts: Verdicts) -> str:
    """How many objects of which size are found."""
    matching, by_G = verdicts.matching, verdicts.found_by_G
    sizes_G, counted_G = np.sqrt(quad_areas(matching.quads_G8)), ~matching.difficult_G
    found_G = by_G >= 0
    sure_G = found_G.copy()
    sure_G[found_G] = matching.scores_D[by_G[found_G]] >= SHOWN
    rows = []
    for low, high in pairwise((0.0, *SIZES, np.inf)):
        own_G = counted_G & (sizes_G >= low) & (sizes_G < high)
        if count := int(own_G.sum()):
            name = f"{low:g} … {high:g}" if np.isfinite(high) else f"{low:g} and more"
            shares = "".join(
                f"<td class=n>{100 * (own_G & kept).sum() / count:.1f}</td>" for kept in (found_G, sure_G)
            )
            rows.append(f"<tr><td>{name}</td><td class=n>{count}</td>{shares}</tr>")
    return (
        '<h3>Objects found, by their size</h3><div class="scroll"><table><thead><tr><th>√area, px</th>'
        f"<th>objects</th><th>found, %</th><th>with score {SHOWN:g}, %</th></tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _confusions_table(verdicts: Verdicts, classes: Sequence[str]) -> str:
    """The confusion matrix, of classes that are confused with others alone; nothing where none is."""
    matching = verdicts.matching
    confused = (verdicts.fate_D == mistakes.CONFUSED) & (matching.scores_D >= SHOWN)
    was, came = matching.labels_G[verdicts.about_D[confused]], matching.labels_D[confused]
    if not len(was):
        return ""
    counts = Counter(zip(was.tolist(), came.tolist(), strict=True))
    most = counts.most_common(1)[0][1]

    def cell(count: int) -> str:
        heat = f'style="--heat:{100 * count / most:.0f}%"'
        return f'<td class="n hot" {heat}>{count}</td>' if count else '<td class="n dim">·</td>'

    columns = sorted(set(came.tolist()))
    head = "".join(f"<th>{escape(classes[label])}</th>" for label in columns)
    rows = [
        f"<tr><td>{escape(classes[own])}</td>{''.join(cell(counts[own, other]) for other in columns)}</tr>"
        for own in sorted(set(was.tolist()))
    ]
    return (
        f'<h3>Objects of a class (rows) detected as another (columns)</h3><div class="scroll"><table><thead>'
        f"<tr><th></th>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _render(
    views: Sequence[_View], pictures: Mapping[str, Picture], verdicts: Verdicts, classes: Sequence[str]
) -> Iterator[str]:
    """A figure for each view, in their order; every image is read once."""
    figures: dict[int, str] = {}
    for name in dict.fromkeys(view.image for view in views):
        image = pictures[name].read()
        for index, view in enumerate(views):
            if view.image == name:
                x, y, width, height = view.window
                jpeg = _jpeg(image[y : y + height, x : x + width], view.side)
                figures[index] = (
                    f'<figure><svg viewBox="{x} {y} {width} {height}">'
                    f'<image x="{x}" y="{y}" width="{width}" height="{height}" href="{jpeg}"/>'
                    f"{_overlay(view, verdicts, classes)}</svg>"
                    f"<figcaption>{view.words}</figcaption></figure>"
                )
    return (figures[index] for index in range(len(views)))


def _jpeg(pixels: NDArray[np.uint8], side: int) -> str:
    """A data URI, at most `side` pixels a side."""
    scale = side / max(pixels.shape[:2])
    if scale < 1:
        size = (max(1, round(scale * pixels.shape[1])), max(1, round(scale * pixels.shape[0])))
        pixels = np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), np.uint8)
    done, data = cv2.imencode(
        ".jpg", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, QUALITY]
    )
    if not done:
        raise OSError("OpenCV cannot write JPEG")
    return "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode()


class _Box(NamedTuple):
    """A box to draw."""

    stressed: bool
    quad: NDArray[np.float64]
    style: str  # a class of the style sheet: t(rue), m(issed), x (difficult), r(ight), w(rong), i(gnored)
    title: str
    name: str  # written at it; empty: nothing


def _overlay(view: _View, verdicts: Verdicts, classes: Sequence[str]) -> str:
    """The boxes of a view over its pixels."""
    alike = not (view.detections or view.objects)
    shown = [
        box for box in _boxes(view, verdicts, classes) if box.stressed or _touches(box.quad, view.window)
    ]
    if len(shown) > BOXES:  # a crowd: rather what is wrong than what is right
        shown.sort(key=lambda box: (not box.stressed, box.style not in ("m", "w")))
    drawn = sorted(shown[:BOXES], key=lambda box: box.stressed)  # what is stressed on top
    outline = "".join(f"M{_points(box.quad)}Z" for box in drawn if box.stressed or alike)
    shapes = [f'<path class="under" d="{outline}"/>']
    names = 0
    for stressed, quad, style, title, name in drawn:
        kind = style if stressed or alike else f"{style} faint"
        shapes.append(f'<path class="{kind}" d="M{_points(quad)}Z"><title>{escape(title)}</title></path>')
        large = max(np.ptp(quad[0::2]), np.ptp(quad[1::2])) > view.window[2] / 14
        if alike and name and large and names < NAMES:
            names += 1
            x, y = quad[0::2].mean(), quad[1::2].min()
            size = view.window[2] / 48
            shapes.append(
                f'<text class="{style}" x="{x:.0f}" y="{y - size / 3:.0f}" font-size="{size:.1f}">'
                f"{escape(name)}</text>"
            )
    return "".join(shapes)


def _boxes(view: _View, verdicts: Verdicts, classes: Sequence[str]) -> Iterator[_Box]:
    """What is labelled in the view's image, then what was detected there."""
    matching = verdicts.matching
    number = matching.images.index(view.image)
    for g in np.flatnonzero(matching.images_G == number).tolist():
        name, by = classes[matching.labels_G[g]], int(verdicts.found_by_G[g])
        style = "x" if matching.difficult_G[g] else "t" if by >= 0 else "m"
        found = f"found with {matching.scores_D[by]:.2f}" if by >= 0 else "missed"
        title = f"labelled: {name}, {'difficult' if style == 'x' else found}"
        yield _Box(g in view.objects, matching.quads_G8[g], style, title, name if style == "m" else "")
    for d in np.flatnonzero(matching.images_D == number).tolist():
        if matching.scores_D[d] < SHOWN and d not in view.detections:
            continue
        fate = int(verdicts.fate_D[d])
        style = {mistakes.RIGHT: "r", mistakes.IGNORED: "i"}.get(fate, "w")
        text = f"{classes[matching.labels_D[d]]} {matching.scores_D[d]:.2f}"
        iou = f", IoU {verdicts.iou_D[d]:.2f}" if verdicts.about_D[d] >= 0 else ""
        title = f"detected: {text}, {mistakes.FATES[fate]}{iou}"
        yield _Box(d in view.detections, matching.quads_D8[d], style, title, text if style == "w" else "")


def _points(quad: NDArray[np.float64]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in quad.reshape(4, 2).tolist())


def _touches(quad: NDArray[np.float64], window: tuple[int, int, int, int]) -> bool:
    x, y, width, height = window
    return bool(
        quad[0::2].max() > x
        and quad[0::2].min() < x + width
        and quad[1::2].max() > y
        and quad[1::2].min() < y + height
    )


def _varied(ranked: Iterable[int], images: NDArray[np.int64]) -> list[int]:
    """The first `MISTAKES` of the ranked, at most `PER_IMAGE` of one image."""
    chosen: list[int] = []
    taken: Counter[int] = Counter()
    for index in ranked:
        image = int(images[index])
        if taken[image] < PER_IMAGE:
            taken[image] += 1
            chosen.append(int(index))
        if len(chosen) == MISTAKES:
            break
    return chosen


LEGEND = """<div class="legend">
<label class="t"><input type="checkbox" class="show-t" checked> labelled, found</label>
<label class="m"><input type="checkbox" class="show-m" checked> labelled, missed</label>
<label class="x"><input type="checkbox" class="show-x" checked> difficult: does not count</label>
<label class="r"><input type="checkbox" class="show-r" checked> detected, right</label>
<label class="w"><input type="checkbox" class="show-w" checked> detected, wrong</label>
</div>"""
