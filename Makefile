SHELL = /bin/bash
LINT_PATHS = sb3_flowrl/ tests/ examples/ benchmarks/ setup.py

.PHONY: test test-slow lint type format

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
