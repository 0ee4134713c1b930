# Every target does its own set-up (.ci/setup) and is safe to run again.
# make test ARGS="tests/unit -k paths" passes arguments on to pytest.

ARGS ?=

.PHONY: help demo bench crash soak test container check format clean setup

help:
	@echo "make demo     see cachefs at work on a sample library; needs nothing"
	@echo "make bench    how fast cachefs is, beside the native folder and its peers; as root"
	@echo "make crash    kill cachefs 500 times at work and look for what was lost; half an hour"
	@echo "make soak     half an hour with 200 readers: memory and descriptors stay what they were; as root"
	@echo "make test     run all tests"
	@echo "make container   build the image, and try it beside Plex; as root, with podman, buildah and runc"
	@echo "make check    format, lint and types, as CI checks them"
	@echo "make format   mend format and lint where that can be done"
	@echo "make clean    remove .venv and everything built"

setup:
	@.ci/setup

demo: setup
	.venv/bin/python -m tests.demo

# The peers are measured where they are installed; without them, cachefs alone.
bench: setup
	@.ci/setup-peers
	.venv/bin/python -m tests.bench $(ARGS)

# The same seed repeats the same run: make crash ARGS="--kills 500 --seed 7".
crash: setup
	.venv/bin/python -m tests.crash $(ARGS)

# make soak ARGS="--minutes 5 --mode move"
soak: setup
	.venv/bin/python -m tests.soak $(ARGS)

# Three at a time, since most of them wait for something; what measures, alone.
test: setup
ifeq ($(strip $(ARGS)),)
	.venv/bin/python -m pytest -n 3 --dist loadscope -m "not alone"
	.venv/bin/python -m pytest -m alone
else
	.venv/bin/python -m pytest $(ARGS)
endif

container: setup
	.venv/bin/python -m tests.container $(ARGS)

check: setup
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy

format: setup
	.venv/bin/ruff format .
	.venv/bin/ruff check --fix .

clean:
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find cachefs tests -name __pycache__ -prune -exec rm -rf {} +
