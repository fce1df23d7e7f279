# `make demo` and `make test` do everything on a fresh machine; the rest are their parts.
.DEFAULT_GOAL := help
.PHONY: help install demo test test-all lint clean

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export RAY_USAGE_STATS_ENABLED = 0

help:
	@echo "make demo   install, build a data set, run 2 configurations x 3 seeds, print the table"
	@echo "make test   install, lint, type-check, run the whole test suite"
	@echo "make test-all  the slow tests as well (soak, cut links, eight ranks)"
	@echo "make lint   ruff, ruff format --check, mypy"
	@echo "make clean  remove the virtual environment (data/ and runs/ stay)"

# The stamp is newer than pyproject.toml exactly when the environment matches it.
$(VENV)/.installed: pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "make: $(PYTHON) not found; install Python 3.11 or newer (Debian: apt-get install python3-venv)"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "make: $(PYTHON) is older than 3.11; run: make PYTHON=python3.11 ..."; exit 1; }
	@echo "Installing into $(VENV) (a few minutes the first time) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

install: $(VENV)/.installed

demo: install
	@$(BIN)/sweeper data sample --vocab-size 1024 --out data
	@$(BIN)/sweeper run jobs/specs/demo.toml

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-all: lint
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "slow or not slow"

clean:
	rm -rf $(VENV)
