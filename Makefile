# `make run` and `make test` do all the set-up on a machine that has Python 3 and make.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin

# The CPU build of PyTorch that the parity table was measured with.
TORCH  ?= torch==2.13.0

.PHONY: run test test-all test-peers test-gpu check format clean

run: $(VENV)/installed
	$(BIN)/adadelta verify --ctx cpu
	$(BIN)/adadelta run mlp
	@echo 'The plots: results/verify/verify.png and results/run/mlp/loss.png'
	@echo 'More: . $(BIN)/activate, then adadelta --help'

# What takes a few minutes, without the slow ones; CI runs all.
test: $(VENV)/installed-test
	$(BIN)/python -m pytest -n 2 -m 'not slow'

test-all: $(VENV)/installed-test
	$(BIN)/python -m pytest -n 2

# With PyTorch and JAX beside it: what needs one of them, which `make test` skips.
test-peers: $(VENV)/installed-peers
	$(BIN)/python -m pytest -n 2 tests/implementations
	$(BIN)/adadelta verify --peers --out results/peers
	$(BIN)/adadelta bench --sizes 1e5 --impl numpy-fused --peers --processes 2 --out results/peers

# On a machine with a GPU: what needs one, which `make test` skips. Elsewhere, the tests are skipped
# with the reason, and the last command says what is missing and how to mend it.
test-gpu: $(VENV)/installed-gpu $(VENV)/installed-test
	$(BIN)/python -m pytest -m gpu
	$(BIN)/adadelta verify --ctx gpu --out results/gpu/verify
	$(BIN)/adadelta bench --ctx gpu --sizes 1e6,1e7,1e8 --out results/gpu/bench

check: $(VENV)/installed-check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/installed-check
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/installed-peers: pyproject.toml $(VENV)/installed-test
	$(BIN)/python -m pip install --quiet '$(TORCH)'
	$(BIN)/python -m pip install --quiet --editable '.[torch,jax]'
	touch $@

$(VENV)/installed-%: pyproject.toml $(VENV)/installed
	$(BIN)/python -m pip install --quiet --editable '.[$*]'
	touch $@
