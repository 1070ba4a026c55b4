# Two commands do everything on a fresh machine:  make demo   and   make test
# Both own a virtual environment, .venv, and are quick the second time.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PY     := $(BIN)/python
EXTRAS := train,export,rtx,test,dev
DEMO   ?= demo

CORE_SOURCES := $(wildcard plugins/core/*.hpp plugins/cpu/*.hpp plugins/cpu/*.cpp plugins/python/*.cpp)

# OpenMP's threads sleep while they wait: spinning, they slow every busy neighbour on few cores by an order.
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: help setup demo test lint clean
.DELETE_ON_ERROR:

help:
	@echo "make demo    set up, then synthetic DOTA -> train -> ONNX -> table, plot and pictures in $(DEMO)/"
	@echo "make test    set up, then lint, type-check and run the tests"
	@echo "make setup   only the virtual environment and the compiled core"
	@echo "make clean   remove what make demo wrote (not the environment)"

# --- set-up: a stamp for the packages, one for the compiled core ---------------------------------

setup: $(VENV)/.built

$(VENV)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
	    || { echo "rgfl needs Python 3.10 or newer; name one with: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null \
	    || { echo "Python's venv module is missing: apt-get install python3-venv"; exit 1; }
	@command -v c++ >/dev/null || { echo "no C++ compiler: apt-get install g++"; exit 1; }
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --upgrade pip uv "setuptools>=77" "pybind11>=2.12"
	# uv fetches the wheels side by side, three times as fast; pip where only pip knows the way out.
	$(BIN)/uv pip install --python $(PY) --no-build-isolation --editable ".[$(EXTRAS)]" \
	    || $(PY) -m pip install --no-build-isolation --editable ".[$(EXTRAS)]"
	@touch $@

$(VENV)/.built: $(VENV)/.installed setup.py $(CORE_SOURCES)
	$(PY) setup.py --quiet build_ext --inplace
	@touch $@

# --- the TensorRT plugin: nvcc and headers where they are, else from PyPI; no GPU needed ------------

PLUGIN := plugins/lib/librgfl_plugins.so
PLUGIN_SOURCES := $(wildcard plugins/core/*.hpp plugins/cuda/* plugins/tensorrt/*) plugins/build.py

$(PLUGIN): $(VENV)/.built $(PLUGIN_SOURCES)
	$(PY) -m rgfl.plugins.build --fetch --strict
	@touch $@

# --- the main job ---------------------------------------------------------------------------------

demo: $(DEMO)/report.md
	@cat $(DEMO)/report.md
	@echo
	@echo "Pictures: $(DEMO)/pictures/   Plot: $(DEMO)/pareto.png   Table: $(DEMO)/report.md"

$(DEMO)/data/classes.txt: $(VENV)/.built
	$(PY) -m rgfl.dota.synthetic --out $(DEMO)/data --train 720 --val 60 --seed 7 --objects 1.6

$(DEMO)/run/best.pt: $(DEMO)/data/classes.txt
	$(PY) -m rgfl.train --recipe demo --data $(DEMO)/data --out $(DEMO)/run

$(DEMO)/model.onnx: $(DEMO)/run/best.pt
	$(PY) export/to_onnx.py $< --out $@

EVAL = $(PY) trt_runtime/eval_dota.py --images $(DEMO)/data/val/images --labels $(DEMO)/data/val/labelTxt

$(DEMO)/eval-torch.json: $(DEMO)/run/best.pt
	$(EVAL) --model $< --json $@

$(DEMO)/eval-onnx.json: $(DEMO)/model.onnx
	$(EVAL) --model $< --json $@ --submission $(DEMO)/submission.zip --draw $(DEMO)/pictures

$(DEMO)/bench.json: $(DEMO)/run/best.pt $(DEMO)/model.onnx
	$(PY) trt_runtime/bench.py --repeat 20 --model $(DEMO)/run/best.pt --model $(DEMO)/model.onnx --json $@

$(DEMO)/report.md: $(DEMO)/eval-torch.json $(DEMO)/eval-onnx.json $(DEMO)/bench.json
	$(PY) trt_runtime/report.py --eval $(DEMO)/eval-torch.json --eval $(DEMO)/eval-onnx.json \
	    --bench $(DEMO)/bench.json --out $@ --plot $(DEMO)/pareto.png

# --- checks -----------------------------------------------------------------------------------------

test: $(VENV)/.built $(PLUGIN) lint
	$(PY) -m pytest $(PYTEST_ARGS)

lint: $(VENV)/.built
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(DEMO)
