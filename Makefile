# Everyday commands; each is also what .ci/run calls.
.PHONY: check test faults bench
check:
	ruff format --check .
	ruff check .
	mypy
	lint-imports
test:
	pytest -m "not fault"
faults:
	pytest -m fault
bench:
	python -m benchmarks
