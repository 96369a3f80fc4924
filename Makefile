# `make run` and `make test` are all you need; `make help` lists the rest.
# Everything is installed into .venv beside this file and nowhere else.
SHELL    := /bin/sh
PYTHON   ?= python3
BIN      := .venv/bin
SETTINGS := settings.ini setup.py constraints.txt
PIP      := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
ARGS     ?=

.DEFAULT_GOAL := help
.PHONY: help setup dev lab-setup chromium run test test-slow test-all lab docs course pretrained clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# --- the environment: a stamp inside .venv says what is in it, so that the second time takes no time

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "scene4m needs Python 3.11 or later and '$(PYTHON)' is not one; name yours: make setup PYTHON=python3.12"; exit 1; }
	@echo "→ environment: making .venv with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv .venv || { rm -rf .venv; \
	  echo "Python could not make an environment; on Debian and Ubuntu install python3-venv first."; exit 1; }

.venv/.with-run: $(SETTINGS) | $(BIN)/python
	@echo "→ environment: installing what scene4m needs to run (about a gigabyte the first time, some minutes)"
	@$(PIP) -e .
	@$(BIN)/python -m scene4m doctor --fix
	@touch $@

.venv/.with-dev: $(SETTINGS) | $(BIN)/python
	@echo "→ environment: installing scene4m and everything its tests need (about three gigabytes the first time, some minutes)"
	@$(PIP) -e ".[dev]"
	@$(BIN)/python -m scene4m doctor --fix
	@touch .venv/.with-run .venv/.with-lab $@

.venv/.with-lab: $(SETTINGS) .venv/.with-run
	@echo "→ environment: adding JupyterLab and Voila"
	@$(PIP) -e ".[lab]"
	@touch $@

setup: .venv/.with-run  ## make .venv with what scene4m needs to run
dev: .venv/.with-dev  ## add to .venv what tests and authors need
lab-setup: .venv/.with-lab

chromium:
	@if ! command -v chromium >/dev/null && ! command -v chromium-browser >/dev/null && ! command -v google-chrome >/dev/null \
	    && ! [ -x "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome" ]; then \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    echo "→ browser: installing Chromium for the tests that look at pages"; \
	    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium >/dev/null; } \
	      || echo "  Chromium could not be installed: tests that need a browser will be skipped"; \
	  else echo "→ browser: there is no Chromium or Chrome here: tests that need a browser will be skipped"; fi; fi

# --- what people come for

run: setup  ## everything from clips to a report, on the toy street
	@echo "→ scene4m run $(ARGS)"
	@$(BIN)/python -m scene4m run $(ARGS)

test: dev chromium  ## ruff, types, spelling, every notebook and every quick test
	@echo "→ ruff: notebooks, exported modules, tests and scripts"
	@$(BIN)/python -m ruff check --quiet nbs scene4m scripts tests benchmarks
	@$(BIN)/python -m ruff format --check --quiet nbs scripts tests benchmarks setup.py
	@echo "→ mypy: exported modules"
	@$(BIN)/python -m mypy
	@echo "→ codespell: notebooks and pages"
	@$(BIN)/codespell
	@echo "→ pytest: notebooks and tests, two files at a time (the slow ones run in make test-all)"
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

test-slow: dev chromium  ## what takes longer: kills, Ray, every problem set, fresh environments, slow cells
	@echo "→ pytest: the slow tests"
	@$(BIN)/python -m pytest -m slow $(ARGS)

test-all: test test-slow  ## make test, then the slow tests

lab: lab-setup  ## open the notebooks in JupyterLab
	@echo "→ JupyterLab: opens in your browser; Ctrl-C here ends it"
	@$(BIN)/jupyter lab nbs "--ServerApp.tornado_settings={'websocket_max_message_size': 209715200}"

docs: dev  ## the website in _docs (Quarto), or a plain preview of it where Quarto is missing
	@$(BIN)/python scripts/readme.py
	@if command -v quarto >/dev/null; then \
	  echo "→ docs: nbdev and Quarto build the website in _docs"; $(BIN)/nbdev_docs && echo "→ open _docs/index.html"; \
	else \
	  echo "→ docs: the website needs Quarto (quarto.org, one package for Linux, macOS or Windows); this is a plain preview without it"; \
	  $(BIN)/python scripts/preview.py; fi

course: dev  ## make the release versions of the graded assignments
	@$(BIN)/python scripts/course.py

pretrained: setup  ## train the checkpoint that the wheel carries and put it into the package (hours)
	@echo "→ scene4m run --preset shipped"
	@$(BIN)/python -m scene4m run --preset shipped --out runs/shipped $(ARGS)
	@$(BIN)/python scripts/pretrained.py runs/shipped

clean:  ## remove what builds, tests and docs left behind; .venv and runs stay
	@echo "→ removing caches, builds and the built site"
	@rm -rf build dist _docs _proc _site .quarto .pytest_cache .ruff_cache .mypy_cache nbs/nbdev.yml nbs/sidebar.yml nbs/.last_checked
	@find scene4m tests scripts nbs -name __pycache__ -o -name .ipynb_checkpoints | xargs rm -rf
