# Two environments, one per generation of TransformerLens. Every target sets up what it needs;
# a second call installs and fetches nothing.

PYTHON ?= python3
WORKERS ?= 2
OUT ?= conformance-out
RUNS ?= $(OUT) $(OUT)-tl3

TL4 := .venv
TL3 := .venv-tl3

.PHONY: conformance test coverage conformance-tl3 test-tl3 coverage-tl3 results lint bench clean help

help:
	@echo "make conformance      judge the models of models.toml (transformer-lens 4.3.0)"
	@echo "make test             the harness's own tests"
	@echo "make coverage         what transformer-lens supports and models.toml does not cover"
	@echo "make conformance-tl3  the same under transformer-lens 3.9.0"
	@echo "make test-tl3"
	@echo "make results          docs/results.md from the records of both runs"
	@echo "make coverage-tl3"
	@echo "make lint             ruff and mypy"
	@echo "make bench            time the harness against a bare script"

conformance: $(TL4)/.installed
	$(TL4)/bin/conformance run -n $(WORKERS) --out $(OUT) --explain

test: $(TL4)/.installed
	$(TL4)/bin/pytest -n $(WORKERS)

coverage: $(TL4)/.installed
	$(TL4)/bin/conformance coverage

conformance-tl3: $(TL3)/.installed
	$(TL3)/bin/conformance run -n $(WORKERS) --out $(OUT)-tl3 --explain

test-tl3: $(TL3)/.installed
	$(TL3)/bin/pytest -n $(WORKERS)

results: $(TL4)/.installed
	$(TL4)/bin/conformance compare $(RUNS) --format markdown --details --into docs/results.md

coverage-tl3: $(TL3)/.installed
	$(TL3)/bin/conformance coverage

lint: $(TL4)/.installed
	$(TL4)/bin/ruff check .
	$(TL4)/bin/ruff format --check .
	$(TL4)/bin/mypy

bench: $(TL4)/.installed
	$(TL4)/bin/pytest benchmarks -o testpaths=benchmarks

$(TL4)/.installed: constraints/tl4.txt pyproject.toml
	$(call install,$(TL4),constraints/tl4.txt)

$(TL3)/.installed: constraints/tl3.txt pyproject.toml
	$(call install,$(TL3),constraints/tl3.txt)

# The stamp is written last: an interrupted installation is repeated.
define install
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "$(PYTHON) is older than 3.11: make PYTHON=python3.11 ..."; exit 2; }
	@$(PYTHON) -c 'import ensurepip' || \
	  { echo "$(PYTHON) cannot create environments: apt-get install python3-venv"; exit 2; }
	$(PYTHON) -m venv $(1)
	@# A library that installs what it misses (docs/findings/121) must not take another torch.
	@printf '[install]\nconstraint = %s\n' '$(CURDIR)/$(2)' > $(1)/pip.conf
	@echo "installing $(2) into $(1); a first time takes a few minutes"
	PIP_DISABLE_PIP_VERSION_CHECK=1 $(1)/bin/python -m pip install --quiet \
	  --constraint $(2) --editable '.[dev]'
	touch $@
endef

clean:
	rm -rf $(TL4) $(TL3) $(OUT) $(OUT)-tl3
