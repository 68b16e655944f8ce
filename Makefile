# Two commands for users: `make demo` and `make test`. Each sets up all that it needs in .venv.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install -q -c constraints.txt

.PHONY: demo test test-learn check clean

demo: .venv/demo  ## answer real questions with the embedded model, then run the whole loop, and measure both
	$(BIN)/smallfirst demo

test: .venv/dev  ## run the tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

test-learn: .venv/learn  ## run the tests of training, which need torch
	$(BIN)/python -m pytest tests/learn/test_train.py tests/learn/test_specialise.py

check: .venv/dev  ## lint, types, import contracts, shape
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest tests/test_shape.py

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "smallfirst needs Python 3.11 or newer; $(PYTHON) is older. Set PYTHON=python3.12, say." >&2; exit 1; }
	$(PYTHON) -m venv .venv

.venv/demo: .venv/bin/python pyproject.toml constraints.txt
	@echo "Setting up .venv (once) ..."
	$(PIP) -e '.[demo]'
	@touch $@

.venv/dev: .venv/bin/python pyproject.toml constraints.txt
	@echo "Setting up .venv (once) ..."
	$(PIP) -e '.[dev]'
	@touch $@

.venv/learn: .venv/dev
	$(PIP) -e '.[dev,learn]'
	@touch $@

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis
