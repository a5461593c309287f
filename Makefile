PYTHON ?= python
# Outside the repository.
ENVIRONMENTS ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/mf2
ROOMS = configuration_mf2 processing_mf2 modeling_mf2 mf2face train.py tests examples docs

.PHONY: quality style test test-slow test-oldest test-newest demo docs checkpoint checkpoint-small

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

# Both ends of setup.cfg, each in a fresh environment (about 7 GB with the CUDA libraries): its lower bounds, and the newest
# versions on the index, whatever its upper bounds say: what passes there may be the next bound.
test-oldest:
	rm -rf $(ENVIRONMENTS)/oldest && $(PYTHON) -m venv $(ENVIRONMENTS)/oldest
	sed -nE 's/^ +([A-Za-z0-9_-]+)>=([0-9.]+).*/\1==\2/p' setup.cfg > $(ENVIRONMENTS)/oldest/bounds.txt
	$(ENVIRONMENTS)/oldest/bin/python -m pip install -c $(ENVIRONMENTS)/oldest/bounds.txt -e ".[dev]"
	$(ENVIRONMENTS)/oldest/bin/python -m pytest

test-newest:
	rm -rf $(ENVIRONMENTS)/newest && $(PYTHON) -m venv $(ENVIRONMENTS)/newest
	sed -nE '/^install_requires/,/^$$/s/>=.*//p; /^dev =/,/^demo =/s/>=.*//p' setup.cfg > $(ENVIRONMENTS)/newest/names.txt
	$(ENVIRONMENTS)/newest/bin/python -m pip install -r $(ENVIRONMENTS)/newest/names.txt
	$(ENVIRONMENTS)/newest/bin/python -m pip install --no-deps -e .
	$(ENVIRONMENTS)/newest/bin/python -m pytest

demo:
	$(PYTHON) examples/demo/app.py

# Needs the extra: pip install -e ".[docs]". A reference that leads nowhere is an error. Begin at docs/_build/index.html
docs:
	$(PYTHON) -m sphinx --fail-on-warning --keep-going docs docs/_build

# The released checkpoint: a tower that is told no label; MF² with language on it, on the renders' landmarks, which trains
# the tower too; then other people, landmarks as MediaPipe finds them (`mf2 setup` first), and more weight on labels; then yet
# other people, and the answer that the landmarks give by themselves. Probabilities, thresholds and conformal cuts are from
# validation people; then evidence, grades and card. With PHOTOGRAPHS=FOLDER (pictures, labels.csv) and SOURCE=NAME they are
# graded on photographs; without, all stay experimental. Two hours of a CPU core or more, by its bfloat16 products; without
# them, PRECISION= is faster. The small one, for a GPU or a night, is not put into the repository. The seed is the
# Trainer's default.
SIZE = tiny
PRECISION = --bf16 True
NAME = mf2-$(SIZE)-rendered
TRAINED = --model_size $(SIZE) --style studio+street --num_images 12000 $(PRECISION)
LEARNED = --augment heavy --load_best_model_at_end False --eval_strategy no --save_half True
ON_LABELS = --model_options 'vision_config={"frozen": false}' 'loss_weights={"au": 4, "emotion": 2, "intensity": 2}'
MEASURED = outputs/$(NAME)-photographs.json
checkpoint-small: SIZE = small
checkpoint checkpoint-small:
	$(PYTHON) train.py --task tower $(TRAINED) --num_train_epochs 12 --output_dir outputs/$(NAME)-tower
	$(PYTHON) train.py $(TRAINED) --vision_name_or_path outputs/$(NAME)-tower $(LEARNED) --num_train_epochs 6 \
		--model_options 'vision_config={"frozen": false}' emo_pair_share=0.125 au_pair_share=0.03125 shape_weight=0 \
		--output_dir outputs/$(NAME)-exact
	$(PYTHON) train.py $(TRAINED) --model_name_or_path outputs/$(NAME)-exact $(LEARNED) --num_train_epochs 3 \
		--landmarks detector --people_seed 2 --learning_rate 1e-3 $(ON_LABELS) shape_weight=0 --output_dir outputs/$(NAME)-detected
	$(PYTHON) train.py $(TRAINED) --model_name_or_path outputs/$(NAME)-detected $(LEARNED) --num_train_epochs 4 \
		--landmarks detector --people_seed 3 --learning_rate 5e-4 $(ON_LABELS) shape_weight=2 --output_dir outputs/$(NAME)
	$(if $(PHOTOGRAPHS),$(PYTHON) examples/benchmark/photographs.py --photos $(PHOTOGRAPHS) --labels $(PHOTOGRAPHS)/labels.csv \
		--part report --scores --model outputs/$(NAME) --json $(MEASURED))
	$(PYTHON) examples/benchmark/reliability.py outputs/$(NAME) $(if $(PHOTOGRAPHS),--photographs $(MEASURED) --source "$(SOURCE)") \
		--json outputs/$(NAME)-reliability.json
	$(if $(filter tiny,$(SIZE)),$(PYTHON) examples/release_checkpoint.py outputs/$(NAME) model_cards/$(NAME))
