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
PORT   ?= 8000

SOURCES := setup.py pyproject.toml constraints.txt $(shell find csrc -type f)

.PHONY: gpu gpu-quick performance ptxas demo test check lint sanitize peers bench bench-peers soak engines clean live browser network peers-network

$(VENV)/base.stamp: $(SOURCES)
	test -x $(BIN)/pip || $(PYTHON) -m venv --clear $(VENV)
	$(PIP) --editable .
	touch $@

$(VENV)/test.stamp: $(VENV)/base.stamp bench/peers/requirements.txt
	$(PIP) --editable '.[export,test]'
	$(PIP) --no-deps --upgrade --target build/peers --requirement bench/peers/requirements.txt
	touch $@

peers: $(VENV)/test.stamp

# Through the environment, so that a prompt may hold quotes.
demo: export DEMO_INPUT = $(INPUT)
demo: export DEMO_PROMPT = $(PROMPT)
demo: export DEMO_OUTPUT = $(OUTPUT)
demo: $(VENV)/base.stamp
	$(BIN)/python -m rt.stream $(if $(INPUT),--input "$$DEMO_INPUT",--scene) \
	  --output "$$DEMO_OUTPUT" --prompt "$$DEMO_PROMPT" --engines "$(ENGINES)" --side-by-side

$(VENV)/serve.stamp: $(VENV)/base.stamp
	$(PIP) --editable '.[serve]'
	touch $@

# The page: http://localhost:8000/
live: $(VENV)/serve.stamp
	$(BIN)/python -m rt.serve --engines "$(ENGINES)" --steps 4 --port "$(PORT)"

# The tests that drive the page; the others leave them out where no chromium is.
browser: $(VENV)/test.stamp
	@command -v chromium >/dev/null || { echo "make browser: apt-get install chromium"; exit 1; }
	RT_BROWSER_SECONDS=60 $(BIN)/python -m pytest tests/rt/serve/test_page.py tests/rt/serve/test_minute.py

# Debian's ffmpeg, nginx with its RTMP module, GStreamer's RTSP server: the other side of the wire.
PEERS := ffmpeg nginx-light libnginx-mod-rtmp python3-gi gir1.2-gst-rtsp-server-1.0 \
  gstreamer1.0-plugins-good gstreamer1.0-plugins-bad

peers-network:
	dpkg -s $(PEERS) >/dev/null 2>&1 || { timeout 30 apt-get update -qq && \
	  DEBIAN_FRONTEND=noninteractive timeout 60 apt-get install -qq -y --no-install-recommends $(PEERS) >/dev/null; }

# The tests that talk to them; the others leave them out where they are not.
network: peers-network $(VENV)/test.stamp
	$(BIN)/python -m pytest tests/rt/test_network.py tests/rt/test_outlets.py

test: $(VENV)/test.stamp
	$(BIN)/python -m pytest

lint: $(VENV)/test.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	find csrc -name '*.h' -o -name '*.cpp' -o -name '*.cu' | xargs $(BIN)/clang-format --dry-run -Werror

sanitize: $(VENV)/test.stamp
	PYTHON=$(BIN)/python csrc/sanitize.sh

# What the compiler says of every kernel on every architecture: needs nvcc, no GPU.
ptxas:
	$(PYTHON) csrc/ptxas.py

# Prepares, checks and measures on the GPU present, in sections of at most 8 minutes; rows go to
# $(RESULTS), and what is there is not repeated. A Python that has torch and CuPy is used as it is.
# WITHIN: seconds after which it ends. COMMIT: which sources these are, where they are no repository.
RESULTS ?= bench/results
WITHIN  ?=
MEASURE  = -m bench.gpu --results "$(RESULTS)" $(if $(WITHIN),--within $(WITHIN)) \
  $(if $(filter gpu-quick,$@),--quick)

ifneq ($(filter gpu gpu-quick,$(MAKECMDGOALS)),)
ifeq ($(shell nvidia-smi --list-gpus 2>/dev/null | grep '^GPU'),)
# GNU make ends with 2 whatever failed, and with 1 only where it was asked (-q) whether all is up to
# date, and it is not. It then runs nothing, so what is wrong is said here.
$(shell echo "make $(firstword $(filter gpu gpu-quick,$(MAKECMDGOALS))): this machine has no" \
  "NVIDIA GPU that nvidia-smi can list" >&2)
MAKEFLAGS := q$(MAKEFLAGS)
gpu gpu-quick:
	@false
else ifeq ($(shell $(PYTHON) -c "import torch, cupy" >/dev/null 2>&1 && echo yes),yes)
gpu gpu-quick:
	PYTHONPATH=python:. $(PYTHON) $(MEASURE)
else
gpu gpu-quick: $(VENV)/test.stamp
	$(PIP) "cupy-cuda$$(nvcc --version | sed -n 's/.*release \([0-9]*\).*/\1/p')x>=13"
	$(BIN)/python $(MEASURE)
endif
endif

# docs/performance.md from the rows of build/bench (this machine's processor) and bench/results.
performance: $(VENV)/test.stamp
	$(BIN)/python -m bench.simulated
	$(BIN)/python -m bench.performance --collect

check: lint test sanitize

bench: $(VENV)/test.stamp
	$(BIN)/python -m bench.stream --engines "$(ENGINES)"
	$(BIN)/python -m bench.ops

# Beside the released package and eager diffusers: equal weights, inputs and outputs.
bench-peers: peers
	$(BIN)/python -m bench.peers

soak: $(VENV)/test.stamp
	$(BIN)/python -m bench.soak --frames $(FRAMES)

engines: $(VENV)/test.stamp
	$(BIN)/python -m export build-engines --model tiny --precision int16

clean:
	rm -rf build $(VENV) demo.mp4
