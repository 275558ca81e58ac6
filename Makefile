# What this project can be asked to do.  Every target makes the environment it needs in .venv, once.

GUEST ?= stats
ARGS ?=
PYTHON_IN_VENV := .venv/bin/python

.DEFAULT_GOAL := help
.PHONY: help boot test test-long test-qemu test-packages lint bench bench-linux bench-restore images clean boot-environment test-environment

help:
	@echo 'make boot     boot a bundled guest and watch its balloon (GUEST=stats, ARGS=more options)'
	@echo 'make test     lint, then every test'
	@echo 'make test-long  the fast code against its plain reference, with twenty times as many examples (some minutes)'
	@echo 'make test-qemu  the profile qemu, QMP and the monitor beside QEMU itself (installs qemu-system-x86)'
	@echo 'make lint     ruff and mypy --strict'
	@echo 'make bench    the device beside C loops, and the whole machine, in one table (some minutes)'
	@echo 'make bench-linux  the same Debian kernel here and in QEMU, side by side (some minutes; needs qemu-system-x86)'
	@echo 'make bench-restore  from the command to the shell of a Debian guest in a snapshot'
	@echo 'make images   build firmware and guests from their sources again'
	@echo 'make clean    remove the environment and everything that was made'

boot: boot-environment
	@$(PYTHON_IN_VENV) -m vmm boot $(GUEST) $(ARGS)

test: lint test-packages
	$(PYTHON_IN_VENV) -m pytest -n 2 $(ARGS)

test-long: test-environment
	VMM_EXAMPLES=20 $(PYTHON_IN_VENV) -m pytest -n 2 --timeout 0 tests/devices/virtio/test_*equality.py $(ARGS)

test-qemu: test-environment
	@tools/debian-install qemu-system-x86 qemu-system-x86_64
	$(PYTHON_IN_VENV) -m pytest -n 2 -m beside_qemu $(ARGS) tests/hostile tests/vmm/control

# Other people's firmware and kernel, for the tests that boot them, other people's reading of ACPI tables, a debugger, and curl.
test-packages: test-environment
	@tools/debian-package seabios
	@tools/debian-package acpica-tools
	@tools/debian-package busybox-static
	@tools/debian-package linux-image-cloud-amd64 linux-image-
	@tools/debian-package gdb --needs
	@tools/debian-package curl --needs

lint: test-environment
	$(PYTHON_IN_VENV) -m ruff check .
	$(PYTHON_IN_VENV) -m ruff format --check .
	$(PYTHON_IN_VENV) -m mypy

bench: test-environment
	$(PYTHON_IN_VENV) -m bench
	$(PYTHON_IN_VENV) -m pytest bench -q -k one_request --benchmark-columns=min,median,iqr,rounds --benchmark-sort=name

bench-linux: test-environment
	@tools/debian-install qemu-system-x86 qemu-system-x86_64
	$(PYTHON_IN_VENV) -m bench.linux

bench-restore: test-environment
	$(PYTHON_IN_VENV) -m bench.restore

images: test-environment
	$(PYTHON_IN_VENV) -m firmware.build
	$(PYTHON_IN_VENV) -m guests.build

# tools/environment does nothing when the environment is what pyproject.toml asks for.
boot-environment test-environment: %-environment:
	@tools/environment $*

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	find vmm devices firmware guests tests -name __pycache__ -type d -prune -exec rm -rf {} +
