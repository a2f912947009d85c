# The commands of a day, in whatever environment is active.
.PHONY: check test robustness bench site docs pythons floors newest

check:  ## style and types
	ruff check . && ruff format --check . && mypy

test:  ## the unit tests, some minutes
	pytest -q -n 2 -m "not servers and not robustness"

robustness:  ## the promises of the README at length, and real servers
	pytest -q -n 2 -m "servers or robustness or long"

bench:  ## a training step against the naive one, and the bits of a fixed run
	python benchmarks/step.py
	python benchmarks/same_bits.py

site:  ## the documentation as a site, in site/; warnings end it, as does a page that would fetch from elsewhere
	python scripts/commands_page.py --check
	NO_MKDOCS_2_WARNING=1 mkdocs build --strict
	! grep -rnoE '<(script|link|img|iframe)[^>]+(src|href)="?https?:[^ >]+' site

docs: site  ## the site, and that what the pages say of files, settings and commands is so
	pytest -q tests/test_docs.py tests/test_examples.py tests/test_doc_commands.py

pythons:  ## the unit tests on Python 3.12 and 3.13, in environments of their own (3 GB of CUDA libraries each)
	for version in 3.12 3.13; do \
		python$$version -m venv .venv-$$version && \
		.venv-$$version/bin/pip install -q -c constraints.txt -e '.[test]' && \
		.venv-$$version/bin/pip install -q --no-deps recbole==1.2.1 && \
		.venv-$$version/bin/pytest -q -n 2 -m "not servers and not robustness" || exit 1; \
	done

floors:  ## the unit tests on the oldest torch, transformers, peft, prefect and mlflow that setup.cfg allows (GBs)
	python3.11 -m venv --clear .venv-floors
	.venv-floors/bin/python scripts/floors.py > .venv-floors/floors.txt
	.venv-floors/bin/pip install -q -c .venv-floors/floors.txt -e '.[test]'
	.venv-floors/bin/pytest -q -n 2 -m "not servers and not robustness"

newest:  ## the unit tests on the newest releases that setup.cfg allows (GBs)
	python3.11 -m venv --clear .venv-newest
	.venv-newest/bin/pip install -q -e '.[test]'
	.venv-newest/bin/pytest -q -n 2 -m "not servers and not robustness"
