"""What a wheel and a source distribution hold, and which folder may import which."""

import ast
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = {
    "rgfl": "rgfl",
    "export": "rgfl/export",
    "plugins": "rgfl/plugins",
    "trt_runtime": "rgfl/trt_runtime",
}
PLUGIN_SOURCES = ("core/*.hpp", "cuda/*", "tensorrt/*", "CMakeLists.txt")  # what rgfl.plugins.build compiles
CORE_SOURCES = ("cpu/*", "python/*")  # compiled already in a wheel

pytest.importorskip("pybind11")  # setup.py needs both, and an installed rgfl neither
pytest.importorskip("setuptools", minversion="77")


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tree with what lies about in one that is worked in."""
    copy = tmp_path_factory.mktemp("packaging") / "tree"
    copy.mkdir()
    ignored = shutil.ignore_patterns("__pycache__", "*.so", "lib", "*.egg-info")
    for folder in (*FOLDERS, "tests"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=ignored)
    for name in ("LICENSE", "MANIFEST.in", "README.md", "pyproject.toml", "setup.py"):
        shutil.copy(ROOT / name, copy)
    (copy / "plugins/lib").mkdir()
    (copy / "plugins/lib/librgfl_plugins.so").touch()
    (copy / "rgfl.egg-info").mkdir()  # as setuptools before this one wrote it
    (copy / "rgfl.egg-info/SOURCES.txt").write_text("plugins/lib/librgfl_plugins.so\ntests/test_boxes.py\n")
    return copy


def run_setup(tree: Path, *words: str) -> str:
    """What `setup.py` says on both streams."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run(
        [sys.executable, "-W", "default", "setup.py", *words],
        cwd=tree,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def modules() -> dict[str, str]:
    """Where each module of the four folders lies in an installation → where in the tree."""
    return {
        f"{place}/{(part := file.relative_to(ROOT / folder).as_posix())}": f"{folder}/{part}"
        for folder, place in FOLDERS.items()
        for file in (ROOT / folder).rglob("*.py")
    }


def plugin_files(patterns: tuple[str, ...]) -> set[str]:
    plugins = ROOT / "plugins"
    return {path.relative_to(plugins).as_posix() for pattern in patterns for path in plugins.glob(pattern)}


def test_a_wheel_holds_the_modules_and_what_the_plugin_is_built_from(tree: Path, tmp_path: Path) -> None:
    said = run_setup(tree, "build_py", "--build-lib", str(tmp_path))
    assert "would be ignored" not in said  # setuptools takes a folder of C++ for a forgotten package
    assert "importable" not in said
    assert "warning" not in said.lower()
    files = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    files = {name for name in files if "__pycache__" not in name}
    sources = {f"rgfl/plugins/{name}" for name in plugin_files(PLUGIN_SOURCES)}
    assert files == set(modules()) | sources | {"rgfl/py.typed", "rgfl/_core.pyi"}


def test_a_source_distribution_holds_what_a_wheel_is_built_from(tree: Path, tmp_path: Path) -> None:
    said = run_setup(tree, "sdist", "--formats", "gztar", "--dist-dir", str(tmp_path))
    assert "warning" not in said.lower()
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as files:
        names = {name.partition("/")[2] for name in files.getnames() if files.getmember(name).isfile()}
    wanted = {"LICENSE", "MANIFEST.in", "README.md", "pyproject.toml", "setup.py", "rgfl/py.typed"}
    wanted |= {"rgfl/_core.pyi"} | {f"plugins/{name}" for name in plugin_files(PLUGIN_SOURCES + CORE_SOURCES)}
    wanted |= set(modules().values())
    written = {
        name for name in names if name in ("PKG-INFO", "setup.cfg") or name.startswith("rgfl.egg-info/")
    }
    assert names - written == wanted


@pytest.mark.parametrize(
    ("folder", "others"),
    [
        ("rgfl", ("plugins", "trt_runtime", "export")),
        ("plugins", ("trt_runtime", "export")),
        ("trt_runtime", ("export",)),
    ],
)
def test_imports_go_one_way(folder: str, others: tuple[str, ...]) -> None:
    """As CONTRIBUTING.md has it, those within functions too."""
    wrong = []
    for path in sorted((ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            wrong += [
                f"{path.relative_to(ROOT)}:{node.lineno}: {name}"
                for name in names
                if name.startswith(tuple(f"rgfl.{other}" for other in others))
            ]
    assert not wrong
