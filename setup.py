"""Build of the compiled core and the mapping of the top-level folders under one import root.

Metadata, dependencies and extras are in pyproject.toml. What only code can say is here:
`export/`, `plugins/` and `trt_runtime/` install as `rgfl.export`, `rgfl.plugins` and
`rgfl.trt_runtime`, and `rgfl._core` compiles from plugins/ with nothing but a C++17 compiler.
"""

import sys
from pathlib import Path

from pybind11.setup_helpers import ParallelCompile, Pybind11Extension, build_ext
from setuptools import setup

ROOT = Path(__file__).parent

if sys.platform == "win32":
    COMPILE_FLAGS = ["/O2", "/fp:precise"]
else:
    # No contraction into FMA: CPU and CUDA must round alike, so that NMS keeps the same indices.
    # No floating-point traps: without it selections do not vectorise; values are the same.
    COMPILE_FLAGS = ["-O3", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-Wall", "-Wextra"]


def core_sources() -> list[str]:
    """The C++ files of `rgfl._core`, relative to this file as setuptools requires."""
    files = [*ROOT.glob("plugins/cpu/*.cpp"), ROOT / "plugins/python/module.cpp"]
    return sorted(str(file.relative_to(ROOT)) for file in files)


def core_headers() -> list[str]:
    """Headers that must trigger a rebuild when they change."""
    files = [*ROOT.glob("plugins/core/*.hpp"), *ROOT.glob("plugins/cpu/*.hpp")]
    return sorted(str(file.relative_to(ROOT)) for file in files)


ParallelCompile("NPY_NUM_BUILD_JOBS", default=0).install()

setup(
    package_dir={
        "rgfl": "rgfl",
        "rgfl.export": "export",
        "rgfl.plugins": "plugins",
        "rgfl.trt_runtime": "trt_runtime",
    },
    packages=[
        "rgfl",
        "rgfl.dota",
        "rgfl.dota.formats",
        "rgfl.dota.synthetic",
        "rgfl.nn",
        "rgfl.export",
        "rgfl.plugins",
        "rgfl.trt_runtime",
    ],
    # These and no others: by default setuptools takes along all that the sdist holds, and warns of each
    # folder of C++ that it could be a package.
    include_package_data=False,
    package_data={
        "rgfl": ["py.typed", "_core.pyi"],
        "rgfl.plugins": ["core/*.hpp", "cuda/*", "tensorrt/*", "CMakeLists.txt"],
    },
    ext_modules=[
        Pybind11Extension(
            "rgfl._core",
            core_sources(),
            include_dirs=["plugins"],
            depends=core_headers(),
            cxx_std=17,
            extra_compile_args=COMPILE_FLAGS,
        )
    ],
    cmdclass={"build_ext": build_ext},
)
