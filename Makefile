# The recipes that CI runs too: `tools/test` installs what they need, then runs `make all`.

.PHONY: all fmt clippy doc test deny release deb

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

# A Debian package; needs cargo-deb: `cargo install cargo-deb`.
deb: release
	rm -rf target/package && mkdir -p target/package
	heddle=$$(ls target/*/release/heddle | head -1) && \
	$$heddle man target/package/man && \
	$$heddle completions bash > target/package/heddle.bash && \
	$$heddle completions zsh > target/package/_heddle && \
	$$heddle completions fish > target/package/heddle.fish
	cargo deb --no-build --locked --target $$(rustc -vV | sed -n 's/^host: //p')
