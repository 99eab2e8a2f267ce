# One word for each thing a developer does. `make demo` and `make test` need nothing but Python 3.11 and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# ninja and the console script are found first; one thread a process keeps small machines from thrashing.
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: setup demo test test-system test-extras bench-gpu plans notebook lint format clean

setup: $(STAMP)

# CPU machines take what pip gives for torch; for a CUDA build see README, "On a GPU".
$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing sage_scale into $(VENV) (about two minutes, once)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

# make demo MODEL=sign2gpt trains the second model on the same corpus; CONTROL=1 gives stage 2 the whole budget and
# leaves stage 1 out.
demo: $(STAMP)
	@$(BIN)/sage-scale demo $(if $(filter-out sage,$(MODEL)),--recipe $(MODEL)-demo) $(if $(CONTROL),--control) $(DEMO)

test: $(STAMP)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not system and not gpu and not extras"

test-system: $(STAMP)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "system and not gpu and not extras"

# What needs an environment or system packages of its own, which are installed where they are missing.
test-extras: $(STAMP)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "extras and not gpu"

# On a machine with a GPU (docs/results/gpu.md); BENCH_GPU=--dry runs every piece at toy size on a CPU. Repeat it to go on.
bench-gpu:
	@$(or $(wildcard $(BIN)/python),$(PYTHON)) benchmarks/gpu_campaign.py run build/gpu --out build/gpu-results $(BENCH_GPU)

# The pages of docs/plans.md, from the package's constants.
PLANNED := sage-phoenix14t sage-csl-daily sage-how2sign sage-youtube-sl25 sage-csl-news
plans: $(STAMP)
	@{ echo "# Plans of five corpora"; echo; \
	echo "Made by \`make plans\`; [plan.md](plan.md) says how they are computed. **No GPU has run this project**: rates of GPUs are"; \
	echo "assumed, as the list of constants below each plan says. No prices: give yours with \`--prices\`."; \
	for recipe in $(PLANNED); do echo; $(BIN)/sage-scale plan $$recipe --gpu h100 --markdown || exit 1; done; } > docs/plans.new
	@mv docs/plans.new docs/plans.md

# docs/python.ipynb, from docs/python.md: run, with outputs.
notebook: $(STAMP)
	@$(BIN)/python tests/factories/notebook.py

lint: $(STAMP)
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

format: $(STAMP)
	@$(BIN)/ruff check --fix . && $(BIN)/ruff format .

clean:
	rm -rf $(VENV) .peers runs .pytest_cache .mypy_cache .ruff_cache
