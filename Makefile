# The commands of the README. `make help` lists them.
PYTHON ?= python3
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
VENV ?= .venv-$(VERSION)
BIN := $(VENV)/bin
comma := ,
# requirements.txt holds the versions tested on Python 3.11, as constraints; a newer Python takes the
# newest that fit.
PINS := $(if $(filter 3.11,$(VERSION)),-c requirements.txt,)
# the parity tests' torch comes as a small CPU build for Python 3.11; elsewhere they are skipped
TEST_EXTRAS := $(if $(filter 3.11,$(VERSION)),test$(comma)parity,test)

.DEFAULT_GOAL := help
.PHONY: help demo study study-diversity study-captioner study-saha study-saha-gmail test lint docs format golden clean

help: ## list the commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 18

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo 'align_jax needs Python 3.11 or newer: make $(MAKECMDGOALS) PYTHON=python3.11'; exit 1; }
	$(PYTHON) -m venv $(VENV)

# One stamp per Python and set of extras: nothing is installed twice.
$(VENV)/.demo: $(BIN)/python pyproject.toml requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PINS) -e '.[demo]'
	@touch $@

$(VENV)/.synth: $(BIN)/python pyproject.toml requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PINS) -e '.[demo,synth]'
	@touch $@

$(VENV)/.captions: $(BIN)/python pyproject.toml requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PINS) -e '.[demo,captions]'
	@touch $@

$(VENV)/.mining: $(BIN)/python pyproject.toml requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PINS) -e '.[demo,mining]'
	@touch $@

$(VENV)/.test: $(BIN)/python pyproject.toml requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PINS) -e '.[$(TEST_EXTRAS)]'
	@touch $@

$(VENV)/.dev: $(BIN)/python pyproject.toml requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PINS) -e '.[dev]'
	@touch $@

$(VENV)/.docs: $(BIN)/python pyproject.toml requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PINS) -e '.[docs]'
	@touch $@

demo: $(VENV)/.demo ## the main job on the built-in pack: under 15 minutes on 2 cores
	$(BIN)/python -m align_jax.study --config=configs/demo.py --workdir=runs/demo

study: $(VENV)/.demo ## every arm and ablation of docs/results.md: hours; resumes
	$(BIN)/python -m align_jax.study --config=configs/study_gmail.py --workdir=runs/study_gmail

study-diversity: $(VENV)/.synth ## does diverse, filtered generated data beat more of the same: 90 minutes; resumes
	$(BIN)/python -m align_jax.study --config=configs/study_diversity.py --workdir=runs/study_diversity

study-captioner: $(VENV)/.captions ## do captioners learn from generated images through the aligned track: 2 hours on one core; resumes
	$(BIN)/python -m align_jax.study --config=configs/study_captioner.py --workdir=runs/study_captioner

study-saha: $(VENV)/.mining ## prompts and hard negatives of an embedder: hours; resumes
	$(BIN)/python -m align_jax.embedding_study --config=configs/study_saha.py --workdir=runs/study_saha

study-saha-gmail: $(VENV)/.mining ## do hard negatives help GMAIL: 40 minutes on one core; resumes
	$(BIN)/python -m align_jax.study --config=configs/study_saha_gmail.py --workdir=runs/study_saha_gmail

test: $(VENV)/.test ## install what the tests need and run them
	$(BIN)/python -m pytest -n 2 --dist worksteal

lint: $(VENV)/.dev ## ruff and the type checker
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The variable silences a notice that material prints of its own end in 2027. A warning ends the build.
docs: $(VENV)/.docs ## the documentation as a site, in site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

format: $(VENV)/.dev ## put the code into its form
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

golden: $(VENV)/.test ## rewrite the golden files after a change that is meant
	$(BIN)/python -m pytest -n 2 tests/golden --update-golden

clean: ## remove the virtual environment and build leftovers, not the runs
	rm -rf $(VENV) build site *.egg-info
