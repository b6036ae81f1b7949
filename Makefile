# `make test` and `make demo` do all of their own set-up, in .venv, from Python 3.11 or newer and a C++ compiler.
# The first run builds llama-cpp-python (some minutes); later runs find everything in place.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
WORKERS ?= $(shell nproc 2>/dev/null || sysctl -n hw.ncpu 2>/dev/null || echo 2)

# of `make bench`: GiB of the model that is extended (twice that is needed on disk for a while), and where
SIZE ?= 2
FOLDER ?= .

.PHONY: test demo check docs bench clean

test: $(READY)
	$(BIN)/python -m pytest -n $(WORKERS) $(ARGS)

demo: $(READY)
	$(BIN)/yarn-gguf demo

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(READY)
	$(BIN)/python scripts/make_docs.py

bench: $(READY)
	$(BIN)/python benchmarks/read_header.py
	$(BIN)/python benchmarks/extend.py --size $(SIZE) $(FOLDER)
	$(BIN)/python -m benchmarks.convert $(FOLDER)
	$(BIN)/python -m benchmarks.quantize $(FOLDER)
	$(BIN)/python -m benchmarks.verify $(FOLDER)

$(READY): pyproject.toml constraints.txt scripts/setup.sh
	sh scripts/setup.sh $(PYTHON) $(VENV)
	touch $@

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist
