# `make report` and `make test` start from a fresh clone with nothing prepared.

PLAN ?= quick
PORT ?= 8888

# The first Python that is new enough and can make virtual environments (Debian splits that off as python3-venv).
PYTHON ?= $(shell for python in python3.13 python3.12 python3.11 python3; do \
	$$python -c 'import sys, ensurepip, venv; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null \
	&& echo $$python && break; done)

BIN := .venv/bin
READY := .venv/ready
MESHDNS := $(BIN)/meshdns

# One worker more than CPUs, as some tests wait; each has tests that lie together, which share what they are tried on. The
# empty variable is one that is not set: a hundred processes import the same modules, which would be compiled for each.
ALONE := not testbed and not browser and not slow
QUICK := PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n $$(($$(nproc) + 1)) --dist loadfile -m '$(ALONE)'

# Behind a TLS proxy the host's bundle holds what pip's own does not.
BUNDLE := $(firstword $(wildcard $(SSL_CERT_FILE) /etc/ssl/certs/ca-certificates.crt /etc/pki/tls/certs/ca-bundle.crt))
ifneq ($(BUNDLE),)
export PIP_CERT ?= $(BUNDLE)
export SSL_CERT_FILE ?= $(BUNDLE)
endif
ifneq ($(PIP_INDEX_URL),)
export UV_DEFAULT_INDEX ?= $(PIP_INDEX_URL)
endif
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help report test quick lab conformance bench sample up down lint clean engine browser

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

report: engine ## from a fresh machine to reports/latest/index.html (PLAN=standard to publish)
	@$(MESHDNS) report --plan $(PLAN)

test: lint engine browser ## every test, on real containers and in a real browser
	@$(QUICK) -p tests.plugins.no_skips
	@$(BIN)/python -m pytest -m 'not ($(ALONE))' -p tests.plugins.no_skips

quick: $(READY) ## the tests that need no engine, browser or kernel of notebooks (two to three minutes on two CPUs)
	@$(QUICK)

lab: $(READY) ## JupyterLab with the notebooks, on this machine only (PORT=8888)
	@mkdir -p .venv/share/jupyter/lab/settings # no question about news: nothing is fetched from anywhere
	@echo '{"@jupyterlab/apputils-extension:notification": {"fetchNews": "false"}}' >.venv/share/jupyter/lab/settings/overrides.json
	@$(BIN)/jupyter lab --ip=127.0.0.1 --port=$(PORT) --notebook-dir=notebooks $(if $(filter 0,$(shell id -u)),--allow-root)

conformance: $(READY) ## docs/conformance.md: is Istio as we say? (as root; ISTIO=version for another than the pinned one)
	@$(BIN)/python -m tests.conformance $(if $(ISTIO),--istio $(ISTIO))

bench: $(READY) ## the speed bars, beside other tools in one run
	@status=0; for bench in $$(grep -l __main__ tests/bench/*.py); do $(BIN)/python $$bench || status=1; done; exit $$status

# All are recorded before any is replaced: a run notes whether the tree was changed since its commit.
sample: engine ## record data/sample anew, by the plans in data/plans (twenty minutes)
	@set -e; for plan in data/plans/*.toml; do runs="$$runs $$($(MESHDNS) run --plan $$plan)"; done; \
	rm -rf data/sample/*; mv $$runs data/sample

up: engine ## start the testbed and leave it running
	@$(MESHDNS) up

down: $(READY) ## remove the testbed
	@$(MESHDNS) down

lint: $(READY) ## ruff, mypy and the import contract
	@$(BIN)/ruff check --quiet
	@$(BIN)/ruff format --check --quiet
	@$(BIN)/mypy --no-error-summary
	@$(BIN)/lint-imports >.venv/lint-imports.log || { cat .venv/lint-imports.log; exit 1; }

clean: ## remove what was built (not data/runs)
	@if [ -x $(MESHDNS) ] && docker info >/dev/null 2>&1; then $(MESHDNS) down; fi # refused while it measures
	rm -rf .venv .meshdns reports .*_cache .hypothesis

engine: $(READY)
	@$(MESHDNS) engine

browser: engine # one after the other: both may install packages
	@$(MESHDNS) engine --browser

# uv fills the environment in seconds; where it cannot (an index only pip is told of) pip does the same from the same lock.
$(READY): requirements.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo 'Python 3.11 to 3.13 with venv was not found; on Debian and Ubuntu run:' \
		'apt-get install python3 python3-venv (on Ubuntu 22.04 python3.11 python3.11-venv; else name one: make PYTHON=/path/to/python3)' >&2; exit 3; }
	@echo 'virtual environment: .venv, from requirements.lock'
	@test -x $(BIN)/pip || $(PYTHON) -m venv .venv
	@awk '/^uv==/ { on = 1 } on { print } on && !/\\$$/ { exit }' requirements.lock > .venv/uv.lock
	@$(BIN)/pip install --quiet --require-hashes --requirement .venv/uv.lock \
		&& $(BIN)/uv pip install --quiet --compile-bytecode --system-certs --python $(BIN)/python --require-hashes --requirement requirements.lock \
		|| $(BIN)/pip install --quiet --require-hashes --requirement requirements.lock
	@$(BIN)/pip install --quiet --no-deps --editable .
	@touch $@
