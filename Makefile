SHELL = /bin/bash
LINT_PATHS = sb3_flowrl/ tests/ examples/ benchmarks/ setup.py

.PHONY: test test-slow lint type format study report docs device-dry-run

test:
	python -m pytest -m "not slow"

test-slow:
	python -m pytest -m slow

lint:
	ruff check $(LINT_PATHS)
	black --check $(LINT_PATHS)

type:
	mypy $(LINT_PATHS)

format:
	ruff check --fix $(LINT_PATHS)
	black $(LINT_PATHS)

# The runs of a study that are not finished, and its report, in which a run that failed is named
study:
	python -m benchmarks.study run $(STUDY); finished=$$?; python -m benchmarks.study report $(STUDY) && exit $$finished

# What a machine with a GPU is asked, on a CPU and small
device-dry-run:
	PYTHON=python benchmarks/device.sh build/device-dry-run --dry-run

# All reports anew, from the files in docs/results alone
report:
	python -m benchmarks.study report

# The documentation site, in build/docs; warnings are errors
docs:
	python -m sphinx -W --keep-going -b html docs build/docs
