# On a fresh machine `make demo` and `make test` need no other command before them. `llama-peft run` skips finished steps
# and resumes interrupted ones.
#
#   make NAME                    every step of recipes/NAME.yaml, for example make sst2
#   make NAME SET="key=value"    the same with other settings, in a run folder of its own
#   make NAME ARGS="--jobs 2"    the same, with two measurements at a time
SHELL := /bin/bash
.DELETE_ON_ERROR:
.SECONDARY:

PYTHON ?= $(firstword $(foreach name,python3.11 python3.12 python3.13 python3,$(shell command -v $(name))))
BIN    := .venv/bin
READY  := .venv/.ready
NAMES  := $(patsubst recipes/%.yaml,%,$(wildcard recipes/*.yaml))
DEMO   := tiny-sst2 tiny-squad tiny-squad-span
# CUDA=cu126 on the command line takes torch from that index of PyTorch, and not from PyPI.
INDEX  := $(if $(filter command,$(origin CUDA)),--extra-index-url https://download.pytorch.org/whl/$(CUDA))

.PHONY: help setup test check rehearse demo docs bench bench-gpu faults wordnet push clean $(NAMES)

help:
	@echo "make demo        evaluate, train and evaluate again on an embedded tiny model: minutes, no GPU, no network"
	@echo "make setup       install everything into .venv; the other targets do this when it is needed"
	@echo "make clean setup CUDA=cu126   the same with torch for another GPU or driver; constraints.txt says which"
	@echo "make test        run the tests"
	@echo "make check       check style, format and types"
	@echo "make rehearse    rehearse three recipes on a GPU that is not here, at their true shape (about a minute)"
	@echo "make docs        make a site of the documentation in .docs/site, with every key, metric and command"
	@echo "make bench       compare speed and memory with the stock libraries (about an hour)"
	@echo "make bench-gpu   the same on the GPU of this machine, with memory and checks of 4-bit training (eight minutes at most)"
	@echo "make faults      damage real runs on purpose, and count what is lost (forty minutes or more)"
	@echo "make wordnet     install the synonyms that METEOR uses"
	@echo "make clean       delete .venv and build files; runs are kept"
	@echo "make push RUN=runs/NAME   push a run to the Hub, with a card that shows its results"
	@echo "make NAME        evaluate, train and evaluate again by a recipe: $(NAMES)"
	@echo "make NAME SET=\"model.model_name_or_path=... train.max_steps=50\"   the same with other settings"

setup: $(READY)

# torch is installed first, so that no other package can bring in another build of it.
$(READY): pyproject.toml constraints.txt
	$(if $(PYTHON),,$(error Python 3.11 or newer is needed: install it, or name it as PYTHON=...))
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt $(INDEX) torch
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

test: $(READY)
	$(BIN)/python -m pytest -n 2 --dist loadfile

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy --platform win32 --cache-dir .mypy_cache/win32

# One recipe of each way to train. ARGS="--cards t4" plays another GPU; without the shape of the base nothing is rehearsed.
rehearse: $(READY)
	$(BIN)/python -m tests.rehearsal --recipes squad,sst2,squad-span --cards 4090 $(ARGS)

# Two recipes at a time, the longest first, with one thread each: this keeps two cores busy while libraries load.
demo: $(READY)
	@OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} HF_HUB_OFFLINE=1 $(MAKE) --no-print-directory -j2 \
		$(addprefix .demo-,$(lastword $(DEMO)) $(filter-out $(lastword $(DEMO)),$(DEMO)))
	@$(BIN)/llama-eval verdict $(addprefix runs/,$(DEMO))
	@echo "next: open runs/$(firstword $(DEMO))/report.html"
	@echo 'next: $(BIN)/llama-peft predict runs/$(firstword $(DEMO)) "A warm and funny film."'
	@echo "next, with your own data: $(BIN)/llama-peft init FILE.csv"

.demo-%: $(READY)
	@$(BIN)/llama-peft run recipes/$*.yaml --named > /dev/null

docs: $(READY)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	$(BIN)/python -m mkdocs build -f .docs/mkdocs.yml

# This takes about an hour on one core. For ARGS see python -m tests.benchmarks --help, for example ARGS="--only convergence".
bench: $(READY)
	$(BIN)/python -m tests.benchmarks $(ARGS)

# The base of the recipes gives the shape and the tokenizer, or a folder with both: ARGS="--base FOLDER --minutes 5".
bench-gpu: $(READY)
	$(BIN)/python -m tests.benchmarks.gpu $(ARGS)

# This takes forty minutes or more. For ARGS see make faults ARGS=--help, for example ARGS="--only storage".
faults: $(READY)
	$(BIN)/python -m tests.faults $(ARGS)

# Without WordNet's synonyms METEOR's number is called meteor_no_wordnet.
wordnet: $(READY)
	$(BIN)/llama-eval wordnet

$(NAMES): %: $(READY)
	$(BIN)/llama-peft run recipes/$*.yaml $(SET) $(ARGS)

# make push RUN=runs/sst2 ARGS="--repo-id user/repo --public"
push: $(READY)
	$(BIN)/llama-peft push $(RUN) $(ARGS)

clean:
	rm -rf .venv build *.egg-info
