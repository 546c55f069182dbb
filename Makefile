# One command per thing that this project does; `make` alone lists them. Works from any folder name, as any user, with
# nothing but Python >= 3.11 and make. Everything is installed in .venv, in the versions of constraints.txt.
#
#   make demo PYTHON=python3.12             another interpreter (used when .venv is made)
#   make paper FAISS=faiss-gpu              with faiss' CUDA build instead of the CPU one; remembered from then on
#   make paper FLAGS="--workflow-profile profiles/slurm"    more options for snakemake
#   make test  PYTEST="-k linf -x"          more options for pytest

.DEFAULT_GOAL := help
.NOTPARALLEL:
SLICES := slice-1 slice-2 slice-3 slice-4 slice-5 slice-6 slice-7
.PHONY: help demo cpu paper $(SLICES) bundle merge test test-pretend test-slurm lint format docs env clean
.DELETE_ON_ERROR:

PYTHON ?= python3
FAISS  ?= $(if $(wildcard .venv/.stamp-faiss-gpu),faiss-gpu,faiss-cpu)
FLAGS  ?=
PYTEST ?=
RUN    ?= paper
TARGET ?= 3.12
DATA   ?= cifar10

# Relative paths and $$PWD in quotes: the folder's name may hold spaces, and .venv may have been moved with it.
PIP       := .venv/bin/python -m pip install -qq --disable-pip-version-check -c constraints.txt
# A path instead of an import hook: every start of Python in .venv is 10 ms shorter, of which a run has hundreds.
EDITABLE  := --config-settings editable_mode=compat -e
IN_ENV    := PATH="$$PWD/.venv/bin:$$PATH" python -m
SNAKEMAKE := $(IN_ENV) snakemake
OVERLAY   := $(if $(filter-out paper,$(RUN)),--configfile $(if $(filter digits,$(RUN)),config/demo.yaml )config/$(RUN).yaml)
CONFIGS   := config/config.yaml config/demo.yaml

help: ## List these commands
	@awk 'BEGIN { FS = ":.*## " } /^[a-z0-9-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

demo: .venv/.stamp-$(FAISS) ## Run everything on embedded data and a CPU, in minutes; ends with the report's path
	@$(SNAKEMAKE) --configfile config/demo.yaml $(FLAGS)
	@printf '\nReport: %s\n' "$$PWD/results/demo/report/index.html"

paper: .venv/.stamp-$(FAISS) ## Run everything at the paper's scale (downloads data; wants a GPU; resumes where it stopped)
	@$(SNAKEMAKE) $(FLAGS)
	@printf '\nReport: %s\n' "$$PWD/results/paper/report/index.html"

cpu: .venv/.stamp-$(FAISS) ## Run the paper's networks on a few CPU cores, in a day (downloads data; stops and resumes anywhere)
	@$(SNAKEMAKE) --configfile config/cpu.yaml $(FLAGS)
	@printf '\nReport: %s\n' "$$PWD/results/cpu/report/index.html"

# A slice stops cleanly before MINUTES have passed (exit status 2, and "more to do" in its last line); the same command
# continues it. PACK=folder packs its evidence at the end of every call.
slice-1: .venv/.stamp-test ## Make a slice of the paper run: slice-1 to slice-7 (MINUTES=9 TRIALS=3 RUN=paper-fast)
slice-2 slice-3 slice-4 slice-5 slice-6 slice-7: .venv/.stamp-$(FAISS)
slice-1 slice-2 slice-3 slice-4 slice-5 slice-6 slice-7:
	@$(IN_ENV) ask slice $@ $(OVERLAY) $(if $(MINUTES),--minutes $(MINUTES)) $(if $(TRIALS),--trials $(TRIALS)) \
		$(if $(FLAGS),--flags='$(FLAGS)') $(if $(PACK),--pack "$(PACK)")

bundle: .venv/.stamp-test ## Pack what a machine without a network lacks: make bundle TARGET=3.12 DATA="cifar10 imagenette"
	@$(SNAKEMAKE) --cores 1 $(foreach source,$(DATA),data/raw/$(source)/manifest.json)
	@$(IN_ENV) ask.bundle make --python $(TARGET) --data $(DATA)

merge: .venv/.stamp-$(FAISS) ## Merge packed evidence into its run and render it: make merge FROM=folder (RUN=paper-fast)
	@$(IN_ENV) ask merge "$(or $(FROM),$(error name the folder of the archives: make merge FROM=folder))"
	@$(IN_ENV) ask render $(OVERLAY)

test: .venv/.stamp-test ## Run the tests, on all cores, one torch thread each
	@OMP_NUM_THREADS=1 $(IN_ENV) pytest -q -n logical --maxprocesses 8 --dist loadgroup $(PYTEST)

test-pretend: .venv/.stamp-test ## Run the tests marked gpu without a GPU: CUDA's rules on a pretended device (needs g++)
	@OMP_NUM_THREADS=1 $(IN_ENV) pytest -q -n logical --maxprocesses 8 -m gpu --pretend-cuda $(PYTEST)

test-slurm: .venv/.stamp-test ## Run the tests on throw-away SLURMs of two nodes; installs it on Debian and Ubuntu (needs root)
	@command -v slurmctld >/dev/null || [ -x /usr/sbin/slurmctld ] || tests/slurm_loopback.sh install >/dev/null
	@OMP_NUM_THREADS=1 $(IN_ENV) pytest -q -n 2 --dist loadgroup --slurm -m slurm $(PYTEST)

lint: .venv/.stamp-lint ## Check style, types and the workflow; changes nothing
	@$(IN_ENV) ruff check .
	@$(IN_ENV) ruff format --check .
	@$(IN_ENV) mypy --strict ask
	@$(IN_ENV) snakefmt --check Snakefile rules
	@for config in $(CONFIGS); do echo "snakemake --lint --configfile $$config"; \
		$(SNAKEMAKE) --lint --configfile "$$config" || exit 1; done

format: .venv/.stamp-lint ## Lay out Python and Snakemake files, and mend what ruff can
	@$(IN_ENV) ruff check --fix-only .
	@$(IN_ENV) ruff format .
	@$(IN_ENV) snakefmt Snakefile rules

docs: .venv/.stamp-docs ## Build the documentation as a site that opens from disk: site/index.html
	@NO_MKDOCS_2_WARNING=1 $(IN_ENV) mkdocs build --quiet --strict
	@printf 'Documentation: %s\n' "$$PWD/site/index.html"

.PHONY: crate lock install
crate: .venv/.stamp-test ## Pack a finished run as a Workflow Run RO-Crate, with the lineage of its numbers: make crate RUN=demo
	@$(IN_ENV) tools.crate $(OVERLAY)

lock: .venv/.stamp-lock ## Write requirements.lock anew: the versions of constraints.txt with the hashes of PyPI's files
	@$(IN_ENV) uv pip compile pyproject.toml --quiet --extra dev -c constraints.txt --universal --python-version 3.11 \
		--no-config --generate-hashes --no-annotate --custom-compile-command 'make lock' -o requirements.lock

install: .venv/.stamp-$(FAISS) ## Install what demo and paper need; they do it themselves too

env: .venv/.stamp-$(FAISS) .venv/.stamp-test .venv/.stamp-lint .venv/.stamp-docs ## Install all that the other commands need; they do it themselves too
	@echo "Ready. Activate it with: . .venv/bin/activate"

clean: ## Remove caches and the demo's results; keeps .venv, data and all other results
	rm -rf results/demo site build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

# Set-up. A stamp is newer than the files that say what to install, or the installation is brought up to date.

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "Python 3.11 or newer is needed; '$(PYTHON)' is $$($(PYTHON) --version 2>&1 | tail -n 1)." >&2; \
		echo "Name another one: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -m venv .venv || { rm -rf .venv; \
		echo "Could not make .venv (Debian and Ubuntu: apt-get install python3-venv)." >&2; exit 1; }

# faiss-cpu and faiss-gpu are two builds of one Python package: the one that goes leaves first.
.venv/.stamp-$(FAISS): pyproject.toml constraints.txt | .venv/bin/python
	@echo "Installing the project and $(FAISS) in .venv (torch is large: minutes on a slow line) …"
	@for old in faiss-cpu faiss-gpu; do if [ -e ".venv/.stamp-$$old" ] && [ $$old != $(FAISS) ]; then \
		.venv/bin/python -m pip uninstall --quiet --yes $$old && rm ".venv/.stamp-$$old" || exit 1; fi; done
	@$(PIP) $(EDITABLE) '.[workflow,$(FAISS),autoattack,slurm]'
	@touch $@

# Three go without their dependencies. torchattacks wants requests 2.25, against our pin, and never imports it; of
# cffconvert, which wants jsonschema 3, a test reads the schema of CITATION.cff; timm brings the client of a hub.
.venv/.stamp-test: .venv/.stamp-$(FAISS)
	@echo "Installing what the tests need …"
	@$(PIP) $(EDITABLE) '.[test,bench,crate]'
	@$(PIP) --no-deps torchattacks cffconvert timm
	@touch $@

.venv/.stamp-lint: .venv/.stamp-$(FAISS)
	@echo "Installing the linters …"
	@$(PIP) $(EDITABLE) '.[lint]'
	@touch $@

.venv/.stamp-lock: .venv/.stamp-$(FAISS)
	@$(PIP) $(EDITABLE) '.[lock]'
	@touch $@

.venv/.stamp-docs: .venv/.stamp-$(FAISS)
	@echo "Installing what builds the documentation …"
	@$(PIP) $(EDITABLE) '.[docs]'
	@touch $@
