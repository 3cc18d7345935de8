# Everything runs in a virtual environment that the first command makes.
PYTHON ?= python3
VENV ?= .venv
RUN = $(VENV)/bin/python
INSTALLED = $(VENV)/installed

.PHONY: demo demo-smoke test test-slow lint docs clean

# The main job: teacher, student alone, and student distilled by two methods, on real digits with
# three seeds.
demo: $(INSTALLED)
	$(RUN) -m tfkd.compare --config=configs/digits.py --methods=alone,kd,ackd --seeds=3 --workdir=runs/demo

demo-smoke: $(INSTALLED)
	$(RUN) -m tfkd.compare --config=configs/digits.py:runlocal --methods=alone,kd,ackd --seeds=1 --workdir=runs/demo-smoke

test: $(INSTALLED)
	$(RUN) -m pytest -n auto --dist worksteal

test-slow: $(INSTALLED)
	$(RUN) -m pytest -n auto --dist worksteal -m slow

lint: $(INSTALLED)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

# The pages of docs/ as a web site in build/docs; a broken link is an error.
docs: $(INSTALLED)
	$(RUN) -m pip install --quiet --editable ".[docs]"
	$(RUN) -m mkdocs build

$(INSTALLED): setup.py
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --upgrade pip
	$(RUN) -m pip install --quiet --editable ".[dev]"
	touch $(INSTALLED)

clean:
	rm -rf $(VENV) runs
