# `make demo` and `make test` do everything on a fresh machine; the rest are their parts.
.DEFAULT_GOAL := help
.PHONY: help install packages demo test test-all lint clean

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

# What some tests use and skip without: a browser for the dashboard, network namespaces.
# Installed where that is nobody's decision but ours: as root, by apt.
packages:
	@if test "$$(id -u)" = 0 && command -v apt-get >/dev/null; then \
		for pair in chromium:chromium ip:iproute2; do \
			command -v $${pair%%:*} >/dev/null && continue; \
			echo "Installing Debian's $${pair##*:} for the tests ..."; \
			{ apt-get -qq update && apt-get -qq install -y --no-install-recommends $${pair##*:}; } \
				>/dev/null 2>&1 || echo "make: $${pair##*:} cannot be installed; some tests are skipped"; \
		done; \
	fi

demo: install
	@$(BIN)/sweeper data sample --vocab-size 1024 --out data
	@$(BIN)/sweeper run jobs/specs/demo.toml

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint packages
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-all: lint packages
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "slow or not slow"

clean:
	rm -rf $(VENV)
