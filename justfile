# What a developer types; `just --list` shows it.

default: lint test

fmt:
    cargo fmt

lint:
    cargo fmt --check
    cargo clippy --locked --all-targets -- -D warnings

test:
    cargo test --locked

# Every test, none skipped for want of a tool or a right.
test-all:
    EGRET_TEST_ALL=1 cargo test --locked

# N mutated request streams through egret into four origins; compares the log with the requests that they received.
smuggle N="100000" SEED="1":
    EGRET_TEST_ALL=1 EGRET_SMUGGLE={{N}} EGRET_SMUGGLE_SEED={{SEED}} cargo test --locked --test e2e smuggling -- --nocapture

bench:
    cargo bench --locked

# egret beside nginx stream, HAProxy, Envoy and squid; needs root. Writes benches/results.
bench-peers *ARGS:
    benches/peers/run {{ARGS}}

# A minute of each fuzz target (needs nightly and cargo-fuzz).
fuzz:
    for target in hello http_head requests proxy_header pattern config; do cargo +nightly fuzz run --features config $target -- -max_total_time=60; done

doc:
    RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps --document-private-items

deny:
    cargo deny check

demo:
    cargo run --release --example demo

image:
    .ci/image

# All that the pipeline runs.
ci:
    .ci/run

# What a newer edition of the AKS documents has that the rule set has not.
bundle-drift FILE:
    cargo run --quiet --example bundle-drift -- {{FILE}}
