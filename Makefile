# Everything a person runs. Each target does its own set-up; what a machine must have before it is looked for first.

VENV ?= .venv
EXTRA ?= cpu
# The first Python that the packages are built for; `make PYTHON=…` names another.
FITS := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python3.14; do $$p -c '$(FITS)' 2>/dev/null && echo $$p && break; done)
# Where pip finds no CPU build of torch: `make TORCH_INDEX=…` names a mirror of PyTorch's CPU index.
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed-$(EXTRA)
SECURITY := build/security
BASE_IMAGE ?= debian:12.11-slim
SECOND := $(filter 2,$(LEVEL))
TOY := build/toy-scenes$(SECOND:%=-%)/heldout.parquet
SLURM := tests/integration/test_slurm.py
TRAINING := tests/integration/test_engine_ranks.py tests/integration/test_sft_run.py tests/integration/test_trl_reward.py tests/chaos/test_chaos.py

# make demo DATA=path LEVEL=2 NAME=name SEED=n SET="section.field=value …"
DATA ?=
CONFIG ?= configs/demo$(if $(DATA),-data,$(SECOND:%=-%)).toml
NAME ?= $(basename $(notdir $(CONFIG)))
SEED ?= 0
SET ?=

# make simulate SEEDS=first:end JOBS=processes
SEEDS ?= 0:10000
JOBS ?= 2

# Packages come uncompiled: without written bytecode each process compiles torch, transformers and vLLM once more.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: setup demo docs images pin-images test test-docker simulate check check-setup check-cuda check-plan check-security fuzz chaos bench-gpu wheel format lint types imports units integration slurm training e2e start-checkpoint start-checkpoint-2 clean distclean help

help: ## Show the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

setup: $(INSTALLED) ## Virtual environment with pinned packages (EXTRA=cpu or cuda)

$(INSTALLED): pyproject.toml constraints/$(EXTRA).txt
	@test -n "$(PYTHON)" || { printf '%s\n' "make: no Python 3.11 to 3.14 here. Install one (Debian, Ubuntu 24.04: apt-get install python3-dev python3-venv)," \
	  "or let uv bring it: pip install uv && uv python install 3.12 && make PYTHON=\$$(uv python find 3.12)"; exit 1; }
	@$(PYTHON) -m planning.preflight.bare "$(VENV)" $(EXTRA)
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python deploy/install/install.py --extra $(EXTRA) --extra dev
ifeq ($(EXTRA),cpu)
	@$(BIN)/python -c "from compat.torchvision_cpu import install; install()"
	@$(BIN)/python -m trainer.policy.deepspeed.api
endif
	@$(BIN)/sgg-rl doctor
	@touch $@

$(TOY): $(INSTALLED) scene_data/toy/scenes.py scene_data/toy/layouts.py
	$(BIN)/sgg-rl data make-toy $(@D) $(SECOND:%=--level %)

demo: $(INSTALLED) $(if $(DATA),,$(TOY)) ## The whole loop on this machine: runs/<name>/
	$(BIN)/sgg-rl demo --config $(CONFIG) $(if $(DATA),--data "$(DATA)") --set run.name=$(NAME) --set run.seed=$(SEED) $(foreach s,$(SET),--set $(s))

# Two at a time; three are no faster on two cores. In this order both end together: after the two that take seconds the longest.
# Threads of two suites would wait for one another spinning.
test: export OMP_NUM_THREADS ?= 1
test: $(INSTALLED) ## Everything that a CPU machine can run
	@$(MAKE) --no-print-directory -j2 lint imports integration e2e slurm training units types

# Material says at each build that it is kept until 2027-05.
docs: $(INSTALLED) ## The pages of docs/ as a site that needs no server and no network: build/site
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "open build/site/index.html"

images: ## Container images sgg-rl:services and sgg-rl:cpu, or with EXTRA=cuda sgg-rl:cuda
	docker compose -f docker-compose.yml $(if $(filter cuda,$(EXTRA)),-f docker-compose.gpu.yml) build
	@docker image ls sgg-rl

# Compose's own override file; both need a registry.
pin-images: ## Digests in place of tags: docker-compose.images.yml, and BASE_IMAGE for .env
	docker compose --profile monitoring config --lock-image-digests prometheus grafana >docker-compose.images.yml.draft
	mv docker-compose.images.yml.draft docker-compose.images.yml
	@docker pull -q $(BASE_IMAGE) >/dev/null
	@echo "put this into .env: BASE_IMAGE=$$(docker image inspect --format '{{index .RepoDigests 0}}' $(BASE_IMAGE))"

test-docker: $(INSTALLED) ## A real `docker compose up`, where there is an engine
	@if docker info >/dev/null 2>&1; then $(MAKE) --no-print-directory images; fi
	$(BIN)/pytest tests/docker -v

check: $(INSTALLED) ## Format, lint, types, import contracts, unit and contract tests
	@$(MAKE) --no-print-directory -j2 lint types imports units

check-setup: $(INSTALLED) ## A fresh clone with the public index and a stand-in for PyTorch's: downloads 1 GB
	$(BIN)/pytest tests/setup -v

check-cuda: ## The packages for GPUs, installed apart (9 GB), and our code held against them; needs no GPU
	@$(MAKE) --no-print-directory setup EXTRA=cuda VENV=build/cuda
	build/cuda/bin/pytest tests/cuda -q

simulate: $(INSTALLED) ## The control plane on a simulated clock, under faults by seed (SEEDS=0:10000): docs/reliability.md
	$(BIN)/python -m tests.simulation --seeds $(SEEDS) --jobs $(JOBS)

check-plan: $(INSTALLED) ## What `sgg-rl plan` predicts against the real loop: compares times, wants a quiet machine
	$(BIN)/pytest tests/plan -v

bench-gpu: $(INSTALLED) ## Training and sampling of 3B and 7B on one GPU beside TRL and vLLM, in 15 minutes: build/gpu.json
	$(BIN)/python -m benchmarks.gpu --output build/gpu.json

check-security: $(INSTALLED) ## ruff's security rules, advisories against constraints/, a list of all packages (SBOM)
	$(BIN)/ruff check --select S .
	@test -x $(SECURITY)/bin/pip-audit || { $(PYTHON) -m venv $(SECURITY) && $(SECURITY)/bin/pip install -q -r constraints/security.txt; }
	@$(SECURITY)/bin/python deploy/security/check.py $(SECURITY)

chaos: $(INSTALLED) ## The real loop under 500 seeded faults, and planted bugs that its checker must find
	$(BIN)/pytest tests/chaos -v
	$(BIN)/python -m tests.chaos.run --faults 500 --output build/chaos.json

fuzz: export FUZZ_EXAMPLES ?= 20000
fuzz: $(INSTALLED) ## Damaged input for every parser, FUZZ_EXAMPLES each (20,000: an hour)
	$(BIN)/pytest tests/fuzz -v

units: $(INSTALLED)
	$(BIN)/pytest tests/unit tests/contract tests/fuzz -q

integration: $(INSTALLED)
	$(BIN)/pytest tests/integration $(addprefix --ignore=,$(SLURM) $(TRAINING)) -q --durations=15

# Six jobs at once on a Slurm of its own: half of its time is waiting.
slurm: $(INSTALLED)
	$(BIN)/pytest $(SLURM) -q

training: $(INSTALLED)
	$(BIN)/pytest $(TRAINING) -q --durations=5

e2e: $(INSTALLED)
	$(BIN)/pytest tests/e2e -q --durations=15

wheel: $(INSTALLED) ## All of sgg-rl in one file for other machines, in dist/ (docs/install.md)
	$(BIN)/python -m hatchling build --target wheel

format: $(INSTALLED) ## Rewrite the code in the project's format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lint: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(INSTALLED)
	$(BIN)/mypy

imports: $(INSTALLED)
	$(BIN)/lint-imports

start-checkpoint: $(INSTALLED) ## Make assets/toy-start again (20 minutes): docs/toy-scenes.md
	$(BIN)/sgg-rl model make-tiny build/tiny-random
	$(BIN)/sgg-rl data make-toy build/toy-clean --num-train 40000 --seed 1
	$(BIN)/sgg-rl sft --config configs/toy-pretrain.toml
	$(BIN)/sgg-rl data make-toy build/toy-noisy --num-train 12000 --seed 2 --noisy
	$(BIN)/sgg-rl sft --config configs/toy-sft.toml
	cp runs/toy-sft/model/* assets/toy-start/

start-checkpoint-2: $(INSTALLED) ## Make assets/toy-start-2 from assets/toy-start again (30 minutes)
	$(BIN)/sgg-rl data make-toy build/toy-clean-2 --num-train 40000 --seed 1 --level 2
	$(BIN)/sgg-rl sft --config configs/toy-pretrain.toml --set run.name=toy-pretrain-2 --set model.path=toy-start \
	  --set data.train=build/toy-clean-2/train.parquet --set sft.num_steps=1300
	$(BIN)/sgg-rl data make-toy build/toy-noisy-2 --num-train 12000 --seed 2 --noisy --level 2
	$(BIN)/sgg-rl sft --config configs/toy-sft.toml --set run.name=toy-sft-2 --set model.path=runs/toy-pretrain-2/model \
	  --set data.train=build/toy-noisy-2/train.parquet
	cp runs/toy-sft-2/model/* assets/toy-start-2/

clean: ## Remove built data and caches; runs stay
	rm -rf build .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache

distclean: clean ## Remove the environment too
	rm -rf $(VENV)
