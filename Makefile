# Everyday commands; .ci/run calls the first, the third and the last.
.PHONY: check test test-all faults fuzz portability bench docs
check:
	ruff format --check .
	ruff check .
	mypy
	lint-imports
test:
	pytest
test-all:
	pytest -q -m "" --durations=15
faults:
	pytest -m fault
fuzz:
	FUZZ_SECONDS=300 pytest -q tests/fuzz -s --timeout 1200
portability:
	.ci/portability
bench:
	python -m benchmarks
docs:
	sphinx-build --fail-on-warning --quiet --jobs auto docs build/docs
