# Everyday commands; .ci/run calls the first, the third and the last.
.PHONY: check test test-all faults fuzz portability bench docs
check:
	ruff format --check .
	ruff check .
	mypy
	lint-imports
test:
	pytest
test-all:  # what follows the clock or injects faults runs alone, the rest on two cores
	pytest -q -m "not fault and not deadline" --durations=15
	pytest -q -m "fault or deadline" -n 0 --durations=15
faults:
	pytest -m fault -n 0
fuzz:
	FUZZ_SECONDS=300 pytest -q tests/fuzz -n 0 -s --timeout 1200
portability:
	.ci/portability
bench:
	python -m benchmarks
docs:
	sphinx-build --fail-on-warning --quiet --jobs auto docs build/docs
