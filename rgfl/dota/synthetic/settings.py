"""What a synthetic set looks like: everything that its pixels depend on."""

from __future__ import annotations

from dataclasses import dataclass

from rgfl.dota import labels
from rgfl.errors import UserError

CLASSES = labels.CLASSES["1.0"]
EASY_CLASSES = ("plane", "small-vehicle", "large-vehicle", "ship", "tennis-court", "storage-tank")
SPLITS = ("train", "val", "large")
ROUND = ("storage-tank", "roundabout")  # labelled by upright squares, as in DOTA
LONGEST = 300.0  # pixels, the longest side of any object
TINY = 10.0  # pixels: an object whose longer side is below is difficult
HIDDEN = 0.5  # an object of which more is covered is difficult
VISIBLE = 0.75  # objects of which less lies inside the image are not drawn
FORMAT = 2  # raise it when the same settings no longer give the same files


class SyntheticError(UserError):
    """The settings make no sense, or the folder holds something else."""


@dataclass(frozen=True)
class Difficulty:
    """What makes a set hard.

    Attributes:
        pixels_per_metre: range of the scale.
        opacity: range of the objects' contrast against the ground.
        occlusion: share of the objects on land that a tree covers in part.
        distractors: clutter that resembles objects, relative to the number of object groups.
        blur: range of the Gaussian blur in pixels.
        noise: range of the grain in grey levels.
        shade: range of the overall brightness.
        van_like: 1 makes vehicle lengths of both classes meet, 0 keeps them apart.
    """

    pixels_per_metre: tuple[float, float]
    opacity: tuple[float, float]
    occlusion: float
    distractors: float
    blur: tuple[float, float]
    noise: tuple[float, float]
    shade: tuple[float, float]
    van_like: float


DIFFICULTIES = {
    "easy": Difficulty((6.0, 8.0), (1.0, 1.0), 0.04, 0.3, (0.0, 0.5), (2, 5), (0.9, 1.1), 0.0),
    "medium": Difficulty((2.6, 5.0), (0.8, 1.0), 0.10, 0.8, (0.3, 0.9), (4, 9), (0.75, 1.15), 0.5),
    "hard": Difficulty((1.9, 4.5), (0.45, 0.95), 0.20, 1.4, (0.5, 1.3), (6, 14), (0.55, 1.2), 1.0),
}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that a scene's pixels depend on, besides its split and number.

    Attributes:
        seed: one integer ≥ 0; equal seeds give equal files.
        size: (height, width) of the train and val scenes.
        large_size: (height, width) of the large scenes.
        density: factor on the number of objects.
        difficulty: a key of DIFFICULTIES.
        classes: names to draw and label; nothing of another class is drawn.
        jpeg: JPEG files of quality 92 instead of PNG.
    """

    seed: int = 0
    size: tuple[int, int] = (512, 512)
    large_size: tuple[int, int] = (3000, 4000)
    density: float = 1.0
    difficulty: str = "easy"
    classes: tuple[str, ...] = EASY_CLASSES
    jpeg: bool = False

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise SyntheticError(f"--seed: expected an integer ≥ 0, got {self.seed}")
        for flag, size in (("--size", self.size), ("--large-size", self.large_size)):
            if min(size) < 128 or max(size) > 16384:
                found = f"{size[0]}x{size[1]}"
                raise SyntheticError(f"{flag}: expected sides of 128 to 16384 pixels, got {found}")
        if not 0 < self.density <= 4:
            raise SyntheticError(f"--objects: expected a factor above 0 and up to 4, got {self.density}")
        if self.difficulty not in DIFFICULTIES:
            raise SyntheticError(f"--difficulty: expected one of {[*DIFFICULTIES]}, got {self.difficulty!r}")
        if unknown := [name for name in self.classes if name not in CLASSES]:
            raise SyntheticError(f"--classes: {unknown} are not among the drawn ones: {', '.join(CLASSES)}")
        if not self.classes or len(set(self.classes)) != len(self.classes):
            raise SyntheticError(f"--classes: expected distinct names, got {list(self.classes)}")
