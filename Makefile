# make demo      train three small ViTs on digits and write runs/demo/report.html (about five minutes after set-up)
# make test      run the tests
# make quality   check style and format
# make docs      make the generated pages anew: families, reliability, tables, figures, zoo (needs ../shared or VITGRAFT_SHARED)
# make site      make the pages of docs/ and the API into one site, runs/site/index.html, and check all links inside
# make study     make the runs of reproduction/study that are missing in results/study, then docs/study.md (BUDGET, JOBS)
# All set up what they need in .venv, at the versions of constraints.txt. Nothing else has to be installed by hand.
# CI runs .ci/run: demo (of two steps), quality, test and site.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# options of the demo, such as --steps 2
DEMO ?=
# of the study: minutes, and processes of one thread
BUDGET ?= 60
JOBS ?= 1

.PHONY: demo test quality style docs site study clean

demo: $(READY)
	$(BIN)/vitgraft demo $(DEMO)

test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations=10

quality: $(READY)
	$(BIN)/ruff check src tests reproduction benchmarks docs/notebooks
	$(BIN)/ruff format --check src tests reproduction benchmarks docs/notebooks

style: $(READY)
	$(BIN)/ruff check --fix src tests reproduction benchmarks docs/notebooks
	$(BIN)/ruff format src tests reproduction benchmarks docs/notebooks

docs: $(READY)
	$(BIN)/vitgraft families --output docs/families.md
	$(BIN)/python tests/faults/reliability_page.py
	$(BIN)/python -m reproduction tables --format markdown --output docs/tables.md
	$(BIN)/python -m reproduction figures tradeoff --out docs/pictures
	OMP_NUM_THREADS=1 $(BIN)/python -m reproduction zoo
	$(BIN)/python -m benchmarks.speed --page

site: $(READY)
	$(BIN)/python -m sphinx -c docs -b html -E -W --keep-going -n -q . runs/site

study: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m reproduction study run --budget $(BUDGET) --jobs $(JOBS)
	$(BIN)/python -m reproduction study page

clean:
	rm -rf $(VENV) runs .pytest_cache .ruff_cache

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 13) else f"vitgraft needs Python 3.11 to 3.13, {sys.executable} is {v[0]}.{v[1]}: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@
