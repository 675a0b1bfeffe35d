# Run the fuzzers in fuzz/. FUZZ_SEED repeats the inputs of a run.
FUZZ_SECONDS ?= 600
FUZZ_TARGETS ?=
PYTHON ?= .venv/bin/python

.PHONY: fuzz
fuzz:
	$(PYTHON) -m fuzz $(FUZZ_TARGETS) --seconds $(FUZZ_SECONDS) $(if $(FUZZ_SEED),--seed $(FUZZ_SEED))

# Write to both databases for SOAK_SECONDS while faults strike, and check that nothing is lost.
SOAK_SECONDS ?= 1800

.PHONY: soak
soak:
	$(PYTHON) -m soak --seconds $(SOAK_SECONDS)

# Build the site of docs/ into build/docs. A warning is an error.
.PHONY: docs
docs:
	$(PYTHON) -m sphinx -W --keep-going -q -E -b html docs build/docs
