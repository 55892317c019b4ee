# `make fig2` and `make test` do all the set-up: a virtual environment in .venv, made once.
PYTHON ?= python3
BIN := .venv/bin
RATES := 0.05,0.1,0.2,0.3,0.4
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: fig2 test docs site figures notebooks lab voila clean

fig2: .venv/lab
	papermill nbs/fig2.ipynb out.ipynb -p rho 0.3
	@echo "Open out.ipynb: the figure and what was measured."

test: .venv/dev
	.ci/checks

# The site, readable without a network: open .cache/site/html/index.html. Its search needs `make site`.
docs: .venv/dev
	mkdir -p .cache/site/src
	NO_MKDOCS_2_WARNING=1 mkdocs build --strict

# The site with its search, served to this machine alone.
site: docs
	python -m http.server 8000 --bind 127.0.0.1 --directory .cache/site/html

# With the settings of docs/jupyter/labconfig: it asks nothing about news, and fetches none.
lab: .venv/lab
	JUPYTER_CONFIG_PATH=$(CURDIR)/docs/jupyter jupyter lab --LabApp.default_url=/lab/tree/nbs/index.ipynb

# The explorer as a page of its own, for this machine and who has the token that it prints.
voila: .venv/lab
	JUPYTER_PATH=$(CURDIR)/docs/jupyter voila nbs/explore.ipynb --template=memnb --Voila.ip=127.0.0.1 --token \
	    --Voila.tornado_settings="{'allow_remote_access': False}" --VoilaConfiguration.extension_allowlist="[]" \
	    --VoilaConfiguration.extension_denylist="['jupyterlab-jupytext']"  # which fails there

# Every figure at preset `quick`, as PNG, into docs/figures.
figures: .venv/lab
	rm -rf .cache/figures && mkdir -p .cache/figures
	for f in 1 2 3 4 5 6; do \
	    case $$f in [1-6]) rates="-p rhos $(RATES)";; *) rates=;; esac; \
	    papermill nbs/fig$$f.ipynb .cache/figures/fig$$f.ipynb -p out .cache/figures $$rates || exit 1; done
	for f in nbs/latent_*.ipynb nbs/localization_*.ipynb nbs/human_noise.ipynb nbs/modular_*.ipynb nbs/audit.ipynb nbs/four_lenses.ipynb; do \
	    papermill $$f .cache/figures/$$(basename $$f) -p out .cache/figures || exit 1; done
	find .cache/figures -name '*.png' -exec python -c "import sys; from pathlib import Path; from PIL import Image; \
	    [Image.open(f).convert('RGB').quantize(128, dither=0).save('docs/figures/' + Path(f).name, optimize=True) for f in sys.argv[1:]]" {} +
	memnb claims --root .cache/figures --update docs/claims.csv

# The experiment notebooks as they are committed: run at their defaults, outputs kept. A widget, tagged `live`, is nothing without its kernel.
TIDY := --TagRemovePreprocessor.enabled=True --TagRemovePreprocessor.remove_all_outputs_tags=live --ClearMetadataPreprocessor.enabled=True \
    --ClearMetadataPreprocessor.clear_cell_metadata=False --ClearMetadataPreprocessor.preserve_nb_metadata_mask=kernelspec
notebooks: .venv/dev
	for f in nbs/fig?.ipynb nbs/latent_*.ipynb nbs/localization_*.ipynb nbs/human_noise.ipynb nbs/modular_*.ipynb nbs/audit.ipynb nbs/four_lenses.ipynb; do \
	    papermill $$f $$f && jupyter nbconvert --log-level ERROR --coalesce-streams $(TIDY) --to notebook --inplace $$f || exit 1; done
	python tests/lessons.py --write
	nbdev_clean

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/lab: .venv/bin/python pyproject.toml
	pip install -q -e '.[lab]'
	touch $@

.venv/dev: .venv/lab
	pip install -q -e '.[dev]'
	touch $@

clean:
	rm -rf .venv runs results out*.ipynb
