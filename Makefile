# The two commands of the README, and the checks that CI runs beside them.

.PHONY: demo test lint hw-tests mutants fuzz reliability bench fleet interop setup deb rpm packages-check system foreign
.DEFAULT_GOAL := test

# The whole story on the terminal, in about a minute after the build. Leaves nothing behind.
demo:
	@scripts/setup demo
	cargo build --package miaf-agent --package development-mis --bins --example mtls-client
	@scripts/demo

# All tests: pure ones, and the real agent against a real TPM 2.0 (swtpm) and the development MIS. As somebody who is not
# root, those that can do without; the others are named.
test: setup
	@scripts/test

lint:
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- --deny warnings
	cargo clippy --test interop -- --deny warnings
	RUSTDOCFLAGS="--deny warnings" cargo doc --quiet --no-deps --workspace

# The agent's keys on a TPM: a software one here, and hw-tests/run --tcti device:/dev/tpmrm0 on a device.
hw-tests:
	@scripts/setup demo
	hw-tests/run

# Makes the judgement of SVIDs and bundles wrong in one place at a time: a test must notice each. Half an hour.
mutants: setup
	scripts/mutants

# Has libFuzzer look for bytes from outside that break a rule (src/fuzzing.rs), 30 s a target; FUZZ_SECONDS=600 for longer.
fuzz:
	@scripts/setup fuzz
	scripts/fuzz

# The long form of tests/reliability: every call on the agent's files fails with every error, and a kill comes at every one of
# them and at 1,000 random moments, under every setting of key rotation. Twenty minutes; as root, for strace and mounts.
reliability: setup
	RELIABILITY=long cargo test --test reliability -- --include-ignored --nocapture --test-threads=2

# What the sockets can bear, held against limits: readers, a thousand watchers, signatures. Three minutes with the build.
bench: setup
	cargo bench --bench sockets

# 100,000 of the daemon's own lifecycles against a model MIS: writes docs/fleet.md and its plots, and fails if a bound does not
# hold. A quarter of an hour on two cores.
fleet: setup
	cargo run --profile fleet --example fleet

# Other people's SPIFFE and gRPC clients, in Go, Java and Node, through rotations, restarts and a change of the root. Leaves
# out those whose tools are not installed, and says so. One to two minutes once the libraries are there.
interop: setup
	tests/interop/run

# The packages, in target/package. The release build takes two or three minutes the first time. ARCH=arm64 or ARCH=armhf makes
# them for another architecture, with Debian's own compilers in a chroot (packaging/cross): 2 GB in target/cross.
ARCH :=
deb:
	@scripts/setup packages $(if $(ARCH),cross)
	packaging/build $(ARCH)
	packaging/deb $(if $(ARCH),--arch $(ARCH))

rpm:
	@scripts/setup packages $(if $(ARCH),cross)
	packaging/build $(ARCH)
	packaging/rpm $(if $(ARCH),--arch $(ARCH))

# What lintian, rpmlint and systemd think of them, and whether two folders give the same bytes. FULL=1 compiles in both folders.
# ARCHS="arm64 armhf" also checks the packages for these, and holds them against this machine's.
ARCHS :=
packages-check:
	@scripts/setup packages $(if $(ARCHS),cross)
	packaging/build
	set -e; for arch in $(ARCHS); do packaging/build $$arch; done
	packaging/check $(ARCHS)

# The packages on booted machines, from installation to removal. Needs root; the first time it makes a Debian to boot.
system: deb rpm
	@scripts/setup machines
	cargo build --quiet --package development-mis --package hw-tests
	tests/system/run

# The packages for arm64 and armhf on Debian 12 and 13 of that architecture, under qemu-user. Needs root; the first time it makes
# four small Debians, a minute each.
foreign:
	@scripts/setup packages cross machines
	set -e; for arch in arm64 armhf; do packaging/build $$arch; packaging/deb --arch $$arch; done
	cargo build --quiet --package development-mis
	tests/system/foreign

setup:
	@scripts/setup test
