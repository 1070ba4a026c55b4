"""Train a detector.

    python -m rgfl.train --recipe gfl_lite --data DIR --out RUN
    torchrun --nproc-per-node 8 -m rgfl.train --recipe gfl_lite --data DIR --out RUN      on eight GPUs

DIR holds train/ and val/, each with images/ and labelTxt/. RUN gets tiles.jpg (what is learned from),
last.pt (resume), best.pt (the detector), log.jsonl, tensorboard/ and page.html, which shows all of it
(rgfl/page.py). The same command goes on where a killed run stopped: on a CPU bit by bit, on a GPU up to the
order in which it adds.

The loop is in rgfl/loop.py: nothing here imports torch, so that --help answers at once.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from rgfl.recipes import RECIPES, Recipe, RecipeError, add_flags, find_recipe, replaced
from rgfl.screen import lasting

SEVERAL = """\
several GPUs or machines:
  torchrun --nproc-per-node 8 -m rgfl.train --recipe NAME --data DIR --out DIR
  torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HOST:29500 -m rgfl.train …

--batch is the total over all GPUs; the number of GPUs does not change the result. It must be a multiple of
that number. If you raise it, adapt --lr, and --warmup-steps too: an epoch then has fewer steps. Cut large
images of train into tiles first, as below: else each worker of each process decodes nearly all of them.
--data and --out must be on a file system that every machine sees. A run may go on with another number of
processes. Where machines do not find each other, name their network card in GLOO_SOCKET_IFNAME and
NCCL_SOCKET_IFNAME."""

TILES = """\
large images: cut train into tiles that fit the recipe, and leave val whole (without --keep-empty tiles that
hold no object are not written, and not learned as background):
  """

STATUS = """\
exit status: 0 when done, or stopped by --max-minutes or --patience (one line says which; such a run can go
on); 2 on an error (one line says which); 128 + signal when stopped by one, 130 when a second one stops it at
once. A closed output pipe does not stop training; log.jsonl has the facts."""


def parse(argv: Sequence[str] | None = None) -> tuple[Recipe, argparse.Namespace]:
    """The recipe with the command line's changes, and the other arguments."""
    common: dict[str, Any] = {
        "prog": "python -m rgfl.train",
        "usage": "%(prog)s --recipe NAME --data DIR --out DIR [options]",
        "allow_abbrev": False,
    }
    first = argparse.ArgumentParser(add_help=False, **common)
    first.add_argument("--recipe", default="gfl_r50_dota_1x")
    shown = first.parse_known_args(argv)[0].recipe
    try:
        recipe = find_recipe(shown)
    except RecipeError as error:
        first.error(str(error))

    listing = "\n".join(
        f"  {name:<26}{(make.__doc__ or '').splitlines()[0]}" for name, make in RECIPES.items()
    )
    cut = recipe.tiling_command(Path("/DIR")).replace(" && ", "\n  ")
    parser = argparse.ArgumentParser(
        description="Train a detector of rotated objects. The same command resumes a run that was stopped: "
        "on a CPU bit by bit, on a GPU up to the order in which it adds.",
        epilog=f"recipes:\n{listing}\n\nIn brackets: the values of {shown}. See those of another recipe by "
        f"--recipe NAME --help. One of your own: CONTRIBUTING.md.\n\n{SEVERAL}\n\n{TILES}{cut}\n\n{STATUS}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        **common,
    )
    parser.add_argument(
        "--recipe",
        required=True,
        metavar="NAME",
        help="what to train and how, see below; FILE.py:NAME: one of your own, from a file that is run",
    )
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="holds train/ and val/")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder of this run, made if need be"
    )
    parser.add_argument(
        "--classes",
        default="",
        metavar="NAMES",
        help="1.0, 1.5 or 2.0 (DOTA's), a file of one name a line, or names with commas "
        "[classes.txt in --data if there, else the names in train's labels]",
    )
    parser.add_argument(
        "--ignore-unknown",
        action="store_true",
        help="leave out objects of other classes, which are then background; else they are an error",
    )
    parser.add_argument(
        "--resume",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="continue from OUT/last.pt if it exists; recipe, labels and image sizes must be unchanged, only "
        "--test-batch, --eval-every (not from or to 0) and the flags of run may differ; --no-resume starts "
        "over and replaces it [on]",
    )
    add_flags(parser, recipe)
    arguments = parser.parse_args(argv)
    try:
        return replaced(recipe, arguments), arguments
    except RecipeError as error:
        parser.error(str(error))


@lasting()
def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0 trained or out of --max-minutes, 2 cannot (one line says why), 128 + signal stopped by."""
    # OpenMP's threads spin while they wait; with one busy neighbour on two cores that made a step of 2 s take
    # 45 s. It reads this once, when torch is imported, which a file with a recipe may do.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    warnings.formatwarning = lambda message, *_: f"warning: {message}\n"
    try:
        return _train(*parse(argv))
    except KeyboardInterrupt:  # before the loop watches for it, or a second one that does not wait
        print("interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    except ModuleNotFoundError as error:
        if error.name not in ("torch", "timm"):
            raise
        print(f"error: {error.name} is not installed: pip install 'rgfl[train]'", file=sys.stderr)
        return 2


def _train(recipe: Recipe, arguments: argparse.Namespace) -> int:
    from rgfl.loop import ERRORS, train
    from rgfl.ranks import SharedError, first_rank

    try:
        return train(
            recipe,
            arguments.data,
            arguments.out,
            arguments.classes,
            arguments.resume,
            arguments.ignore_unknown,
        )
    except ERRORS as error:
        if first_rank() or not isinstance(error, SharedError):
            print(f"error: {error}", file=sys.stderr)
        return 2


def leave(code: int) -> NoReturn:
    """End this process. One of several goes without the interpreter's end: everything is written and closed,
    and there torch's threads, cut off in the middle of a message, abort a process in one of twenty errors."""
    if "torch" in sys.modules:  # else it is not installed, and was told
        from rgfl.ranks import launched

        if launched():
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    leave(main())
