# The two commands of a newcomer are `make demo` and `make test`. The rest is for those who stay.
# Needs Python 3.11 or later, make and a C++ compiler; all else is installed into $(VENV).

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: class site deploy-links help demo real serve installed test test-fast coverage lint format lab bench bench-peers bench-growth quality gpu pocket clients docs image-check grade clean

help:
	@grep -E '^[a-z-]+:.*## ' Makefile | sed -E 's/:.*## /\t/' | expand -t 15

# Empty if $(PYTHON) is recent enough, else its version.
too_old = $(shell $(PYTHON) -c 'import sys; print("" if sys.version_info >= (3, 11) else sys.version.split()[0])' || echo missing)

$(BIN)/python:
	$(if $(too_old),$(error Glasshouse needs Python 3.11 or later; $(PYTHON) is $(too_old) (another: make PYTHON=python3.12 …)))
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing torch and a dozen packages into $(VENV) (once; it takes minutes, and says nothing) …"
	@$(PIP_INSTALL) -e .
	@touch $@

$(VENV)/.test: $(VENV)/.run
	@echo "Installing what the tests need into $(VENV) (once) …"
	@$(PIP_INSTALL) -e '.[test,lint]'
	@touch $@

installed: $(VENV)/.test

demo: $(VENV)/.run ## a server with the embedded model, questions, the answers beside the record; it stays up (DEMO_ARGS=--once)
	@$(BIN)/python examples/demo.py $(DEMO_ARGS)

real: $(VENV)/.run ## the server with a real model, SmolLM2-135M; the first time it is fetched (93 MB, Apache-2.0)
	@$(BIN)/python koyeb_api_server.py --model smollm2

serve: $(VENV)/.run ## the server, until Ctrl-C (PORT=8000, MODEL_NAME=…)
	@$(BIN)/python koyeb_api_server.py

class: $(VENV)/.run ## the server with a small pool, to teach with its page (PORT=8000, CLASS_ARGS=…)
	@$(BIN)/python -m glasshouse class $(CLASS_ARGS)

# A worker more than there are cores (tests/conftest.py), four at most.
PYTEST := $(BIN)/python -m pytest -n auto --maxprocesses 4

test: $(VENV)/.test ## all tests, in about 9 minutes on two cores; PYTEST_ARGS=--full for every case
	$(PYTEST) $(PYTEST_ARGS)

# Folders whose tests neither start many processes nor compute much.
FAST := $(addprefix tests/,config container core docs examples fit layers package server text trace worker)

test-fast: $(VENV)/.test ## what a change should pass before it is committed, in a minute
	$(PYTEST) -m "not (slow or lengthy)" $(FAST) $(PYTEST_ARGS)

lengthy-tests: $(VENV)/.test ## measure which tests test-fast leaves out, on a machine that does nothing else
	$(PYTEST) -m "not slow" $(FAST) --write-lengthy

# What computes in this process; pyproject.toml says how much it must be. tests/parity reaches three
# lines more.
coverage: $(VENV)/.test ## which lines of engine/ the tests reach; fails below 92 %
	TESTS_BEST_VARIANT=1 $(PYTEST) -m "not (slow or lengthy)" --cov --cov-report=term $(FAST) tests/exercises tests/kernels/cpu \
		tests/kernels/test_*.py tests/models tests/quantize tests/whatif $(PYTEST_ARGS)

# 3 says that points are missing, which is no failure of make; 1, that the grader failed.
grade: $(VENV)/.run ## what your exercises/ have achieved, of 100 points (docs/EXERCISES.md; STEP=… for hints)
	@$(BIN)/python -m course $(STEP) || [ $$? = 3 ]

CPP := engine/kernels/cpu/*.cpp engine/kernels/cpu/*.h

lint: $(VENV)/.test ## formatting, lint rules and types: Python, the kernels' C++, the page's JavaScript
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/clang-format --dry-run --Werror $(CPP)
	$(BIN)/deno fmt --check --quiet
	$(BIN)/deno lint --quiet
	$(BIN)/mypy

format: $(VENV)/.test ## put every file into the house format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/clang-format -i $(CPP)
	$(BIN)/deno fmt --quiet

lab: $(VENV)/.run ## each optimisation shown, measured and explained, one after another (less than 2 minutes)
	@$(BIN)/python koyeb_vllm_setup.py --quick --report lab.html

bench: $(VENV)/.test ## the engine against transformers on this machine; writes benchmarks/results/
	$(BIN)/python -m benchmarks.compare

bench-peers: $(VENV)/.test ## beside vLLM and llama.cpp too, got into .peers/ (5 GB, an hour); PEERS_ARGS=--quick
	@$(BIN)/python -m benchmarks.peers.install
	$(BIN)/python -m benchmarks.peers $(PEERS_ARGS)

bench-growth: $(VENV)/.test ## what a step costs as requests, context and the pool grow; the record; HTTP; the core alone; memory
	$(BIN)/python -m benchmarks.growth
	$(BIN)/python -m benchmarks.core_cost
	$(BIN)/python -m benchmarks.structured
	$(BIN)/python -m benchmarks.footprint

quality: $(VENV)/.test ## what bf16 and an fp8 cache keep of a real model's answers, beside fp32 and transformers
	$(BIN)/python -m benchmarks.quality $(QUALITY_ARGS)

gpu: $(VENV)/.test ## on a machine with a GPU: proofs and speed; GPU_ARGS=--dry-run needs none
	$(BIN)/python -m benchmarks.gpu $(GPU_ARGS)

clients: $(VENV)/.test ## other people's clients against a real server, each in .clients/NAME (9 GB); CLIENTS_ARGS=…
	$(BIN)/python -m clients $(CLIENTS_ARGS)
	$(BIN)/python -m docs.scripts.fill

pocket: $(VENV)/.run ## train the embedded model again, from a fixed seed (about an hour)
	$(BIN)/python -m pocket.train

docs: $(VENV)/.test ## write again what the documents take from records, plans and results
	$(BIN)/python -m docs.scripts.log_guide
	$(BIN)/python -m docs.scripts.glossary
	$(BIN)/python -m docs.scripts.fill
	$(BIN)/python -m docs.scripts.performance

site: $(VENV)/.run ## the site of rooms, static files in site/ (GitHub Pages: .github/workflows/pages.yml)
	@$(BIN)/python -m docs.scripts.site

deploy-links: $(VENV)/.run ## put your repository into the deploy button and the site's link (from git remote)
	@$(BIN)/python -m docs.scripts.deploy_links

image-check: $(VENV)/.run ## build Dockerfile.koyeb with buildah and judge what it serves (root; 10 minutes)
	PYTHON=$(BIN)/python container/check.sh

clean: ## remove the virtual environment and caches
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache .hypothesis
