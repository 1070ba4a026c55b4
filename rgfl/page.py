"""A training as a person wants to see it: one HTML file, `page.html` in the run's folder.

    python -m rgfl.page RUN                 # curves and AP from log.jsonl
    python -m rgfl.page RUN --data DIR      # also evaluates best.pt: which score to take, pictures, mistakes

Training writes it after every evaluation, and the curves alone at its end or when it is stopped. The file
needs nothing beside it and no network; it may be mailed.
Nothing here imports torch until --data asks for a detector.
"""

from __future__ import annotations

import argparse
import math
import os
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from html import escape
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from rgfl import atomic, errors
from rgfl.chart import Line, chart
from rgfl.dota.average_precision import Result
from rgfl.errors import UserError
from rgfl.evenly import evenly
from rgfl.nn.parts import Parts
from rgfl.page_curves import scores_and_curves
from rgfl.page_pictures import Evaluation, pictures_and_mistakes
from rgfl.page_style import STYLE
from rgfl.recipes import RECIPES, EvaluationConfig
from rgfl.run_log import read_records

PAGE, LOG = "page.html", "log.jsonl"
SEEN_END = "\n<!--/seen-->"
# Elements of which page_curves.py and page_pictures.py make theirs: none that runs, fetches, links or sends.
ELEMENTS = (
    "b circle details div figcaption figure h2 h3 image input label p path polyline section small span "
    "summary svg table tbody td text th thead title tr"
)

Record = Mapping[str, Any]  # a line of log.jsonl


class PageError(UserError):
    """There is nothing to draw; one line that says why."""


def draw(run: Path, evaluation: Evaluation | None = None) -> str:
    """`write`, for a training: says in a line what came of it, and never raises an error."""
    before = time.monotonic()
    try:
        path = write(run, evaluation)
    except Exception as error:  # a page is not worth a training
        return f"page not drawn: {type(error).__name__}: {' '.join(str(error).split())}"
    return f"page: {path} ({time.monotonic() - before:.1f} s)"


def write(run: Path, evaluation: Evaluation | None = None) -> Path:
    """Draw the page of the run in folder `run`. Without an evaluation the pictures of the last one stay.

    Raises:
        PageError: there is no log in this folder, or one of other kinds of values.
    """
    log = read_log(run)
    path = run / PAGE
    identity = str(next((record["time"] for record in log if record["kind"] == "run"), ""))
    shown = None
    if evaluation is not None:
        shown = {"step": evaluation.step, **figures(evaluation.result)}
        seen = _framed(scores_and_curves(evaluation.result) + pictures_and_mistakes(evaluation), identity)
    else:
        seen = _seen_before(path, identity)
    try:
        text = compose(run.resolve().name, log, shown, seen)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise PageError(f"{run / LOG}: not what rgfl.train writes ({reason})") from error
    atomic.write_text(path, text)
    return path


def is_behind(run: Path) -> bool:
    """Whether the page is missing or older than the last evaluation in the log: a kill came in between."""
    page = run / PAGE
    drawn = page.stat().st_mtime if page.is_file() else 0.0
    return any(record["kind"] == "eval" and record["time"] > drawn for record in read_log(run))


def figures(result: Result) -> dict[str, Any]:
    """The numbers of a result that the page shows, as the log's evaluations hold them."""

    def by_class(values: NDArray[np.float64]) -> dict[str, float]:
        return dict(zip(result.classes, values.tolist(), strict=True))

    return {
        "images": result.images,
        "ap50": result.ap50,
        "ap75": result.ap75,
        "map": result.map,
        "classes": by_class(result.ap_by_class(0.5)),
        "classes_ap75": by_class(result.ap_by_class(0.75)),
        "classes_map": by_class(result.ap.mean(axis=1)),
        "objects": {
            name: record.ground_truth for name, record in zip(result.classes, result.by_class, strict=True)
        },
    }


def read_log(run: Path) -> list[dict[str, Any]]:
    """The records of log.jsonl.

    Raises:
        PageError: there is none.
    """
    path = run / LOG
    if not path.is_file():
        raise PageError(f"{path}: no such file; expected the folder of a training (its --out)")
    records = read_records(path)
    if not records:
        raise PageError(f"{path}: holds no record yet; the training has not begun")
    return records


def _framed(seen: str, identity: str) -> str:
    return f"{_seen_begin(identity)}{seen}{SEEN_END}"


def _seen_begin(identity: str) -> str:
    return f"<!--seen {escape(identity)}-->\n"


def _seen_before(path: Path, identity: str) -> str:
    """The pictures of the page that is there, if it is of this run: the log alone cannot draw them again.

    The file may be anybody's by now, so a block with an element that is none of ours is not carried over.
    """
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        return ""
    seen, ended, _ = text.partition(_seen_begin(identity))[2].partition(SEEN_END)
    ours = set(re.findall(r"<(\w+)", seen)) <= set(ELEMENTS.split())
    return _framed(seen, identity) if ended and ours else ""


# --------------------------------------------------------------------------------------------- the page


def compose(name: str, log: Sequence[Record], shown: Record | None, seen: str) -> str:
    """The page as text.

    Args:
        name: of the run.
        log: records of log.jsonl.
        shown: the `figures` and "step" of the evaluation that `seen` shows, if it is not in the log.
        seen: HTML of curves, pictures and mistakes.
    """
    training = _Log.of(log)
    body = [
        _head(name, training),
        _worth(training, shown),
        _learning(training),
        seen,
        _recipe(training.run),
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        # Says to the browser what the file promises: nothing is fetched and nothing runs.
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'; form-action 'none'; base-uri 'none'\">\n"
        f'<link rel="icon" href="data:,">\n<title>{escape(name)}</title>\n<style>{STYLE}</style>\n</head>\n'
        f"<body>\n{chr(10).join(part for part in body if part)}\n</body>\n</html>\n"
    )


@dataclass(frozen=True)
class _Log:
    """log.jsonl by the kind of its records.

    Attributes:
        run: the last start of the run; {} if none is logged.
        starts: how often it was started or resumed.
    """

    run: Record
    starts: int
    steps: list[Record]
    evaluations: list[Record]

    @classmethod
    def of(cls, records: Sequence[Record]) -> _Log:
        runs, steps, evaluations = (
            [record for record in records if record["kind"] == kind] for kind in ("run", "step", "eval")
        )
        return cls(runs[-1] if runs else {}, len(runs), steps, evaluations)

    @property
    def per_epoch(self) -> float:
        """Steps of an epoch; 1 if the log does not say."""
        if "total" in self.run and self.run.get("epochs"):
            return self.run["total"] / self.run["epochs"]
        last = self.steps[-1] if self.steps else {}
        return last["step"] / last["epoch"] if last.get("epoch") else 1.0

    @property
    def total(self) -> int:
        """Steps of the whole run."""
        if "total" in self.run:
            return int(self.run["total"])
        return round(self.run.get("epochs", 0) * self.per_epoch) if self.steps else 0

    def when(self, step: int) -> str:
        per_epoch = self.per_epoch
        return f"epoch {round(step / per_epoch, 2):g}" if per_epoch != 1 else f"step {step:,}"

    def seconds(self) -> tuple[float, float]:
        """Time in steps so far, and what is left at the pace of the last records."""
        before, spent = 0, 0.0
        for record in self.steps:
            spent += record.get("step_s", 0.0) * (record["step"] - before)
            before = record["step"]
        latest = [record.get("step_s", 0.0) for record in self.steps[-50:]]
        return spent, float(np.median(latest or [0.0])) * max(0, self.total - before)


def _head(name: str, log: _Log) -> str:
    """What it is, how far it got, and the best so far."""
    run, steps, evaluations = log.run, log.steps, log.evaluations
    step = int(steps[-1]["step"]) if steps else int(run.get("step", 0))
    total = log.total
    spent, left = log.seconds()
    tiles = [("progress", f"{100 * step / total:.0f}%" if total else "–", f"step {step:,} of {total:,}")]
    if evaluations:
        best = max(evaluations, key=lambda record: record["map"])
        when = log.when(best["step"])
        tiles.append(("best mAP", _percent(best["map"]), f"at {when}"))
        tiles.append(("its AP50", _percent(best["ap50"]), f"{best['images']} images"))
        tiles.append(("its AP75", _percent(best["ap75"]), "in percent, official rule"))
    else:
        tiles.append(("best mAP", "–", "not evaluated yet"))
    ahead = "done" if step >= total else f"{_duration(left)} left" if left else "–"
    tiles.append(("trained", _duration(spent), ahead))
    changed = "".join(
        f"<li><code>{escape(field)}</code> {escape(now)} <s>{escape(before)}</s></li>"
        for field, before, now in _changes(run)
    )
    facts = [
        ("recipe", escape(str(run.get("recipe", "unknown")))),
        ("changed", f'<ul class="chips">{changed}</ul>' if changed else "nothing"),
        ("data", escape(_data(log))),
        ("device", escape(str(run.get("device", "unknown")))),
    ]
    if log.starts > 1:
        facts.append(("resumed", f"{log.starts - 1} time{'s' if log.starts > 2 else ''}"))
    written = steps[-1].get("time") if steps else run.get("time")
    if written:
        facts.append(("as of", time.strftime("%Y-%m-%d %H:%M", time.localtime(written))))
    share = min(100.0, 100 * step / total) if total else 0.0
    return (
        f"<header><h1>{escape(name)}</h1>"
        f'<div class="progress"><div style="width:{share:.1f}%"></div></div><div class="tiles">'
        + "".join(
            f"<div><small>{title}</small><strong>{value}</strong><small>{escape(note)}</small></div>"
            for title, value, note in tiles
        )
        + "</div><dl>"
        + "".join(f"<dt>{title}</dt><dd>{value}</dd>" for title, value in facts)
        + "</dl></header>"
    )


def _learning(log: _Log) -> str:
    """Everything that is logged over the steps."""
    steps = log.steps
    if not steps:
        return "<section><h2>Learning</h2><p>No step is logged yet.</p></section>"
    at = np.array([record["step"] for record in steps], np.float64)

    def line(key: str, name: str, colour: int, kind: Literal["noisy", "exact"] = "noisy") -> Line:
        values = np.array([record.get(key) for record in steps], np.float64)  # None is NaN
        return Line(name, colour, at, values, kind)

    parts = [key for key in dict.fromkeys(key for record in steps for key in record) if key[:5] == "loss_"]
    charts = [chart("loss", [line("loss", "loss", 0)])]
    charts += [chart(key[5:] + " loss", [line(key, key, 1 + i % 5)]) for i, key in enumerate(parts)]
    charts += [
        chart(
            "gradient norm", [line("grad_norm", "norm", 3)], log=True, limit=log.run.get("clip_norm") or None
        ),
        chart("learning rate", [line("lr", "rate", 5, "exact")]),
        chart("seconds a step", [line("step_s", "all", 2), line("data_wait_s", "waiting for data", 1)]),
    ]
    return (
        "<section><h2>Learning</h2><p>Over steps: each mean that was logged, faint, and its trend. "
        "The level in the gradient's norm is where it is clipped.</p>"
        f'<div class="charts">{"".join(charts)}</div></section>'
    )


def _worth(log: _Log, shown: Record | None) -> str:
    """AP over epochs and by class."""
    evaluations = log.evaluations
    if not evaluations and shown is None:
        return ""
    parts = ['<section><h2>Average precision</h2><div class="beside">']
    if evaluations:
        per_epoch = log.per_epoch
        at = np.array([record["step"] / per_epoch for record in evaluations])
        lines = [
            Line(title, colour, at, np.array([100 * record[key] for record in evaluations]), "marked")
            for colour, (title, key) in enumerate((("AP50", "ap50"), ("AP75", "ap75"), ("mAP", "map")))
        ]
        drawn = chart("AP, %", lines, across="epoch" if per_epoch != 1 else "step")
        parts.append(drawn)
    columns: list[tuple[str, Record]] = []
    if evaluations:
        best, last = max(evaluations, key=lambda record: record["map"]), evaluations[-1]
        columns.append(("best" if best is not last else "best and last", best))
        if best is not last:
            columns.append(("last", last))
    if shown is not None and all(record["step"] != shown["step"] for _, record in columns):
        columns.append(("shown below", shown))
    elif shown is not None:  # the same weights, seen just now: maybe on more images, and in full
        columns = [(title, shown if record["step"] == shown["step"] else record) for title, record in columns]
    titled = [(f"{title}, {log.when(record['step'])}", record) for title, record in columns]
    parts.append(_class_table(titled, log.run.get("train_objects", {})))
    counts = " and ".join(escape(str(count)) for count in sorted({record["images"] for _, record in columns}))
    parts.append(
        f"</div><p><small>Percent, official 11-point rule, on {counts} full validation images, tiles merged. "
        "Objects are those that count: difficult ones are neither found nor missed.</small></p></section>"
    )
    return "".join(parts)


def _class_table(columns: Sequence[tuple[str, Record]], train: Record) -> str:
    """A class a row, AP50 as a bar; of older logs only what they hold.

    Args:
        train: objects by class that are learned from.
    """
    names = list(dict.fromkeys(name for _, record in columns for name in record["classes"]))
    objects: dict[str, int] = next(
        (record["objects"] for _, record in reversed(columns) if "objects" in record), {}
    )
    counts = [*([("train objects", train)] if train else []), ("objects", objects)]
    head = ['<th rowspan="2">class</th>']
    head += [f'<th rowspan="2" class="n">{title}</th>' for title, _ in counts]
    head += [f'<th colspan="3">{escape(title)}</th>' for title, _ in columns]
    rows = []
    for name in names:
        cells = [f"<td>{escape(name)}</td>"]
        cells += [f'<td class="n">{escape(str(count.get(name, "–")))}</td>' for _, count in counts]
        for _, record in columns:
            ap50 = record["classes"].get(name, math.nan)
            cells.append(_bar(ap50) if objects.get(name) != 0 else '<td class="dim">no object: 0</td>')
            for key in ("classes_ap75", "classes_map"):
                value = record.get(key, {}).get(name)
                cells.append(f'<td class="n">{_percent(value) if value is not None else "–"}</td>')
        rows.append(f"<tr>{''.join(cells)}</tr>")
    cells = ["<td>all</td>"]
    cells += [f'<td class="n">{sum(count.values()) if count else "–"}</td>' for _, count in counts]
    for _, record in columns:
        cells.append(_bar(record["ap50"]))
        cells += [f'<td class="n">{_percent(record[key])}</td>' for key in ("ap75", "map")]
    return (
        '<div class="scroll"><table><thead>'
        f"<tr>{''.join(head)}</tr><tr>{'<th>AP50</th><th>AP75</th><th>mAP</th>' * len(columns)}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody><tfoot><tr>{''.join(cells)}</tr></tfoot></table></div>"
    )


def _bar(value: float) -> str:
    if not math.isfinite(value):
        return '<td class="n">–</td>'
    share = min(max(100 * value, 0), 100)
    return f'<td class="bar"><div style="width:{share:.1f}%"></div><span>{_percent(value)}</span></td>'


def _recipe(run: Record) -> str:
    """Every field that decides the outcome."""
    known = {*RECIPES["demo"]().result_fields(), *(part.name for part in fields(Parts))}
    rows = "".join(
        f"<tr><td><code>{escape(key)}</code></td><td>{escape(_plain(value))}</td></tr>"
        for key, value in run.items()
        if key in known
    )
    if not rows:
        return ""
    return (
        "<section><details><summary>The whole recipe</summary>"
        f'<div class="scroll"><table>{rows}</table></div></details></section>'
    )


# -------------------------------------------------------------------------------- what the numbers say


def _changes(run: Record) -> Iterator[tuple[str, str, str]]:
    """(field, value of the recipe, value of this run), where they differ."""
    make = RECIPES.get(run.get("recipe", ""))
    for field, before in make().result_fields().items() if make else ():
        if field in run and run[field] != before:
            yield field, _plain(before), _plain(run[field])


def _data(log: _Log) -> str:
    run, evaluations = log.run, log.evaluations
    parts = []
    if "root" in run:
        parts.append(str(run["root"]))
    if "train_images" in run:
        parts.append(f"{run['train_images']} training images")
    if evaluations:
        classes = len(evaluations[-1]["classes"])
        parts.append(f"{evaluations[-1]['images']} validation images")
        parts.append(f"{classes} class{'es' if classes != 1 else ''}")
    return ", ".join(parts) + (f" (digest {run['data']})" if "data" in run else "")


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_plain, value)) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value) or "none"


# --------------------------------------------------------------------------------------- command line


def look(run: Path, data: Path, weights: Path, images: int | None, device: str) -> Evaluation:
    """Evaluate the weights of a run on val/, under the settings that its log names."""
    from tqdm import tqdm

    from rgfl import checkpoint
    from rgfl.dataset import read_dataset
    from rgfl.devices import choose_device
    from rgfl.nn.fake_int8 import fake_int8
    from rgfl.validate import find, score

    settings: dict[str, Any] = next(
        (record for record in reversed(read_log(run)) if record["kind"] == "run"), {}
    )
    config = EvaluationConfig(**{
        field.name: settings[field.name] for field in fields(EvaluationConfig) if field.name in settings
    })  # fmt: skip
    detector = checkpoint.load_detector(weights).to(choose_device(device))
    if settings.get("fake_int8"):  # the training's own evaluations rounded too
        fake_int8(detector)
    ignore_unknown = bool(settings.get("left_out"))  # as the training had it
    dataset = read_dataset(data, detector.spec.classes, ignore_unknown=ignore_unknown)
    chosen = evenly(dataset.val, (config.eval_images if images is None else images) or len(dataset.val))
    bar = tqdm(chosen, unit="image", dynamic_ncols=True)
    found = find(detector.predict, bar, detector.spec, config)
    assert found is not None  # nobody stops it
    result = score(found, chosen, detector.spec, dataset.left_out)
    record = checkpoint.load(weights)
    step = record.get("training", record["result"]).get("step", 0)
    return Evaluation(int(step), result, chosen, found)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0 drawn, 2 cannot (one line says why), 130 on Ctrl-C."""
    parser = argparse.ArgumentParser(
        prog="python -m rgfl.page",
        description="Draw a training as one HTML file, RUN/page.html. Without --data from its log alone; "
        "pictures and mistakes that the page has already stay.",
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a training (its --out)")
    parser.add_argument(
        "--data", type=Path, metavar="DIR", help="evaluate on its val/ and show pictures and mistakes"
    )
    parser.add_argument("--weights", type=Path, metavar="FILE", help="what to evaluate [RUN/best.pt]")
    parser.add_argument(
        "--images",
        type=int,
        metavar="N",
        help="evaluate only N, evenly spaced; 0: all [as the training did]",
    )
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1 [cuda where there is one]")
    arguments = parser.parse_args(argv)
    if arguments.images is not None and arguments.images < 0:
        parser.error(f"--images: expected 0 (all) or more, got {arguments.images}")
    return errors.run("page", lambda: draw_again(arguments), interrupted="interrupted; the page is as it was")


def draw_again(arguments: argparse.Namespace) -> int:
    """What the command does."""
    read_log(arguments.run)
    if not os.access(arguments.run, os.W_OK):
        raise PageError(f"{arguments.run / PAGE}: the folder cannot be written to")
    evaluation = None
    if arguments.data:
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # see rgfl/train.py
        weights = arguments.weights or arguments.run / "best.pt"
        evaluation = look(arguments.run, arguments.data, weights, arguments.images, arguments.device)
    print(write(arguments.run, evaluation))
    return 0


if __name__ == "__main__":
    sys.exit(main())
