# What can be done here; `make help` lists it. Everything is built in one profile (release), so that each dependency is
# compiled once.

CARGO ?= cargo
PREFIX ?= /usr/local
DESTDIR ?=
# Two guests at a time are what a machine of two cores can watch closely; more tests than these wait for their turn.
TEST_THREADS ?= 2
# More words for `cargo test` and for the benchmark; QUICK=1 has the benchmark run once over a few cells.
TEST_ARGS ?=
BENCH_ARGS ?=
QUICK ?=
# In CI the committed Cargo.lock is what is built, or nothing.
LOCKED := $(if $(filter true,$(CI)),--locked)
TARGET := $(or $(CARGO_TARGET_DIR),target)

.PHONY: build help test soak lint fmt deny dependencies deps deps-demo guest demo bench-program bench \
    bench-three-stage bench-follow man install uninstall clean
.NOTPARALLEL:

build: ## the program, target/release/sterna
	$(CARGO) build --release $(LOCKED) --package sterna

help: ## this list
	@sed -n 's/^\([a-z-]*\):.* ## /\1|/p' $(MAKEFILE_LIST) | awk -F '|' '{ printf "  make %-17s %s\n", $$1, $$2 }'

test: deps guest lint ## everything that must hold: style, lints, unit tests, properties, guests on real QEMU
	@echo "== tests: units and properties, then guests that move between two agents on real QEMU (needs root)"
	RUST_TEST_THREADS=$(TEST_THREADS) $(CARGO) test --release $(LOCKED) --workspace --no-fail-fast $(TEST_ARGS)

soak: deps guest ## the same tests, the long ones longer, every fault at every moment: some seven hours
	@echo "== soak: as make test, with more moves in a row, and every fault at every moment"
	STERNA_SOAK=1 RUST_TEST_THREADS=$(TEST_THREADS) \
	    $(CARGO) test --release $(LOCKED) --workspace --no-fail-fast $(TEST_ARGS)

lint: dependencies ## format, clippy without a warning, the limits of files, licences
	@echo "== lint: format, clippy, house rules"
	@scripts/install-lints
	$(CARGO) fmt --all --check
	scripts/check-house
	$(CARGO) clippy --release $(LOCKED) --workspace --all-targets -- \
	    -D warnings -D clippy::allow_attributes_without_reason

fmt: ## format the code
	$(CARGO) fmt --all

dependencies: ## licences and sources of all dependencies, with what every machine has
	@scripts/check-dependencies

deny: ## the same and more by cargo-deny, where it is installed
	@command -v cargo-deny >/dev/null || \
	    { echo "make deny: cargo-deny is missing: cargo install --locked cargo-deny"; exit 1; }
	$(CARGO) deny check bans licenses sources

deps: ## what the tests need from Debian: installs what is missing
	@scripts/install-deps tests

deps-demo:
	@scripts/install-deps demo

guest: ## the guest of tests and demo: a Debian kernel, unpacked and not installed; busybox; our load program
	@scripts/build-guest

demo: deps-demo build guest ## a whole migration on this machine, explained as it happens: half a minute once built
	@scripts/demo

bench-program: deps guest build
	$(CARGO) build --release $(LOCKED) --package sterna-emulator --package sterna-bench

bench: bench-program ## beside stock QEMU over shaped links (needs root); goes on where it was; QUICK=1: ten minutes
	$(TARGET)/release/sterna-bench $(if $(QUICK),--quick) $(BENCH_ARGS)

bench-three-stage: bench-program ## the three-stage copy beside pre-copy and stock post-copy; QUICK=1: five minutes
	$(TARGET)/release/sterna-bench --suite three-stage $(if $(QUICK),--quick) $(BENCH_ARGS)

bench-follow: bench-program ## a followed guest beside one that is moved when asked for; QUICK=1: five minutes
	$(TARGET)/release/sterna-bench --suite follow $(if $(QUICK),--quick) $(BENCH_ARGS)

man: build ## the manual pages, in target/man
	$(TARGET)/release/sterna man $(TARGET)/man

install: man ## program, manual pages, completions and the systemd unit, below PREFIX (/usr/local)
	install -D -m 755 $(TARGET)/release/sterna $(DESTDIR)$(PREFIX)/bin/sterna
	install -d $(DESTDIR)$(PREFIX)/share/man/man1
	install -m 644 $(TARGET)/man/sterna*.1 $(DESTDIR)$(PREFIX)/share/man/man1
	install -d $(DESTDIR)$(PREFIX)/share/bash-completion/completions $(DESTDIR)$(PREFIX)/share/zsh/site-functions \
	    $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d
	$(TARGET)/release/sterna completions bash > $(DESTDIR)$(PREFIX)/share/bash-completion/completions/sterna
	$(TARGET)/release/sterna completions zsh > $(DESTDIR)$(PREFIX)/share/zsh/site-functions/_sterna
	$(TARGET)/release/sterna completions fish > $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/sterna.fish
	install -d $(DESTDIR)$(PREFIX)/lib/systemd/system
	sed 's|/usr/local/bin/|$(PREFIX)/bin/|' packaging/sterna.service > $(DESTDIR)$(PREFIX)/lib/systemd/system/sterna.service
	chmod 644 $(DESTDIR)$(PREFIX)/lib/systemd/system/sterna.service

uninstall: ## what `make install` has put there
	rm -f $(DESTDIR)$(PREFIX)/bin/sterna $(DESTDIR)$(PREFIX)/share/man/man1/sterna.1 \
	    $(DESTDIR)$(PREFIX)/share/man/man1/sterna-*.1 \
	    $(DESTDIR)$(PREFIX)/share/bash-completion/completions/sterna \
	    $(DESTDIR)$(PREFIX)/share/zsh/site-functions/_sterna \
	    $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/sterna.fish \
	    $(DESTDIR)$(PREFIX)/lib/systemd/system/sterna.service

clean: ## what was built and fetched
	rm -rf $(TARGET) cache
