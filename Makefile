PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
WORKERS ?= auto
TASK ?= Reach-UR5e-JointPos
# Tests write names of settings wrongly to see what is said of them.
MISTYPED := --skip '*.onnx,*.pt,*.pth,*.zip' --ignore-words tests/data/mistyped.txt

MJLAB := .venv-mjlab
ISAACLAB := .venv-isaaclab
PYTHON312 ?= python3.12

.PHONY: install test test-mjlab test-isaaclab docs train bench format clean

install: $(INSTALLED)

# torch goes first and pinned: asked for by another package it would bring the newest build with gigabytes of CUDA.
$(INSTALLED): setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

# What is compiled is kept, whatever the environment says: a hundred processes of the tests import it.
test: export PYTHONDONTWRITEBYTECODE =
test: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	$(BIN)/codespell $(MISTYPED) tests
	$(BIN)/mypy
	$(BIN)/python -m pytest -n $(WORKERS) --maxprocesses 8 --dist worksteal

# mjlab is large and pins versions of its own, so its tests have an environment to themselves.
$(MJLAB)/.installed: setup.cfg
	$(PYTHON) -m venv $(MJLAB)
	$(MJLAB)/bin/python -m pip install --quiet torch==2.13.0
	$(MJLAB)/bin/python -m pip install --quiet torch==2.13.0 torchvision==0.28.0 mjlab==1.6.0 -e . pytest pytest-timeout
	touch $@

test-mjlab: $(MJLAB)/.installed
	$(MJLAB)/bin/python -m pytest tests/test_mjlab.py tests/test_deployment_mjlab.py tests/test_registered.py tests/test_examples_mjlab.py \
	    tests/test_doctor.py::test_a_task_of_mjlab_is_healthy \
	    tests/test_simulators.py

# Isaac Lab 3 is for Python 3.12, and brings torch with CUDA: 8 GB. The first run compiles kernels for some minutes.
$(ISAACLAB)/.installed: setup.cfg
	$(PYTHON312) -m venv $(ISAACLAB)
	$(ISAACLAB)/bin/python -m pip install --quiet isaaclab==3.0.0 -e . pytest pytest-timeout
	touch $@

test-isaaclab: $(ISAACLAB)/.installed
	$(ISAACLAB)/bin/python -m pytest tests/test_isaaclab3.py tests/test_simulators.py --timeout 1200

# The site comes into build/site. What it is built with is small; once it is there `make test` builds the site as well.
$(VENV)/.docs: $(INSTALLED)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[docs]'
	touch $@

docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# Trains, evaluates, exports and checks the file; then the file alone is given over 1,000 commands.
# More settings: make train ARGS="--seed 2"
train: install
	$(BIN)/rlcore train --task $(TASK) --name make-train $(ARGS)
	$(BIN)/rlcore eval --onnx $$(ls -t runs/*/*/*-make-train*/export/policy.onnx | head -n 1) --num-envs 320

bench: install
	$(BIN)/python benchmarks/throughput.py $(ARGS)

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) $(MJLAB) $(ISAACLAB) build dist htmlcov *.egg-info .coverage .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
