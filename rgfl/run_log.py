"""log.jsonl of a run, a JSON object a line: what a kill or a damaged disk left of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

# What the resume and the page need of a line.
NEEDED = {
    "run": {"step", "time"},
    "step": {"step"},
    "eval": {"step", "time", "images", "classes", "ap50", "ap75", "map"},
}


def read_records(path: Path) -> list[dict[str, Any]]:
    """The records of a log; lines that are none, cut or damaged, are passed over."""
    records = []
    for line in path.read_text("utf-8", errors="replace").split("\n"):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(record, dict) and _is_whole(record):
            records.append(record)
    return records


def _is_whole(record: dict[str, Any]) -> bool:
    needed = NEEDED.get(str(record.get("kind")))
    return needed is not None and needed <= record.keys() and isinstance(record["step"], int)
