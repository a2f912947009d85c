# The commands of a day, in whatever environment is active.
.PHONY: check test robustness bench docs pythons

check:  ## style and types
	ruff check . && ruff format --check . && mypy

test:  ## the unit tests, some minutes
	pytest -q -m "not servers and not robustness"

robustness:  ## the promises of the README at length, and real servers
	pytest -q -m "servers or robustness"

bench:  ## a training step against the naive one, and the bits of a fixed run
	python benchmarks/step.py
	python benchmarks/same_bits.py

docs:  ## what the pages say of files and settings is so
	pytest -q tests/test_docs.py tests/test_examples.py

pythons:  ## the unit tests on Python 3.12 and 3.13, in environments of their own (3 GB of CUDA libraries each)
	for version in 3.12 3.13; do \
		python$$version -m venv .venv-$$version && \
		.venv-$$version/bin/pip install -q -c constraints.txt -e '.[test]' && \
		.venv-$$version/bin/pip install -q --no-deps recbole==1.2.1 && \
		.venv-$$version/bin/pytest -q -m "not servers and not robustness" || exit 1; \
	done
