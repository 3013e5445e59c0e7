# `make help` lists the targets.  The first one that needs Python sets it up in .venv.
.DEFAULT_GOAL := help
UV_VERSION := 0.13.9
UV := $(or $(shell command -v uv 2>/dev/null),.uv/bin/uv)
PYTHON := .venv/bin/python
PIPELINE ?= adult.yaml
NAMESPACE ?= mlops
VALUES ?= kind/values-local.yaml
export UV_PYTHON_PREFERENCE ?= system
# Nine processes a run import large libraries: without cached bytecode each compiles them anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help run stop test test-faults test-cluster check lock lock-check compile docs benchmark clean images push operators platform backup restore smoke cluster

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: .venv/.runtime ## Compile and run the pipeline of PIPELINE, up to a version that serves
	@.venv/bin/retrain run $(PIPELINE)

stop: .venv/.runtime ## End the server that `make run` left
	@.venv/bin/retrain stop

test: .venv/.dev ## Pass the tests
	@$(PYTHON) -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# FAULT_SEEDS=17,23 repeats runs with kills; FAULT_SECONDS=600 takes fresh seeds for so long in place of the fixed ones.
test-faults: .venv/.dev ## All that takes long: processes killed, endpoints broken, disks filled (about half an hour)
	@$(PYTHON) -m pytest -m faults -rP -n $(if $(FAULT_SECONDS),0,2)

# TESTS=tests/cluster/test_run.py runs a part.  Faults on a cluster take long and are named: -m 'cluster and faults'.
test-cluster: .venv/.dev ## Try the platform and a run on the cluster of KUBECONFIG
	@$(PYTHON) -m pytest -m 'cluster and not faults' $(or $(TESTS),tests/cluster)

check: .venv/.dev ## Format, lint, types, layers, and whether compiled files and docs are current
	@.venv/bin/ruff format --check .
	@.venv/bin/ruff check .
	@.venv/bin/mypy
	@.venv/bin/lint-imports
	@$(PYTHON) -m pytest tests/manifests/test_golden.py tests/manifests/test_docs.py

compile: .venv/.dev ## Write argo/ anew from the shipped pipeline, and what the chart takes from contracts/
	@.venv/bin/retrain compile adult.yaml
	@$(PYTHON) -m workflows.platform

docs: .venv/.dev ## Write the generated pages of docs/ anew
	@$(PYTHON) -m workflows.docs

benchmark: .venv/.dev ## Measure all that is promised of speed and memory, beside baselines in the same run
	@$(PYTHON) -m tests.benchmarks
	@$(PYTHON) -m tests.benchmarks.serving

images: ## Build the images of steps, serving and MLflow (BUILD, REGISTRY, BASE: see images/build)
	@images/build build

push: ## Push them, and note their digests for the chart
	@images/build push

operators: ## Install Argo Workflows, Argo Events, metrics-server and Sealed Secrets where they are missing (an administrator's)
	@kind/operators

platform: ## Install or upgrade the platform in the cluster of KUBECONFIG (VALUES, NAMESPACE)
	@kind/install -n $(NAMESPACE) $(foreach file,$(VALUES),-f $(abspath $(file)))

backup: ## Copy the platform's databases and buckets into FOLDER
	@kind/backup -n $(NAMESPACE) $(FOLDER)

restore: ## Bring them back from FOLDER; no run may be under way
	@kind/restore -n $(NAMESPACE) $(FOLDER)

smoke: .venv/.runtime ## Try the whole way on the cluster of KUBECONFIG: submit, wait, predict, lineage (PIPELINE, NAMESPACE)
	@$(PYTHON) -m workflows.cluster.smoke $(PIPELINE) -n $(NAMESPACE)

cluster: ## A cluster on this machine, with a registry, the images and the platform (needs Docker and kind)
	@kind/up
	@KUBECONFIG="$(CURDIR)/kind/kubeconfig" IN_CLUSTER=kind-registry:5000/mlops $(MAKE) --no-print-directory images push platform
	@echo "cluster: where kubectl looks elsewhere, \`kind export kubeconfig --name retrain\` points it here"

lock: | $(UV) ## Resolve the dependencies of pyproject.toml into the lock files
	@$(UV) pip compile -q --universal --generate-hashes --no-header --no-annotate pyproject.toml -o requirements.lock
	@for image in serving mlflow; do $(UV) pip compile -q --universal --generate-hashes --no-header --no-annotate \
	 --group $$image -c requirements.lock -o images/$$image/requirements.lock || exit; done
	@$(UV) pip compile -q --universal --generate-hashes --no-header --no-annotate --extra xgboost --group dev -c requirements.lock pyproject.toml -o requirements-dev.lock

lock-check: .venv/.dev ## Ask the package index whether every locked package has a wheel for each platform
	@$(PYTHON) -m pytest -m network tests/platforms

clean: ## Remove environments and caches (never .retrain, which holds your models)
	@rm -rf .venv .uv .mypy_cache .ruff_cache .import_linter_cache

# ---- the environment: uv (brought when missing), a Python that fits, the locked packages, this project
.uv/bin/uv:
	@python3 -m venv .uv >/dev/null 2>&1 && .uv/bin/python -m pip install -q uv==$(UV_VERSION) \
	 || python3 -m pip install -q --target .uv uv==$(UV_VERSION) \
	 || { rm -rf .uv; echo "setup: python3 has neither venv nor pip; install one (Debian: apt-get install python3-venv) or uv" >&2; exit 69; }

.venv/bin/python: | $(UV)
	@$(UV) venv -q --python '>=3.11,<3.14' .venv

.venv/.runtime: requirements.lock pyproject.toml | .venv/bin/python
	@echo "setup: installing the locked packages into .venv"
	@$(UV) pip install -q --python $(PYTHON) --require-hashes -r requirements.lock
	@$(UV) pip install -q --python $(PYTHON) --no-deps -e .
	@touch $@

.venv/.dev: requirements-dev.lock .venv/.runtime
	@$(UV) pip install -q --python $(PYTHON) --require-hashes -r requirements-dev.lock
	@touch $@
