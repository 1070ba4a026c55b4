"""Which scenes a command runs a model over, and how: files and folders by name, and the flags they share."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rgfl import errors
from rgfl.dota.images import (
    IMAGE_SUFFIXES,
    VIDEO_SUFFIXES,
    find_images,
    left_out,
    subfolders,
    with_subfolders,
)
from rgfl.trt_runtime import machine
from rgfl.trt_runtime.runners import Runner, load_runner


def find_scenes(*paths: Path, recursive: bool | None = None) -> dict[str, Path]:
    """Images among `paths` and in those that are folders, by name.

    A name is the file's without its suffix, with the way to it before, as in north/IMG_1, where it lies in a
    subfolder of a path.

    Args:
        recursive: go down into subfolders. None: the same as False, of a command without this flag.

    Raises:
        InputError: a path leads nowhere, or to a video or a folder without images; two images share a name;
            a name is not UTF-8.
    """
    scenes: dict[str, Path] = {}
    given = set()
    for path in paths:
        if path.is_file():
            if path.suffix.lower() in VIDEO_SUFFIXES:
                raise errors.InputError(f"--images {path}: a video, expected images; {_frames_of(path)}")
            found = {path.stem: path}
        elif path.exists():
            found = _in_folder(path, recursive)
        else:
            raise errors.InputError(f"--images {path}: no such file or directory")
        for name, file in found.items():
            if (place := os.path.abspath(file)) in given:
                continue
            given.add(place)
            if any("\udc80" <= character <= "\udcff" for character in name):  # no Task 1 file can hold it
                raise errors.InputError(f"--images: the name {name!a} is not UTF-8; rename it")
            if (other := scenes.get(name)) is not None:
                raise errors.InputError(
                    f"{file}: {other} has the same name, and so would their results; rename one of the two, "
                    "or run the command for each, with another --out"
                )
            scenes[name] = file
    return scenes


def _in_folder(root: Path, recursive: bool | None) -> dict[str, Path]:
    """Images in the folder, by name; says what of it is left out."""
    folders = list(with_subfolders(root, _is_result)) if recursive else [root]
    if not recursive and (others := subfolders(root)):
        names = ", ".join(path.name for path in others[:3])
        flag = "" if recursive is None else "; --recursive does it"
        note = f"note: subfolders of {root} are not looked into: {names}{flag}"
        print(errors.printable(note), file=sys.stderr)
    suffixes = ", ".join(suffix.removeprefix(".") for suffix in IMAGE_SUFFIXES)
    if others := [path for folder in folders for path in left_out(folder)]:
        video = others[0].suffix.lower() in VIDEO_SUFFIXES
        remedy = _frames_of(others[0]) if video else f"convert to one of {suffixes}"
        example = others[0].relative_to(root)
        note = f"note: {len(others)} files in {root} are left out, such as {example}; {remedy}"
        print(errors.printable(note), file=sys.stderr)
    images = {
        (folder.relative_to(root) / stem).as_posix(): path
        for folder in folders
        for stem, path in find_images(folder).items()
    }
    if not images:
        raise errors.InputError(f"--images {root}: no image in this folder; expected {suffixes}")
    return images


def _is_result(folder: Path) -> bool:
    """Whether an earlier run wrote the images in it."""
    return folder.name in ("pictures", "labelled") and (folder.parent / "geojson").is_dir()


def _frames_of(video: Path) -> str:
    """What to do with it."""
    return (
        "take frames of it, here two a second: "
        f"mkdir frames && ffmpeg -i {shlex.quote(str(video))} -vf fps=2 frames/%06d.png"
    )


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of how a model is run, the same in every command that runs one over scenes."""
    parser.add_argument("--stride", type=int, default=0, metavar="PX", help="tile to tile (824 for 1024)")
    parser.add_argument(
        "--scales",
        type=float,
        nargs="+",
        default=[1.0],
        metavar="S",
        help="multi-scale testing: tiles of the image resized by each, such as 0.5 1 1.5 (default: 1)",
    )
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="tiles a call (default: 1)")
    add_runner_arguments(parser)


def add_runner_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `open_runner`."""
    parser.add_argument("--threads", type=int, default=0, metavar="N", help="CPU threads (default: cores)")
    parser.add_argument(
        "--device",
        choices=("auto", "cpu", "cuda"),
        default="auto",
        help="(default: auto); of several GPUs CUDA_VISIBLE_DEVICES=1 chooses one",
    )
    add_trust_argument(parser)


def open_runner(path: Path, arguments: argparse.Namespace) -> Runner:
    """`load_runner` as the flags say."""
    return load_runner(
        path, device=arguments.device, threads=arguments.threads, trust_engine=arguments.trust_engine
    )


def add_trust_argument(parser: argparse.ArgumentParser) -> None:
    """The flag of every command that runs engines."""
    parser.add_argument(
        "--trust-engine",
        action="store_true",
        help="run an engine built with --version-compatible: it carries libraries, so give this for one that "
        "you built, or trust like a program",
    )


def check_model_arguments(arguments: argparse.Namespace) -> None:
    """InputError for values of these flags that cannot be."""
    for flag, least in (("stride", 0), ("batch", 1), ("threads", 0)):
        if getattr(arguments, flag) < least:
            raise errors.InputError(f"--{flag} {getattr(arguments, flag)}: expected {least} or more")
    for scale in arguments.scales:
        if not 0.05 <= scale <= 20:  # a tile's square of the image is held in memory before it is resized
            raise errors.InputError(f"--scales {scale:g}: expected factors from 0.05 to 20")
    if len(set(arguments.scales)) != len(arguments.scales):
        raise errors.InputError("--scales: a factor is named twice")


def journal_head(
    model: Mapping[str, Any], arguments: argparse.Namespace, flags: Sequence[str]
) -> dict[str, Any]:
    """First line of a journal: what decides what a model finds in an image.

    Args:
        model: what Runner.describe tells.
        flags: of the command, that decide what is made of it.
    """
    facts = {name: model[name] for name in ("sha256", "backend", "precision", "device")}
    facts |= {name: str(getattr(arguments, name)) for name in ("stride", "scales", "batch", *flags)}
    return facts | {"versions": machine.versions()}
