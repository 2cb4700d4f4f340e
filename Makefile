SHELL = /bin/bash
LINT_PATHS = sb3_flowrl/ tests/ examples/ benchmarks/ studies/ docs/ setup.py

.PHONY: test test-slow lint type format study report docs device-dry-run

test:
	python -m pytest -n 2 --dist loadfile -m "not slow"

test-slow:
	python -m pytest -n 2 --dist loadfile -m slow

lint:
	ruff check $(LINT_PATHS)
	black --check $(LINT_PATHS)

type:
	mypy $(LINT_PATHS)

format:
	ruff check --fix $(LINT_PATHS)
	black $(LINT_PATHS)

# Do the unfinished runs of a study, then make its report, which names the runs that failed
study:
	python -m studies run $(STUDY); finished=$$?; python -m studies report $(STUDY) && exit $$finished

# What a machine with a GPU is asked, on a CPU and small
device-dry-run:
	PYTHON=python benchmarks/device.sh build/device-dry-run --dry-run

# Make all reports from the files in studies/results alone; report.html of each study is not in the repository
report:
	python -m studies report

# The documentation site, in build/docs; warnings are errors
docs:
	python -m sphinx -W --keep-going -b html docs build/docs
