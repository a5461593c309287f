PYTHON ?= python
ROOMS = configuration_mf2 processing_mf2 modeling_mf2 dataset_mf2 training_mf2 analysis_mf2 train.py tests examples docs

.PHONY: quality style test test-slow demo docs checkpoint

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
	$(PYTHON) examples/demo/app.py

# Needs the extra: pip install -e ".[docs]". A reference that leads nowhere is an error. Begin at docs/_build/index.html
docs:
	$(PYTHON) -m sphinx --fail-on-warning --keep-going docs docs/_build

# About an hour on one CPU core. The fixed seed is the Trainer's default.
checkpoint:
	$(PYTHON) train.py --task tower --output_dir outputs/mf2-tiny-synthetic-tower
	$(PYTHON) train.py --vision_name_or_path outputs/mf2-tiny-synthetic-tower --num_train_epochs 12 --load_best_model_at_end False \
		--save_half True --model_options units_alone_share=0.0 --output_dir outputs/mf2-tiny-synthetic
	$(PYTHON) examples/release_checkpoint.py outputs/mf2-tiny-synthetic model_cards/mf2-tiny-synthetic
