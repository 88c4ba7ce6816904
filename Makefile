# Two commands: `make build` sets up and runs the default pipeline, `make test` checks everything.
# PYTHON chooses the interpreter that .venv is made with; it must be 3.11 or newer.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: build test test-slow lint types clean

build: $(STAMP)
	$(BIN)/edgekiln build

test: lint types
	$(BIN)/python -m pytest -m "not slow"

test-slow: $(STAMP)
	$(BIN)/python -m pytest -m slow

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# Checkers see nothing of an editable install, so what ships is installed beside the tree and checked there.
types: $(STAMP)
	rm -rf build
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --upgrade --target build/typed .
	MYPYPATH=build/typed $(BIN)/mypy -p edgekiln

$(STAMP): pyproject.toml constraints.txt setup.py
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt setuptools
	$(BIN)/python -m pip install -c constraints.txt -e '.[dev]'
	touch $(STAMP)

clean:
	rm -rf build artifacts .mypy_cache .pytest_cache .ruff_cache
