# The recipes that CI runs too: `tools/test` installs what they need, then runs `make all`.

.PHONY: all fmt clippy doc test deny release

all: fmt clippy doc test deny

fmt:
	cargo fmt --all --check

clippy:
	cargo clippy --workspace --all-targets --locked -- -D warnings

doc:
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --document-private-items --locked

# One test at a time in the end-to-end targets: each starts daemons of its own, and machines may have two cores.
test:
	cargo test --workspace --locked

# Checked where cargo-deny is installed: `cargo install cargo-deny`.
deny:
	@if command -v cargo-deny >/dev/null; then cargo deny --offline check licenses bans sources; \
	else echo "cargo-deny is not installed: licences and duplicates are not checked"; fi

release:
	cargo build --release --locked
