# Needs Python >= 3.11, pip and make; everything else goes into .venv.
PYTHON ?= python3
JOBS ?= 2
PYTEST_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help venv demo test test-slow lint format docs clean

help: ## say what the targets do
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 12

venv: $(STAMP) ## create or update .venv

# curvlinops is installed without its dependencies: they include torchvision, which nothing here
# uses and which, in a build that does not fit torch, keeps transformers from being imported.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
	  "bif needs Python 3.11 or newer, $(PYTHON) is %d.%d: make PYTHON=/path/to/python3.11" % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[dev,demo,report,maps]'
	$(BIN)/python -m pip install --constraint constraints.txt --no-deps curvlinops-for-pytorch
	@touch $@

demo: $(STAMP) ## run the demo into bif-demo/
	$(BIN)/bif demo

# One thread a worker: the workers already fill the cores.
test: $(STAMP) ## run the test-suite (PYTEST_ARGS="-k name" for a part, JOBS for more workers)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadgroup $(PYTEST_ARGS)

test-slow: $(STAMP) ## run the slow tests, one after another
	@$(BIN)/python -m pytest -m slow $(PYTEST_ARGS)

lint: $(STAMP) ## check style, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: $(STAMP) ## mend style and format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(STAMP) ## build the documentation into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean: ## remove everything made by the targets above
	rm -rf $(VENV) build dist site bif-demo .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
