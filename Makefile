# Two commands do everything on a fresh machine:  make demo   and   make test
# Both own a virtual environment, .venv, and are quick the second time.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PY     := $(BIN)/python
EXTRAS := train,export,rtx,test,dev
# JetPack's TensorRT lies in the system's Python:  make demo VENV_FLAGS=--system-site-packages
VENV_FLAGS ?=
DEMO   ?= demo

CORE_SOURCES := $(wildcard plugins/core/*.hpp plugins/cpu/*.hpp plugins/cpu/*.cpp plugins/python/*.cpp)

# OpenMP's threads sleep while they wait: spinning, they slow every busy neighbour on few cores by an order.
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: help setup demo test lint clean
.DELETE_ON_ERROR:

help:
	@echo "make demo    set up, then synthetic DOTA -> train -> ONNX -> FP16, INT8, engines -> table, plot and pictures in $(DEMO)/"
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
	test -x $(PY) || $(PYTHON) -m venv $(VENV_FLAGS) $(VENV)
	$(PY) -m pip install --quiet --upgrade pip uv "setuptools>=77" "pybind11>=2.12"
	# uv fetches the wheels side by side, three times as fast; pip where only pip knows the way out, and where
	# the system's packages count: uv would put others in place of JetPack's PyTorch.
	test -z "$(VENV_FLAGS)" \
	    && $(BIN)/uv pip install --python $(PY) --no-build-isolation --editable ".[$(EXTRAS)]" \
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
	@echo "Pictures: $(DEMO)/pictures/   Plot: $(DEMO)/pareto.png   Table: $(DEMO)/report.md   Training: $(DEMO)/run/page.html"

$(DEMO)/data/classes.txt: $(VENV)/.built
	$(PY) -m rgfl.dota.synthetic --out $(DEMO)/data --train 720 --val 60 --seed 7 --objects 1.6

$(DEMO)/run/best.pt: $(DEMO)/data/classes.txt
	$(PY) -m rgfl.train --recipe demo --data $(DEMO)/data --out $(DEMO)/run

$(DEMO)/model.onnx: $(DEMO)/run/best.pt
	$(PY) export/to_onnx.py $< --out $@

# FP16's accuracy without a GPU; INT8 as engines get it, and the same for ONNX Runtime's kernels.
$(DEMO)/model-fp16-rounded.onnx: $(DEMO)/model.onnx
	$(PY) export/graph.py $< --rounding --out $@

$(DEMO)/model-int8.onnx: $(DEMO)/model.onnx
	$(PY) export/quantize.py $< --calib $(DEMO)/data/train/images --images 48 --out $@ \
	    --cpu-variant $(DEMO)/model-int8-cpu.onnx

$(DEMO)/model-int8-cpu.onnx: $(DEMO)/model-int8.onnx ;

# Built by TensorRT where it and a GPU are, with RotatedNMS inside, else by TensorRT for RTX, which needs none to
# build; NMS behind its engines runs on the GPU by the same library. What is here, the environment's Python knows,
# and not before there is one.
HAS_GPU = $(PY) -c 'from rgfl.trt_runtime.machine import find_gpu; raise SystemExit(not find_gpu())'

.PHONY: engine-plugin
engine-plugin: $(VENV)/.built
	@if $(PY) -c 'import tensorrt' 2>/dev/null; then $(MAKE) $(PLUGIN); \
	elif $(HAS_GPU); then $(MAKE) $(PLUGIN) || echo "without the plugin, NMS behind engines runs on the CPU"; fi

$(DEMO)/model.engine $(DEMO)/model.fp16.engine: $(DEMO)/model.onnx | engine-plugin
	$(PY) export/to_trt.py $< $(if $(findstring fp16,$@),--fp16) --out $@

$(DEMO)/model-int8.engine: $(DEMO)/model-int8.onnx | engine-plugin
	$(PY) export/to_trt.py $< --int8 --out $@

ENGINES := $(addprefix $(DEMO)/,model.engine model.fp16.engine model-int8.engine)
SCORED  := $(addprefix $(DEMO)/,run/best.pt model.onnx model-fp16-rounded.onnx model-int8.onnx model-int8-cpu.onnx)
TIMED   := $(addprefix $(DEMO)/,run/best.pt model.onnx model-int8-cpu.onnx)
SCORES  := $(addsuffix .eval.json,$(SCORED))

$(DEMO)/model.onnx.eval.json: EVAL_FLAGS = --submission $(DEMO)/submission.zip --draw $(DEMO)/pictures

EVALUATE = $(PY) trt_runtime/eval_dota.py --images $(DEMO)/data/val/images --labels $(DEMO)/data/val/labelTxt

$(SCORES): %.eval.json: %
	$(EVALUATE) --model $< --json $@ $(EVAL_FLAGS)

# The engines that run on this machine, a line each: none without a GPU. One that does not run costs its row only.
RAN := $(DEMO)/engines.ran

$(RAN): $(ENGINES)
	@: > $@.new
	@if $(HAS_GPU); then for engine in $(ENGINES); do \
	    echo "$(EVALUATE) --model $$engine"; \
	    if $(EVALUATE) --model $$engine --json $$engine.eval.json; then echo $$engine >> $@.new; \
	    else echo "$$engine did not run: its row has no AP and no latency; rm $@ && make demo tries again"; fi; \
	done; fi
	@mv $@.new $@

# Behind all else, so that no other job shares the cores with it, with -j either.
$(DEMO)/bench.json: $(TIMED) $(RAN) | $(SCORES)
	$(PY) trt_runtime/bench.py --repeat 20 $(addprefix --model ,$(TIMED)) $$(sed 's/^/--model /' $(RAN)) --json $@

$(DEMO)/report.md: $(SCORES) $(DEMO)/bench.json $(RAN)
	$(PY) trt_runtime/report.py $(addprefix --eval ,$(SCORES)) $$(sed 's/.*/--eval &.eval.json/' $(RAN)) \
	    --bench $(DEMO)/bench.json $(addprefix --engine ,$(ENGINES)) --out $@ --plot $(DEMO)/pareto.png

# --- checks -----------------------------------------------------------------------------------------

test: $(VENV)/.built $(PLUGIN) lint
	$(PY) -m pytest $(PYTEST_ARGS)

lint: $(VENV)/.built
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(DEMO)
