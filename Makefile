# make install    a virtual environment in .venv with the tested versions
# make demo       train a small vision model on handwritten digits and talk to it
# make demo-draw  teach a small language model to draw them
# make demo-paint teach a small diffusion model to paint shapes
# make demo-robot teach a small robot to pick things up, and to keep off hot floor
# make quick      losses, policies, datasets, settings and the contract, in two minutes
# make test       every invariant, in about fifteen minutes on two cores; ARGS='tests/models' runs a part
# make extended   what `make test` leaves out: the other combinations, the other lessons, the whole demo; about two hours
# make bench      the benchmarks of docs/benchmarks.md
# make lint       style
# make docs       the reference pages that are made from code
# make docs-site  the pages of docs/ as a site with search and an API reference, in site/

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed
WORKERS ?= 2

# One thread a process: tests and ranks run side by side and would otherwise fight over the cores.
export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM ?= false
export UV_HTTP_TIMEOUT ?= 600
# Without compiled modules a process takes twice as long to import torch and its company, and there are many processes.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: install demo demo-draw demo-paint demo-robot quick test extended browser bench lint format docs docs-site clean
.DEFAULT_GOAL := install

install: $(STAMP)

$(PY):
	$(PYTHON) -m venv $(VENV)

# uv resolves and unpacks in parallel; where the machine has none, pip brings it into the environment.
UV := $(shell uv --version >/dev/null 2>&1 && echo uv || echo $(VENV)/bin/uv)
UV_INSTALL := $(UV) pip install --quiet --python $(PY) --constraint constraints.txt --override overrides.txt --editable

$(VENV)/bin/uv: | $(PY)
	$(PY) -m pip install --quiet uv

$(STAMP): pyproject.toml setup.py constraints.txt overrides.txt | $(PY) $(filter $(VENV)/bin/uv,$(UV))
	$(UV_INSTALL) '.[dev]'
	touch $@

demo: install
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" bash scripts/demo/run.sh

demo-draw: install
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" bash scripts/demo_draw/run.sh

demo-paint: install
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" bash scripts/demo_paint/run.sh

demo-robot: install
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" bash scripts/demo_robot/run.sh

# Tests spread one by one, but for groups that share what is costly to make (tests/conftest.py), the longest first.
PYTEST := HF_HUB_OFFLINE=1 PYTHONHASHSEED=0 $(PY) -m pytest -n $(WORKERS) --dist loadgroup --no-loadscope-reorder

quick: install
	$(PYTEST) tests/losses tests/policies tests/datasets tests/configs tests/contract $(ARGS)

test: install
	$(PYTEST) $(ARGS)

extended: install browser
	$(PYTEST) -m extended $(ARGS)

browser:
	bash scripts/browser.sh

bench: install
	$(UV_INSTALL) '.[dev,bench]'
	$(PY) -m scripts.bench $(ARGS)

lint: install
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

format: install
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

docs: install
	$(PY) -m scripts.document

docs-site: install
	$(PY) -m mkdocs build --strict --quiet

clean:
	rm -rf build dist site *.egg-info .pytest_cache .ruff_cache
