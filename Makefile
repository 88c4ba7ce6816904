# Two commands: `make build` sets up and runs the default pipeline, `make test` checks everything.
# PYTHON chooses the interpreter that .venv is made with; it must be 3.11 or newer.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
BROWSER := $(VENV)/.browser
CONVERTER := $(VENV)/llama.cpp

# Damaged inputs for each parser of `make fuzz`.
INPUTS ?= 20000
SEED ?= 1

.PHONY: build test test-slow fuzz lint types docs clean

build: $(STAMP)
	$(BIN)/edgekiln build

test: lint types $(BROWSER) $(CONVERTER)
	$(BIN)/python -m pytest -m "not slow and not alone" --numprocesses auto --dist loadfile
	$(BIN)/python -m pytest -m "not slow and alone"

test-slow: $(STAMP) $(CONVERTER)
	$(BIN)/python -m pytest -m slow
	$(BIN)/python -m pytest -m "hypothesis and not slow" --hypothesis-profile=search

fuzz: $(STAMP)
	PYTHONPATH=tests $(BIN)/python tests/fuzz.py --inputs $(INPUTS) --seed $(SEED)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# Checkers see nothing of an editable install, so what ships is installed beside the tree and checked there: as Linux,
# Windows and macOS have it, and as the newest Python does.
types: $(STAMP)
	rm -rf build
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --upgrade --target build/typed .
	for flags in "" "--platform win32" "--platform darwin" "--python-version 3.13"; do \
	    echo "mypy $$flags"; \
	    MYPYPATH=build/typed $(BIN)/mypy --cache-dir ".mypy_cache/$${flags##* }" $$flags -p edgekiln || exit 1; \
	done

# What is written from the code: the reference and the JSON Schemas.
docs: $(STAMP)
	$(BIN)/python -m edgekiln.reference_docs docs/reference
	$(BIN)/edgekiln schema --all docs/schema

$(STAMP): pyproject.toml constraints.txt setup.py
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt setuptools
	$(BIN)/python -m pip install -c constraints.txt -e '.[dev]'
	touch $(STAMP)

# The HTML report is looked at in the system's own Chromium; where there is none and it cannot be installed, those tests
# are skipped, and the next `make test` tries again.
$(BROWSER): $(STAMP)
	@if command -v chromium || command -v chromium-browser || command -v google-chrome; then touch $@; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null && apt-get update --quiet \
	    && DEBIAN_FRONTEND=noninteractive apt-get install --quiet --yes chromium; then touch $@; \
	else echo "There is no Chromium here, so the browser tests will be skipped: install one, or run make as root."; fi

# Good artifacts of others' tools: llama.cpp's converter is in no package, but in the source distribution of one. Where it
# cannot be fetched, tests that need it are skipped, and the next `make test` tries again.
$(CONVERTER): $(STAMP)
	@$(BIN)/python tests/foreign.py $@ && touch $@ \
	|| echo "llama.cpp's converter cannot be fetched, so the tests with its files will be skipped."

clean:
	rm -rf build artifacts .mypy_cache .pytest_cache .ruff_cache
