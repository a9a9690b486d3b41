# The recipes that CI runs too: `tools/test` installs what they need, then runs `make all`.

.PHONY: all fmt clippy doc test deny release deb deb-of

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

# A Debian package; needs cargo-deb: `cargo install cargo-deb --locked`.
deb: release
	$(MAKE) deb-of HEDDLE=$$(ls target/*/release/heddle | head -1)

# The same of a binary that is there: HEDDLE names it, OUT where the package goes, DEB_OPTIONS what else cargo-deb is told.
deb-of:
	rm -rf target/package && mkdir -p target/package
	strip -o target/package/heddle "$(HEDDLE)"
	target/package/heddle man target/package/man
	target/package/heddle completions bash > target/package/heddle.bash
	target/package/heddle completions zsh > target/package/_heddle
	target/package/heddle completions fish > target/package/heddle.fish
	cargo deb --no-build --locked $(DEB_OPTIONS) $(if $(OUT),--output "$(OUT)")
