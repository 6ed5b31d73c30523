# make demo: the main job on real digits.   make test: the tests.   Each sets itself up first (a venv in .venv).
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-slow test-kill check dist setup docs docs-site test-lowest

setup: .venv/ready

.venv/ready: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -qq --disable-pip-version-check --no-compile --editable '.[demo,dev,clients]'
	$(BIN)/python -m compileall -qq -j 0 .venv || true  # on all cores, where pip takes one
	touch $@

demo: setup
	$(BIN)/dit-shd demo

test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" -n auto --maxprocesses 4 --dist worksteal

test-slow: setup
	$(BIN)/python -m pip install -qq --disable-pip-version-check --editable '.[docs]'
	$(BIN)/python -m pytest -m slow

test-kill: setup
	$(BIN)/python -m pytest -k kill tests/training/test_kill.py tests/diffusion/test_generation.py tests/data/test_encoding.py tests/training/test_run_folder.py tests/training/test_run_restarts.py

docs: setup
	$(BIN)/python docs/build.py

docs-site: setup
	$(BIN)/python -m pip install -qq --disable-pip-version-check --editable '.[docs]'
	$(BIN)/python docs/make_site.py

test-lowest:
	.ci/lowest

dist: setup
	rm -rf dist
	$(BIN)/python -m pip install -qq --disable-pip-version-check build twine check-wheel-contents
	$(BIN)/python -m build --outdir dist .
	$(BIN)/twine check --strict dist/*
	$(BIN)/check-wheel-contents --toplevel dit_shd dist/*.whl

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/pyright --pythonpath $(BIN)/python
