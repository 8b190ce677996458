# Everything runs from .venv, which every target brings up to date first. `make` alone lists the targets.

PYTHON ?= python3
PIP_FLAGS ?= --quiet --quiet
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help venv test programs ranks executors trainers lint docs same-bits demo mutants clean

help:  ## list the targets
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

venv: .venv/.stamp  ## create .venv, or bring it up to date

# An environment whose Python runs, is recent enough and has pip is updated in place; any other is made anew.
RECENT := sys.version_info >= (3, 11)
.venv/.stamp: pyproject.toml constraints.txt requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(None if $(RECENT) else "Evenhand needs Python 3.11 or newer, \
	and $(PYTHON) is %d.%d. Name another: make PYTHON=python3.12" % sys.version_info[:2])'
	@$(BIN)/python -c 'import sys, pip; sys.exit(not $(RECENT))' 2>/dev/null || $(PYTHON) -m venv --clear .venv
	@echo "Installing Evenhand and its pinned dependencies into .venv; this takes a minute or two."
	@test -z "$(CI)" || $(BIN)/python -m pip install $(PIP_FLAGS) --require-hashes --no-deps -r requirements.lock
	@$(BIN)/python -m pip install $(PIP_FLAGS) -c constraints.txt -e '.[app,dev,docs]'
	@touch $@

test: venv  ## run the tests and the examples in the docstrings
	$(BIN)/pytest -n auto --maxprocesses 8 --dist worksteal

programs: venv  ## hold the laws against many drawn programs (minutes; DRAWS=100 of each kind and method)
	EVENHAND_PROGRAMS=$(or $(DRAWS),100) $(BIN)/pytest tests/test_programs.py -n auto --maxprocesses 8 --dist worksteal

trainers: .venv-trainers/.stamp  ## hold the examples for trainers against the bare loop (minutes, an environment of its own)
	.venv-trainers/bin/python benchmarks/trainers.py

.venv-trainers/.stamp: pyproject.toml examples/trainers/constraints.txt
	$(PYTHON) -m venv --clear .venv-trainers
	.venv-trainers/bin/python -m pip install $(PIP_FLAGS) -c examples/trainers/constraints.txt -e . accelerate lightning transformers
	@touch $@
ranks: venv  ## hold every method, slot and place on two and three processes against one (half a processor hour; goes on where it was stopped)
	nice -n 19 $(BIN)/python benchmarks/ranks.py
	$(BIN)/python benchmarks/ranks.py --summary

executors: .venv-executors/.stamp  ## kill workers of Ray and of submitit in mid-run (minutes, an environment of its own)
	.venv-executors/bin/python benchmarks/executors.py

.venv-executors/.stamp: pyproject.toml constraints.txt
	$(PYTHON) -m venv --clear .venv-executors
	.venv-executors/bin/python -m pip install $(PIP_FLAGS) -c constraints.txt -e '.[app,ray,slurm]'
	@touch $@

lint: venv  ## check style, formatting and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

docs: venv  ## build the documentation into docs/_build, and check its links
	rm -rf docs/_build
	$(BIN)/sphinx-build --fail-on-warning --keep-going --quiet docs docs/_build
	$(BIN)/python docs/extensions/links.py docs/_build
	@echo "Open docs/_build/index.html"

same-bits: venv  ## check that every recipe still trains to the same bits (four minutes)
	$(BIN)/python benchmarks/same_bits.py

demo: venv  ## one network that reads, cleans and straightens noisy digits, or three? a verdict
	rm -rf evenhand-demo
	$(BIN)/evenhand compare scans --recipes single-task,sg,uncertainty,central --references all \
	  --splits 5 --workers 2 --out evenhand-demo

mutants: venv  ## plant bugs in a copy of the source and see which tests notice; half an hour
	nice -n 19 $(BIN)/python benchmarks/mutants.py --planted --drawn 25

clean:  ## delete .venv, caches and the demo's results
	rm -rf .venv .venv-trainers .venv-executors build dist evenhand-demo .hypothesis .mypy_cache .pytest_cache .ruff_cache \
	  docs/_build docs/methods docs/api docs/papers
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
