PYTHON ?= python
ROOMS = configuration_mf2 processing_mf2 modeling_mf2 dataset_mf2 training_mf2 train.py tests examples

.PHONY: quality style test test-slow demo

quality:
	$(PYTHON) -m ruff check $(ROOMS)
	$(PYTHON) -m ruff format --check $(ROOMS)

style:
	$(PYTHON) -m ruff check --fix $(ROOMS)
	$(PYTHON) -m ruff format $(ROOMS)

test:
	$(PYTHON) -m pytest

test-slow:
	$(PYTHON) -m pytest -m slow --timeout 3600

demo:
	$(PYTHON) examples/quickstart.py
