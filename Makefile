# Two commands do everything on a fresh machine: `make demo` and `make test`. Targets are files: what is done is not
# done again, what was cut off goes on.
#
#   make NAME                    the whole walk of recipes/NAME.yaml, e.g. make sst2
#   make NAME SET="key=value"    with overrides, in a run folder of its own
SHELL := /bin/bash
.DELETE_ON_ERROR:
.SECONDARY:

PYTHON ?= $(firstword $(foreach name,python3.11 python3.12 python3.13 python3,$(shell command -v $(name))))
BIN    := .venv/bin
READY  := .venv/.ready
NAMES  := $(patsubst recipes/%.yaml,%,$(wildcard recipes/*.yaml))
DEMO   := tiny-sst2 tiny-squad tiny-squad-span
# Overrides make another run: its folder carries a checksum of them.
TAG    := $(if $(strip $(SET)),+$(shell printf '%s' "$(SET)" | cksum | cut -d' ' -f1))
IN_RUN  = $(SET) train.output_dir=runs/$*$(TAG)

.PHONY: help setup test check demo bench faults wordnet push clean $(NAMES)

help:
	@echo "make demo        the whole job on an embedded tiny model, in minutes, without GPU or network"
	@echo "make test        the tests        make check       lint, format, types"
	@echo "make bench       training and decoding side by side with the stock libraries"
	@echo "make faults      kills, damage, full disks, bad input: inflicted, counted, survived"
	@echo "make push RUN=runs/NAME   a run to the Hub, with a card of its numbers"
	@echo "make wordnet     the synonyms that METEOR wants"
	@echo "make NAME        one of: $(NAMES)"
	@echo "make NAME SET=\"model.model_name_or_path=... train.max_steps=50\""

setup: $(READY)

# torch goes first: with it in place no other package's range can bring in another build of it.
$(READY): pyproject.toml constraints.txt
	$(if $(PYTHON),,$(error Python 3.11 or newer is needed: install it, or name it as PYTHON=...))
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

test: $(READY)
	$(BIN)/python -m pytest -n 2 --dist loadfile

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Two recipes at a time, the longest first, one thread each: two cores are then busy also while libraries load.
demo: $(READY)
	@OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} HF_HUB_OFFLINE=1 $(MAKE) --no-print-directory -j2 \
		$(addsuffix /tuned/results.json,$(addprefix runs/,$(lastword $(DEMO)) $(DEMO)))
	@$(BIN)/llama-eval compare $(foreach name,$(DEMO),runs/$(name)/zero-shot runs/$(name)/tuned)

# About an hour on one core. ARGS="--only convergence" and others: python -m tests.benchmarks --help
bench: $(READY)
	$(BIN)/python -m tests.benchmarks $(ARGS)

# Some six minutes. ARGS="--only storage" and others: make faults ARGS=--help
faults: $(READY)
	$(BIN)/python -m tests.faults $(ARGS)

# METEOR's synonyms; without them its number is called meteor_no_wordnet.
wordnet: $(READY)
	$(BIN)/llama-eval wordnet

$(NAMES): %: runs/%$(TAG)/report.html
	@$(BIN)/llama-eval compare runs/$*$(TAG)/zero-shot runs/$*$(TAG)/tuned
	@$(BIN)/llama-peft push runs/$*$(TAG) --if-asked

runs/%$(TAG)/zero-shot/results.json: recipes/%.yaml | $(READY)
	$(BIN)/llama-eval run --task $< --output $(@D) $(IN_RUN)

runs/%$(TAG)/training.json: recipes/%.yaml | $(READY)
	$(BIN)/llama-peft train $< $(IN_RUN) $(ARGS)

runs/%$(TAG)/tuned/results.json: runs/%$(TAG)/zero-shot/results.json runs/%$(TAG)/training.json
	$(BIN)/llama-eval run --model runs/$*$(TAG) --output $(@D)

runs/%$(TAG)/report.html: runs/%$(TAG)/tuned/results.json
	$(BIN)/llama-eval html $(@D)

# make push RUN=runs/sst2 ARGS="--repo-id user/repo --public"
push: $(READY)
	$(BIN)/llama-peft push $(RUN) $(ARGS)

clean:
	rm -rf .venv build *.egg-info
