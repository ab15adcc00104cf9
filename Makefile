# The commands of the project; `make` alone lists them. Needs Python 3.11, git and make: the rest goes into .venv, from
# the lock. Knows how things are started, not what they do: the pipeline's stages are in dvc.yaml.

PYTHON ?= python3.11
MLFLOW_PORT ?= 5000
OPTIONS ?=

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:
.DELETE_ON_ERROR:

BIN := $(CURDIR)/.venv/bin
PIP := "$(BIN)/python" -m pip --disable-pip-version-check --no-input
INSTALLED := .venv/installed
REPORT := reports/comparison.html

# DVC starts stages as `python -m mgm_lora ...`: that must be this environment's python.
export PATH := $(BIN):$(PATH)

# No tool here sends usage statistics, unless the caller's environment says otherwise.
export DO_NOT_TRACK ?= true
export DVC_NO_ANALYTICS ?= 1
export ITERATIVE_DO_NOT_TRACK ?= 1
export GX_ANALYTICS_ENABLED ?= false
export HF_HUB_DISABLE_TELEMETRY ?= 1
export MLFLOW_DISABLE_TELEMETRY ?= true
export PREFECT_SERVER_ANALYTICS_ENABLED ?= false

.PHONY: help install demo compare test stress check format bench base report mlflow flow up down lock clean

help: ## list these commands
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1|\2/p' Makefile | awk -F'|' '{printf "%-16s %s\n", $$1, $$2}'

install: $(INSTALLED) ## everything from the lock into .venv (2 to 4 minutes, and nothing the second time)

demo: install ## the whole pipeline on the embedded data, then its table and where to look
	@"$(BIN)/dvc" repro --pull
	@"$(BIN)/python" -m mgm_lora summary

compare: install ## every variant of LoRA beside the full fine-tune, three seeds each (an hour on one core, less on two; changes params.yaml, and says so)
	@"$(BIN)/python" -m mgm_lora preset comparison
	@"$(BIN)/dvc" repro --pull --keep-going || "$(BIN)/python" -m mgm_lora compare --allow-failed
	@"$(BIN)/python" -m mgm_lora summary

test: install ## the tests
	@"$(BIN)/pytest" $(OPTIONS)

stress: install ## kill stages at random moments, 20 rounds, written into docs/stress.md (STRESS_ROUNDS=, STRESS_SEED=)
	@"$(BIN)/pytest" tests/stress.py -s $(OPTIONS)

check: install ## lint, format, types, which package may import which, and README's tree
	@echo "ruff check"; "$(BIN)/ruff" check .
	@echo "ruff format"; "$(BIN)/ruff" format --check .
	@echo "mypy"; "$(BIN)/mypy"
	@echo "lint-imports"; "$(BIN)/lint-imports" --no-logo
	@echo "README's tree"; "$(BIN)/python" scripts/tree.py --check

format: install ## let ruff write the format, and mend what it can
	@"$(BIN)/ruff" check --fix-only .
	@"$(BIN)/ruff" format .

bench: install ## speed and memory, measured into benchmarks/RESULTS.md (OPTIONS=--help tells more)
	@"$(BIN)/python" -m benchmarks $(OPTIONS)

base: install ## make the embedded data and the tiny base model anew (half an hour)
	@"$(BIN)/python" -m recipes.embedded
	@"$(BIN)/python" -m recipes.base

report: ## where the report is; opened, if there is a screen
	@test -f $(REPORT) || { echo "no $(REPORT) yet: it is made by 'make demo'" >&2; exit 1; }
	@echo "$(CURDIR)/$(REPORT)"
	@if [ -n "$${DISPLAY:-}$${WAYLAND_DISPLAY:-}" ] && command -v xdg-open > /dev/null; then xdg-open $(REPORT); fi

mlflow: install ## MLflow's pages on this machine, until Ctrl-C (MLFLOW_PORT=5000)
	@test -f mlflow.db || { echo "no mlflow.db yet: it is made by 'make demo'" >&2; exit 1; }
	@echo "http://127.0.0.1:$(MLFLOW_PORT)"
	@MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false "$(BIN)/mlflow" ui --backend-store-uri sqlite:///mlflow.db --host 127.0.0.1 --port $(MLFLOW_PORT) --workers 1

flow: install ## the pipeline as a Prefect flow (OPTIONS=--help tells more)
	@"$(BIN)/python" -m flows.pipeline $(OPTIONS)

up: install ## the team's services on this machine: Prefect, MLflow, a worker, the schedules (OPTIONS=--help tells more)
	@"$(BIN)/python" -m flows.services up $(OPTIONS)

down: install ## end what 'make up' has started
	@"$(BIN)/python" -m flows.services down

lock: | .venv/bin/python ## resolve requirements.lock anew (OPTIONS=--upgrade: newest versions)
	@$(call of_lock,uv) > .venv/lock-tools.txt
	@$(PIP) install --quiet --require-hashes --no-deps -r .venv/lock-tools.txt
	@"$(BIN)/python" scripts/lock.py $(OPTIONS)

clean: ## remove what packing and checking left; never data, results, .venv, or what recipes keep in build/
	@rm -rf dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
	@for folder in mgm_lora tasks flows recipes scripts benchmarks tests; do \
		if [ -d $$folder ]; then find $$folder -name __pycache__ -type d -prune -exec rm -rf {} +; fi; done

# --- how install works ------------------------------------------------------------------------------------------------

# $(call of_lock,a b): the lock's lines of the packages a and b, hashes included.
of_lock = for name in $(1); do sed -n "/^$$name==/,/[^\\\\]$$/p" requirements.lock; done

# Says every 64th package that pip has found: the same on a terminal and in a log. (Not awk: mawk waits for full blocks.)
show_progress = found=0; while read -r line; do case $$line in \
		"Collecting "* | "Processing "* | "Requirement already "*) found=$$((found + 1)); \
			if ((found % 64 == 0)); then echo "      found $$found of $$(grep -c '==' requirements.lock)"; fi ;; \
		"Installing collected "*) echo "      unpacking" ;; \
	esac; done

.venv/bin/python:
	@command -v "$(PYTHON)" > /dev/null || { echo "$(PYTHON) not found. mgm-lora needs Python 3.11: install it" \
		"(Debian, Ubuntu: python3.11 and python3.11-venv), or say where it is: make install PYTHON=/path/to/python3.11" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || { \
		echo "$(PYTHON) is $$("$(PYTHON)" --version 2>&1), but the lock is made for Python 3.11" >&2; exit 1; }
	@echo "[1/5] virtual environment .venv, $$("$(PYTHON)" --version)"
	@"$(PYTHON)" -m venv .venv || { rm -rf .venv; exit 1; }

# Order matters. Two packages come as sources only: they are built with the lock's own tools (not with whatever is newest
# that day), and before torch is there, which DeepSpeed's build would look at. torch brings the CUDA libraries of its
# build along; the constraints keep it from changing anything that the lock says.
$(INSTALLED): pyproject.toml requirements.lock requirements-torch.txt | .venv/bin/python
	@echo "[2/5] tools to build with"
	@$(call of_lock,packaging setuptools wheel) > .venv/build-tools.txt
	@$(PIP) install -qq --require-hashes --no-deps -r .venv/build-tools.txt
	@echo "[3/5] the packages of requirements.lock (1 to 3 minutes)"
	@PYTHONUNBUFFERED=1 $(PIP) install --require-hashes --no-deps --no-build-isolation --progress-bar off \
		-r requirements.lock 2> >(grep -v '^ *WARNING' >&2) | { $(show_progress); }
	@echo "[4/5] $$(grep '^torch==' requirements-torch.txt) in the build that pip is set up for (CUDA: some GB more)"
	@sed -n 's/^\([A-Za-z0-9._-]*==[^ ;]*\).*/\1/p' requirements.lock > .venv/constraints.txt
	@$(PIP) install -qq --constraint .venv/constraints.txt -r requirements-torch.txt
	@echo "[5/5] mgm-lora itself"
	@$(PIP) install -qq --no-deps --no-build-isolation --editable .
	@$(PIP) check
	@touch $@
