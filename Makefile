# `make book` and `make test` are all that is needed; `make help` lists the rest.

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
STAMP := $(VENV)/.installed
OLDEST := .venv-oldest
INTEROP := .venv-interop
# Each of these takes a few seconds.
FAST := tests/core tests/paths tests/metrics tests/data/test_data.py tests/models/test_models.py \
	tests/test_analytic.py tests/test_couplings.py tests/test_flow_matching.py tests/test_import.py tests/test_layout.py \
	tests/book/test_notebooks_static.py tests/book/test_docs.py
# Tests of pages, notebooks and the pinned environment: they are not about the package.
OF_THE_BOOK := tests/book tests/test_environment.py tests/test_benchmarks.py
MATHJAX := 3.2.2
MATHJAX_FILE := .cache/extra/mathjax/tex-svg-full.js
HTML := _build/html/index.html
# Whatever a page shows: text, notebooks, the package's docstrings and its sources.
SHOWN := _config.yml $(shell find book flowbook benchmarks -type f -not -path '*/__pycache__/*' -not -path '*/_build/*' 2>/dev/null)
LOCK := uv pip compile --universal --python-version 3.11 --extra book --extra test --no-annotate --no-header \
	--no-emit-index-url --no-emit-find-links pyproject.toml -o requirements.lock

export PIP_DISABLE_PIP_VERSION_CHECK := 1
# One machine may hold several virtual environments; Jupyter's kernels are to come from this one.
export JUPYTER_PREFER_ENV_PATH := 1

.DEFAULT_GOAL := help
.PHONY: help book pages page test test-faults test-oldest test-interop check notebooks lint clean home lock venv

help:  ## list the commands
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1	/' | expand -t 20

book: $(STAMP)  ## render the book; warnings are errors
	@$(MAKE) --no-print-directory pages
	@echo "The book is at $(CURDIR)/_build/html/index.html"

# The tests call this one, with the Python that runs them. Built once, until something that it shows has changed.
pages: $(HTML)

$(HTML): $(MATHJAX_FILE) $(SHOWN)
	$(RUN) -c "from jupyter_book.cli.main import main; main()" build --all --quiet -n -W --keep-going --path-output . --config _config.yml book
	@touch $@

test: $(STAMP)  ## run every test and replay every notebook
	OMP_NUM_THREADS=1 $(RUN) -m pytest tests flowbook book -n 2 --dist loadfile --no-loadscope-reorder

check: lint  ## lint, types and the fast tests: what to run before each commit
	OMP_NUM_THREADS=1 $(RUN) -m pytest $(FAST) -n 2 --dist loadfile -q

test-faults: $(STAMP)  ## end trainings in many ways, train in several processes, and see that nothing is lost
	OMP_NUM_THREADS=1 $(RUN) -m pytest tests -m faults -n 2 --dist load

test-oldest: $(OLDEST)/.installed  ## the package's tests with the oldest versions that it allows
	$(OLDEST)/bin/python -m pytest flowbook tests $(addprefix --ignore=,$(OF_THE_BOOK))

test-interop: $(INTEROP)/.installed  ## the adapters against the packages that they are for
	$(INTEROP)/bin/python -m pytest tests/adapters tests/laws

page: $(STAMP)  ## run one chapter again and render it: make page CHAPTER=04
	$(RUN) scripts/notebooks.py $(wildcard book/$(CHAPTER)*.ipynb)
	@$(MAKE) --no-print-directory pages
	@echo "The pages are at $(addprefix $(CURDIR)/_build/html/,$(notdir $(patsubst %.ipynb,%.html,$(wildcard book/$(CHAPTER)*.ipynb))))"

notebooks: $(STAMP)  ## run the notebooks again and store what they print; NOTEBOOKS="book/03*.ipynb" for some
	$(RUN) scripts/notebooks.py $(or $(NOTEBOOKS),book/*.ipynb)

lint: $(STAMP)  ## ruff and mypy
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

home: $(STAMP)  ## write the project's public address: make home REPO=owner/name
	$(RUN) scripts/home.py "$(REPO)"

lock: pyproject.toml  ## choose and pin the versions anew (needs uv)
	@command -v uv >/dev/null || { echo "make lock needs uv: pip install uv"; exit 1; }
	$(LOCK)

clean:  ## remove what was built and installed
	rm -rf _build .cache .pytest_cache .mypy_cache .ruff_cache $(VENV) $(OLDEST) $(INTEROP) *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

venv: $(STAMP)  ## create the virtual environment, and nothing else

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(not (3, 11) <= v <= (3, 13))' || { \
		echo "flowbook needs Python 3.11, 3.12 or 3.13; $(PYTHON) is $$($(PYTHON) --version 2>&1)."; \
		echo "Name another one: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --no-compile --no-deps -r requirements.lock
	$(RUN) -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

$(OLDEST)/.installed: requirements-oldest.txt pyproject.toml
	test -x $(OLDEST)/bin/python || $(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet --no-compile --constraint requirements-oldest.txt --editable ".[test]" nbformat nbclient
	@touch $@

$(INTEROP)/.installed: pyproject.toml
	test -x $(INTEROP)/bin/python || $(PYTHON) -m venv $(INTEROP)
	$(INTEROP)/bin/python -m pip install --quiet --no-compile --editable ".[interop,test]" nbformat nbclient
	@touch $@

# Mathematics without the network: one file of MathJax, fetched once, is copied into the book.
$(MATHJAX_FILE):
	@command -v npm >/dev/null || { \
		echo "make book fetches MathJax with npm, which is not here. Install Node.js, or put tex-svg-full.js of"; \
		echo "MathJax $(MATHJAX) at $@ by hand."; exit 1; }
	@mkdir -p $(@D)
	cd .cache && npm pack --silent mathjax@$(MATHJAX) && tar xzf mathjax-$(MATHJAX).tgz package/es5/tex-svg-full.js
	mv .cache/package/es5/tex-svg-full.js $@
	@rm -rf .cache/package .cache/mathjax-$(MATHJAX).tgz
	@touch $@
