# make demo and make test need only git, make and python3 on Debian 12; what is
# missing is installed with apt (as root, or through sudo) and into .venv.

# A system interpreter: an unprivileged user must be able to run it in the tests.
PYTHON ?= $(firstword $(wildcard /usr/bin/python3) python3)
SUDO := $(if $(filter 0,$(shell id -u)),,sudo)
BIN := .venv/bin
PACKAGES := libfuse3-dev fuse3 pkg-config gcc python3-dev python3-venv
# Tools the tests and the demo compare with or build images by.
TEST_PACKAGES := umoci skopeo fuse-overlayfs attr acl uidmap e2fsprogs xfsprogs chromium-headless-shell
VM_PACKAGES := qemu-system-x86 e2fsprogs

.PHONY: demo test test-vm lint format bench clean packages test-packages

.venv/ready: pyproject.toml | packages
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --editable ".[fast]" --group dev
	touch $@

packages:
	@.ci/packages $(PACKAGES)

test-packages:
	@.ci/packages $(TEST_PACKAGES)

demo: .venv/ready test-packages
	.ci/open-dev-fuse
	.ci/demo

test: .venv/ready test-packages
	.ci/open-dev-fuse
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile $(ARGS)

# The back ends under another kernel: KERNEL=path/to/bzImage [MODULES=dir], else Debian's.
test-vm: .venv/ready test-packages
	@.ci/packages $(VM_PACKAGES)
	@PYTHONPATH=tests exec $(BIN)/python -m support.vm --kernel "$(KERNEL)" --modules "$(MODULES)" $(ARGS)

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: .venv/ready test-packages
	.ci/open-dev-fuse
	$(BIN)/python -m bench $(ARGS)

clean:
	rm -rf .venv .demo build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
