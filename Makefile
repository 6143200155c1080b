# `make demo`, `make test`, `make deployment` and `make guard` need Python 3.11 or newer, make and git; the rest they install into .venv.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
STAMP := $(VENV)/.installed

.PHONY: demo test deployment guard lint bench clean

demo: $(STAMP)
	$(VENV)/bin/fedunlearn run quickstart

test: $(STAMP)
	$(VENV)/bin/python -m pytest -n 2 --dist worksteal

deployment: $(STAMP)
	$(VENV)/bin/python -m pytest --long -m long tests/flower/test_deployment.py tests/flower/test_flower_document.py

guard: $(STAMP)
	$(VENV)/bin/python -m pytest --long tests/test_benchmarks.py -k $(or $(ONLY),guard)

lint: $(STAMP)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

bench: $(STAMP)
	$(VENV)/bin/python benchmarks/engine.py --busy --profile
	$(VENV)/bin/python benchmarks/scale.py
	$(VENV)/bin/python benchmarks/checkpoint.py
	$(VENV)/bin/python benchmarks/runner.py
	$(VENV)/bin/python benchmarks/on_flower.py
	$(VENV)/bin/python benchmarks/peers/run.py
	$(VENV)/bin/python benchmarks/recovery.py

clean:
	rm -rf $(VENV)

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -e ".[dev]"
	touch $(STAMP)
