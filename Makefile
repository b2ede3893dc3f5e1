# Two commands do everything: `make demo` and `make test`. Both set up .venv first.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt

INPUT  ?=
PROMPT ?= pencil sketch
ENGINES ?= engines/tiny
OUTPUT ?= demo.mp4
FRAMES ?= 20000

SOURCES := setup.py pyproject.toml constraints.txt $(shell find csrc -type f)

.PHONY: demo test check lint sanitize bench soak engines clean

$(VENV)/base.stamp: $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --editable .
	touch $@

$(VENV)/test.stamp: $(VENV)/base.stamp
	$(PIP) --editable '.[export,test]'
	touch $@

demo: $(VENV)/base.stamp
	$(BIN)/python -m rt.stream $(if $(INPUT),--input "$(INPUT)",--scene) --output "$(OUTPUT)" \
	  --prompt "$(PROMPT)" --engines "$(ENGINES)" --side-by-side

test: $(VENV)/test.stamp
	$(BIN)/python -m pytest

lint: $(VENV)/test.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	find csrc -name '*.h' -o -name '*.cpp' -o -name '*.cu' | xargs $(BIN)/clang-format --dry-run -Werror

sanitize: $(VENV)/test.stamp
	PYTHON=$(BIN)/python csrc/sanitize.sh

check: lint test sanitize

bench: $(VENV)/test.stamp
	$(BIN)/python -m bench.stream --engines "$(ENGINES)"
	$(BIN)/python -m bench.ops

soak: $(VENV)/test.stamp
	$(BIN)/python -m bench.soak --frames $(FRAMES)

engines: $(VENV)/test.stamp
	$(BIN)/python -m export build-engines --model tiny

clean:
	rm -rf build $(VENV) demo.mp4
