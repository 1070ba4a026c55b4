"""Aerial-like scenes with exact oriented labels, for the demo, the tests and controlled experiments.

    python -m rgfl.dota.synthetic --out DIR --train 400 --val 100 --size 512 --difficulty easy

writes DIR/{train,val}/{images,labelTxt}, DIR/large/… for large scenes, and DIR/classes.txt.

A label is exact because the shape is drawn from its box: every silhouette lives in the box's frame,
u along the length and v across, and touches u = ±1 and v = ±1. Coordinates are continuous, the
pixel in column i covers [i, i + 1).

A scene depends on the settings, its split and its number only, never on the other scenes: any number
of workers writes the same bytes, and an interrupted run goes on where it stopped.
"""

from rgfl.dota.synthetic.files import generate, label_text, main
from rgfl.dota.synthetic.picture import Scene, render, render_one
from rgfl.dota.synthetic.settings import CLASSES, DIFFICULTIES, EASY_CLASSES, Settings, SyntheticError

__all__ = [
    "CLASSES",
    "DIFFICULTIES",
    "EASY_CLASSES",
    "Scene",
    "Settings",
    "SyntheticError",
    "generate",
    "label_text",
    "main",
    "render",
    "render_one",
]
