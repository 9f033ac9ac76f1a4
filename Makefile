# make demo: train a VGG16, compress it, look at the result.   make test: the suite.   make lint: ruff and mypy.
# make docs: the site, in site/, its links followed.   make coverage: which lines of the package no test runs.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: install demo test lint docs coverage
install: $(VENV)/installed

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV): PyTorch and the rest, several GB, some minutes"
	$(BIN)/python -m pip install --quiet --upgrade pip
	@# setuptools warns at length of folders beside an editable package; there is nothing to be done about it
	PYTHONWARNINGS='ignore:Editable installation' $(BIN)/python -m pip install --quiet --editable '.[dev,demo,timm]'
	touch $@

demo: install
	$(BIN)/python examples/train_vgg16_digits.py demo/vgg16.pt
	@echo
	@echo '$$ cd demo'
	@echo '$$ mint-compress vgg16.pt --ratio 0.75 -o vgg16_small.onnx --data digits'
	@cd demo && PATH="$(abspath $(BIN)):$$PATH" mint-compress vgg16.pt --ratio 0.75 -o vgg16_small.onnx --data digits --force

test: install
	$(BIN)/python -m pytest

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build
	$(BIN)/linkchecker --no-status site/index.html

$(VENV)/installed-docs: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	touch $@

coverage: install
	$(BIN)/python -m pytest --cov --cov-report=term-missing:skip-covered --cov-report=html
