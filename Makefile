# The commands of this project. Each makes .venv and installs into it by itself, and does nothing twice.
# The same commands use a GPU where there is one.
PYTHON ?= python3
RUN := .venv/bin/python

.DEFAULT_GOAL := help
.PHONY: help demo test lint base data

help: ## list these commands
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-6s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "  (PYTHON=python3.12 chooses the Python that .venv is made with)"

demo: .venv/.installed ## make a small model memorize, then compare mitigations; ends in an HTML page
	$(RUN) -m data.scenes --parts memorized,ordinary
	$(RUN) -m train fit --config configs/train/demo.yaml
	$(RUN) -m infer compare --config configs/infer/demo.yaml

test: .venv/.installed ## run the tests
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2 --dist loadfile -rs

lint: .venv/.installed ## check style and formatting
	$(RUN) -m ruff check
	$(RUN) -m ruff format --check

base: .venv/.installed ## train the bundled base model again: autoencoder, two CLIPs, UNet (about 7 hours on 2 cores)
	$(RUN) -m data.scenes --parts ordinary --number 20000
	$(RUN) -m data.scenes --parts views
	$(RUN) -m train autoencoder --config configs/train/scenes/autoencoder_emoji.yaml
	$(RUN) -m train autoencoder --config configs/train/scenes/autoencoder.yaml
	$(RUN) -m train autoencoder --config configs/train/scenes/autoencoder48.yaml
	$(RUN) -m train clip --config configs/train/scenes/clip.yaml
	$(RUN) -m train clip --config configs/train/scenes/judge.yaml
	$(RUN) -m train base --config configs/train/scenes/unet.yaml
	$(RUN) -m train fit --config configs/train/scenes/longer.yaml
	$(RUN) -m train fit --config configs/train/scenes/joint.yaml
	$(RUN) -m train fit --config configs/train/scenes/joint_longer.yaml
	rm -rf data/scenes/base data/scenes/judge
	$(RUN) -c 'import torch; from diffusers import DiffusionPipeline as P; \
	P.from_pretrained("outputs/scenes_base/joint_longer/pipeline", dtype=torch.float16).save_pretrained("data/scenes/base")'
	cp -r outputs/scenes_base/judge/pipeline/clip data/scenes/judge

data: .venv/.installed ## render the bundled image-caption shards again (needs npm)
	$(RUN) -m data.emoji

# pip is missing from a .venv whose making was interrupted; making it again completes it
.venv/.installed: pyproject.toml constraints.txt
	@$(RUN) -m pip --version >/dev/null 2>&1 || \
	{ $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	{ echo "Python 3.11 or newer is needed, '$(PYTHON)' is not: try make PYTHON=python3.12" >&2; exit 1; }; \
	$(PYTHON) -m venv .venv; }
	$(RUN) -m pip install --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@
