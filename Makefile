# make quickstart   makes the environment and tunes the built-in model on the built-in task
# make test         makes the environment and runs every check a change must pass

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check --quiet --constraint constraints.txt
PYTEST := $(BIN)/python -m pytest
# Two processes, each with a part of the files until the other has none left: most tests of a file share what it sets up.
PAIR := -n 2 --dist worksteal
# Each test process computes with one thread; two processes share the machine's cores.
export OMP_NUM_THREADS ?= 1

.PHONY: help env env-test quickstart test lint format types fast slow docs docs-check bench soak clean

help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile
	@echo "more targets: env env-test lint format types fast slow docs docs-check bench soak clean"

env: $(VENV)/.core
env-test: $(VENV)/.test

$(VENV)/.core: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Luthier needs Python 3.11 or newer; set PYTHON=python3.11 (this is " + sys.version.split()[0] + ")")'
	$(PYTHON) -m venv $(VENV)
	@echo "Installing Luthier and what it needs into $(VENV) (a few minutes the first time) ..."
	$(PIP) --editable .
	@touch $@

$(VENV)/.test: $(VENV)/.core
	@echo "Installing what the tests need into $(VENV) ..."
	$(PIP) --editable '.[test,bench,hub,lm-eval]'
	@touch $@

quickstart: env
	env -u OMP_NUM_THREADS $(BIN)/luthier quickstart

# The documentation is checked by fast tests; fast and slow ones in one go, since tests are collected once and no core idles.
test: lint types
	$(PYTEST) $(PAIR) -m "not soak"

lint: env-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: env-test
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

types: env-test
	$(BIN)/mypy

fast: env-test
	$(PYTEST) $(PAIR) -m "not slow and not soak"

slow: env-test
	$(PYTEST) $(PAIR) -m slow

docs: env-test
	$(BIN)/luthier schema --markdown > docs/recipe.md
	$(BIN)/luthier methods --markdown > docs/methods.md
	$(BIN)/python -m bench.methods --page >> docs/methods.md

docs-check: env-test
	$(PYTEST) -q tests/test_docs.py

bench: env-test
	env -u OMP_NUM_THREADS $(BIN)/python -m bench $(ARGS)

soak: env-test
	$(PYTEST) -m soak

clean:
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
