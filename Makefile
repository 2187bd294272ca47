# Thin: every target calls one program. `make` alone lists them.
PYTHON ?= python3
READY := .venv/.complete
export PATH := $(CURDIR)/.venv/bin:$(PATH)

.PHONY: help stack test check docs lock

help: ## List the targets
	@sed -n 's/^\([a-z]*\):.*## /  make \1	/p' $(MAKEFILE_LIST)

stack: $(READY) ## Build the box: the one in inventory/hosts.yml, else a lab box on this machine
	@if [ -z "$$BOXWRIGHT_INVENTORY" ] && [ ! -e inventory/hosts.yml ]; then boxwright lab up; fi
	@boxwright apply

# Half of the time tests wait for services, so there are more processes than a small machine has cores.
test: $(READY) ## Run all tests
	@python -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder --durations 30 --durations-min 10

check: $(READY) ## Style, types, and generated pages
	@ruff check . && ruff format --check . && mypy && yamllint . && boxwright docs --check

docs: $(READY) ## Write the generated pages and schemas
	@boxwright docs

lock: ## Pin all requirements.in anew (needs uv)
	@uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
	  --no-emit-index-url --output-file requirements.lock requirements.in
	@uv pip compile --quiet --python-platform x86_64-manylinux_2_39 --python-version 3.12 --generate-hashes --no-header \
	  --no-annotate --no-emit-index-url --output-file roles/mlx/requirements.txt roles/mlx/requirements.in
	@MACOSX_DEPLOYMENT_TARGET=14.0 uv pip compile --quiet --python-platform aarch64-apple-darwin --python-version 3.13 \
	  --generate-hashes --no-header --no-annotate --no-emit-index-url --constraint roles/mlx/requirements.txt \
	  --output-file roles/mlx/requirements-darwin.txt roles/mlx/requirements.in
	@uv pip compile --quiet --python-version 3.11.0 --generate-hashes --no-header --no-annotate \
	  --no-emit-index-url --constraint requirements.lock --output-file services/api/requirements.txt \
	  services/api/requirements.in

$(READY): requirements.lock pyproject.toml scripts/setup
	@PYTHON='$(PYTHON)' scripts/setup
