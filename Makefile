# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
CORPUS ?=

.DEFAULT_GOAL := help
.PHONY: help setup demo weights test lint types clean

help: ## show this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /\1\t/' | expand -t 8

setup: $(VENV)/.runtime ## make .venv and install requirements.txt

demo: $(VENV)/.runtime ## train, score and separate on real speech (CORPUS=/path: your own, LibriSpeech layout)
	@$(RUN) -m scripts.demo $(if $(CORPUS),--corpus "$(CORPUS)")

weights: $(VENV)/.runtime ## train the weights that are shipped (CORPUS=/path/to/train-clean-100 [OTHERS=/other/voices])
	@$(RUN) -m scripts.weights --corpus "$(CORPUS)" $(if $(OTHERS),--others "$(OTHERS)")

test: lint types ## lint, types and all tests
	@OMP_NUM_THREADS=1 $(RUN) -m pytest -n auto --dist worksteal

lint: $(VENV)/.development ## ruff
	@$(RUN) -m ruff check .
	@$(RUN) -m ruff format --check .

types: $(VENV)/.development ## mypy
	@$(RUN) -m mypy

clean: ## remove .venv and what the demo computed (downloads and your own trainings stay)
	rm -rf $(VENV) demo chkpt/demo-* logs/demo-* data/demo-* data/index.sqlite*

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
		|| { echo "ERROR: Python 3.10 or newer is needed; name one with make PYTHON=..." >&2; exit 2; }
	@$(PYTHON) -m venv $(VENV) \
		|| { rm -rf $(VENV); echo "ERROR: python3 -m venv failed; on Debian: apt-get install python3-venv" >&2; exit 2; }

# stamps are written last, so that an interrupted installation is repeated
$(VENV)/.runtime: requirements.txt | $(VENV)/bin/python
	$(RUN) -m pip install --disable-pip-version-check -q -r requirements.txt
	@$(RUN) -m pip install --disable-pip-version-check -q 'pesq>=0.0.4' \
		|| echo "NOTE: pesq, which compiles C, was not installed: evaluate.py leaves PESQ out" >&2
	@touch $@

$(VENV)/.development: requirements-dev.txt $(VENV)/.runtime
	$(RUN) -m pip install --disable-pip-version-check -q -r requirements-dev.txt
	@touch $@
