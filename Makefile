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

# The pages of docs/ as a web site in build/docs, which needs no network; a broken link is an error.
# npm fetches the scripts of diagrams and equations.
docs: $(INSTALLED)
	$(RUN) -m pip install --quiet --editable ".[docs]"
	rm -rf build/npm && mkdir -p build/npm
	cd build/npm && npm pack --silent @mermaid-js/tiny@11.17.2 katex@0.19.1
	$(RUN) -m zensical build --clean --strict
	tar -xzf build/npm/mermaid-js-tiny-*.tgz -C build/docs/assets --strip-components=2 package/dist
	tar -xzf build/npm/katex-*.tgz -C build/docs/assets --strip-components=2 package/dist

$(INSTALLED): setup.py
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --upgrade pip
	$(RUN) -m pip install --quiet --editable ".[dev]"
	touch $(INSTALLED)

clean:
	rm -rf $(VENV) runs
