# Every target makes its own environment in .venv first. Needed: Python >= 3.11 and make, no root.
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input

# The name of a stamp holds the folder: a tree that was copied or moved is set up anew instead of
# running the code of the tree it came from.
FOLDER := $(shell printf %s '$(CURDIR)' | cksum | cut -d ' ' -f 1)
RUNTIME := $(VENV)/.runtime-$(FOLDER)
DEV := $(VENV)/.dev-$(FOLDER)

export PYTHON

.DEFAULT_GOAL := help
.PHONY: help setup demo test check format bench chaos soak coverage freeze clean

help:
	@echo 'make demo      run one order that succeeds and one that is undone, with their traces and logs'
	@echo 'make test      all tests (PYTEST_ARGS=... for pytest)'
	@echo 'make check     ruff, mypy, import-linter, codespell'
	@echo 'make bench     sagas a second, latency and CPU beside bare Celery'
	@echo 'make chaos     kill processes at random under load and count violations'
	@echo 'make soak      walk larger sagas, and simulate the whole system on many seeds (SEEDS=100000)'
	@echo 'make coverage  branch coverage of make test'
	@echo 'make format    let ruff rewrite what it can'
	@echo 'make setup     only make .venv, with the development tools'
	@echo 'make freeze    write the installed versions to constraints.txt'
	@echo 'make clean     remove .venv and all caches'

$(RUNTIME): pyproject.toml constraints.txt scripts/make-venv
	@scripts/make-venv $(VENV)
	@echo 'Installing what the product needs ...'
	@$(PIP) install --quiet -c constraints.txt -e .
	@touch $@

$(DEV): $(RUNTIME)
	@echo 'Installing what the tests and checks need ...'
	@$(PIP) install --quiet -c constraints.txt -e '.[dev]'
	@touch $@

setup: $(DEV)

demo: $(RUNTIME)
	$(BIN)/saga demo

# Three processes, each with servers of its own: the tests mostly wait for processes. Files go to them in
# the order of tests/order.py, and not by how many tests they have: the longest ones have few.
test: $(DEV)
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

check: $(DEV)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell

format: $(DEV)
	$(BIN)/ruff check --fix-only
	$(BIN)/ruff format

bench: $(DEV)
	$(BIN)/python -m bench

chaos: $(DEV)
	$(BIN)/python -m tests.chaos

SEEDS ?= 20000

soak: $(DEV)
	SAGA_WALK_BOUND=2 $(BIN)/python -m pytest tests/core/test_walk.py -q -rP -n 2 --timeout 3600
	$(BIN)/python -m tests.simulation --seeds $(SEEDS)

coverage: $(DEV)
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest $(PYTEST_ARGS)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

# No file paths, no hosts, and not this project itself.
freeze: $(DEV)
	{ sed -n '/^#/p' constraints.txt; \
	  $(PIP) freeze --exclude-editable --exclude celery-saga-orchestrator | grep -v '@' | LC_ALL=C sort -f; \
	} > constraints.new
	mv constraints.new constraints.txt

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .coverage* htmlcov
