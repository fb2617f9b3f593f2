# The commands of this project. `make help` lists the targets with the text behind `##`; the
# comment above a target has the details.

.PHONY: help demo test check lint hw-tests mutants fuzz reliability bench fleet interop setup deb rpm packages-check system foreign
.DEFAULT_GOAL := test

# Every target needs its line: without one this fails, and so does `make lint`.
help: ## This list
	@awk -F ':.*## ' '/^[a-z-]+:([^=]|$$)/ { \
	        if (NF < 2) { print "make help: no text behind ## for " $$0 >"/dev/stderr"; failed = 1 } \
	        else printf "%-15s %s\n", $$1, $$2 } \
	    END { exit failed }' Makefile

# Takes about a minute after the build. Leaves nothing behind. EST=1 tells the same of an identity that
# is enrolled over EST, with an enrollment token.
EST :=
demo: ## The whole story on the terminal: a software TPM, the development MIS, the agent
	@scripts/setup demo
	cargo build --package miaf-agent --package development-mis --package development-wfm --package miaf-client --bins --example mtls-client --example wfm-client
	@scripts/demo$(if $(EST),-est)

# Unit and property tests, and the real agent against a real TPM 2.0 (swtpm) and the development
# MIS. Some tests need root: they are listed and left out for any other user.
test: setup ## All tests, also with a software TPM and the development MIS (the default)
	@scripts/test

# The fast loop: no root, no network, no TPM, and nothing is installed. The unit tests expect the
# umask that the agent sets for itself.
check: ## Format, clippy, unit and property tests: the fast loop, without root, network or TPM
	@scripts/setup --dry-run build
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- --deny warnings
	umask 022 && cargo test --workspace --lib --bins

lint: ## Format, clippy on everything, rustdoc, and this list
	@$(MAKE) --no-print-directory help >/dev/null
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- --deny warnings
	cargo clippy --test interop -- --deny warnings
	RUSTDOCFLAGS="--deny warnings" cargo doc --quiet --no-deps --workspace

# With swtpm here; with hw-tests/run --tcti device:/dev/tpmrm0 on a device.
hw-tests: ## The suite for TPM chips, against a software TPM
	@scripts/setup demo
	hw-tests/run

# Changes the validation of SVIDs and bundles in one place at a time: a test must fail each time.
# Half an hour.
mutants: setup ## Mutation tests of the SVID and bundle validation; half an hour
	scripts/mutants

# libFuzzer searches for bytes from outside that break a rule (src/fuzzing.rs). 30 s per target;
# FUZZ_SECONDS=600 for longer.
fuzz: ## Fuzzing of every parser of outside data, 30 s per target; FUZZ_SECONDS=600 for longer
	@scripts/setup fuzz
	scripts/fuzz

# The long form of tests/reliability: every call on the agent's files fails with every error, and
# a kill comes at every one of them and at 1,000 random moments, under every setting of key
# rotation. As root, for strace and mounts.
reliability: setup ## The long form of the kill and fault tests; as root, twenty minutes
	RELIABILITY=long cargo test --test reliability -- --include-ignored --nocapture --test-threads=2

# Holds the sockets against limits: readers, a thousand subscribers, signatures. Three minutes with
# the build.
bench: setup ## Throughput and memory of the sockets, held against limits; three minutes
	cargo bench --bench sockets

# 100,000 of the daemon's own lifecycles against a model MIS: writes docs/fleet.md and its plots,
# and fails if a bound does not hold. A quarter of an hour on two cores.
fleet: setup ## Simulation of 100,000 devices at one MIS; writes docs/fleet.md; a quarter of an hour
	cargo run --profile fleet --example fleet

# SPIFFE and gRPC clients of other projects, in Go, Java and Node, through rotations, restarts and
# a change of the root. A language whose tools are not installed is left out, with a message. One
# to two minutes once the libraries are there.
interop: setup ## SPIFFE and gRPC clients in Go, Java and Node against the agent
	tests/interop/run

# The release build takes two or three minutes the first time. ARCH=arm64 or ARCH=armhf makes the
# packages for another architecture, with Debian's own compilers in a chroot (packaging/cross): 2
# GB in target/cross.
ARCH :=
deb: ## The Debian package, in target/package; ARCH=arm64 or ARCH=armhf for another architecture
	@scripts/setup packages $(if $(ARCH),cross)
	packaging/build $(ARCH)
	packaging/deb $(if $(ARCH),--arch $(ARCH))

rpm: ## The RPM package, in target/package; ARCH as for deb
	@scripts/setup packages $(if $(ARCH),cross)
	packaging/build $(ARCH)
	packaging/rpm $(if $(ARCH),--arch $(ARCH))

# lintian, rpmlint and systemd on the packages, and whether two directories give the same bytes.
# FULL=1 compiles in both of them. ARCHS="arm64 armhf" also checks the packages for these, and
# compares them with this machine's.
ARCHS :=
packages-check: ## lintian, rpmlint, units, links, reproducibility of the packages; FULL=1 to compile twice
	@scripts/setup packages $(if $(ARCHS),cross)
	packaging/build
	set -e; for arch in $(ARCHS); do packaging/build $$arch; done
	packaging/check $(ARCHS)

# The first time it makes a Debian to boot.
system: deb rpm ## The packages on booted machines, from installation to removal; as root
	@scripts/setup machines
	cargo build --quiet --package development-mis --package hw-tests
	tests/system/run

# On Debian 12 and 13 of each architecture. The first time it makes four small Debians, a minute
# each.
foreign: ## The packages for arm64 and armhf, under qemu-user; as root
	@scripts/setup packages cross machines
	set -e; for arch in arm64 armhf; do packaging/build $$arch; packaging/deb --arch $$arch; done
	cargo build --quiet --package development-mis
	tests/system/foreign

setup: ## Installs what make test needs, and says what before it does
	@scripts/setup test
