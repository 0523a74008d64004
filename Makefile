# `make run` and `make test` do all the set-up on a machine that has Python 3 and make.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin

# Options for pytest, such as PYTEST_ARGS=--cov.
PYTEST_ARGS ?=
# Each of the two processes begins with half of the files, so fixtures of a file are made once, and
# takes tests of the other when it has finished.
PYTEST := $(BIN)/python -m pytest -n 2 --dist worksteal

# The CPU build of PyTorch that the parity table was measured with.
TORCH  ?= torch==2.13.0

# Containers often set it; the tests start the program hundreds of times, and each would compile it.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: run test test-all test-peers test-gpu test-browser check format docs docs-serve pictures clean help

run: $(VENV)/installed ## install, verify, train the MLP, a small sweep
	$(BIN)/adadelta verify --ctx cpu
	$(BIN)/adadelta run mlp
	$(BIN)/adadelta sweep sweep-rosenbrock
	@echo 'More: . $(BIN)/activate, then adadelta --help. All results on one page, to open in a browser:'
	@$(BIN)/adadelta report results/verify results/run results/sweep --out results

test: $(VENV)/installed-test ## run the tests without the slow ones: some minutes
	$(PYTEST) -m 'not slow' $(PYTEST_ARGS)

test-all: $(VENV)/installed-test ## run all tests
	$(PYTEST) $(PYTEST_ARGS)

test-peers: $(VENV)/installed-peers ## run the tests that need PyTorch or JAX
	$(PYTEST) -m peers tests/implementations tests/pytorch tests/test_api.py
	$(BIN)/python examples/torch_training.py
	$(BIN)/adadelta verify --peers --out results/peers
	$(BIN)/adadelta bench --sizes 1e5 --impl numpy-fused --peers --processes 2 --out results/peers

# Without a GPU, the tests are skipped, and the last command names what is missing and the fix.
test-gpu: $(VENV)/installed-gpu $(VENV)/installed-test ## run the tests that need a GPU, verify and bench there
	$(BIN)/python -m pytest -m gpu
	$(BIN)/adadelta verify --ctx gpu --out results/gpu/verify
	$(BIN)/adadelta bench --ctx gpu --sizes 1e6,1e7,1e8 --out results/gpu/bench

# Without chromium on the PATH, the tests are skipped, and the reason names the fix.
test-browser: $(VENV)/installed-browser $(VENV)/installed-test ## test the page of `adadelta report` in Chromium
	$(BIN)/python -m pytest tests/report

check: $(VENV)/installed-check ## check style, spelling, types and layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/installed-check ## let ruff fix what it can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Not --quiet: it hides warnings, and --strict counts only those that it sees.
docs: $(VENV)/installed-docs ## build the documentation site in site/; a broken link fails
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo 'Open site/index.html in a browser.'

docs-serve: $(VENV)/installed-docs ## show the site on http://127.0.0.1:8000, built again at each change
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve

pictures: $(VENV)/installed ## draw the pictures of the documentation again
	$(BIN)/python docs/tools/pictures.py

clean: ## remove .venv, the site and the caches
	rm -rf $(VENV) site .coverage .pytest_cache .mypy_cache .ruff_cache .import_linter_cache

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1: /p' $(MAKEFILE_LIST)

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
