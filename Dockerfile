# One static binary, a user without rights, nothing else. Runs with a read-only root file system.
#
#   docker build -t egret .
#   docker run --rm --read-only --network host egret
#   docker run --rm --read-only --network host -v "$PWD/egret.yaml:/etc/egret.yaml:ro" -e EGRET_CONFIG=/etc/egret.yaml egret
#
# EGRET_CONFIG names the same file to the server and its health check.
ARG BUILD_BASE=docker.io/library/rust:1.95-slim-bookworm

FROM ${BUILD_BASE} AS build
WORKDIR /src
COPY Cargo.toml Cargo.lock rustfmt.toml clippy.toml ./
COPY crates ./crates
COPY src ./src
COPY config ./config
COPY benches ./benches
# A named target keeps the static flag away from build scripts and procedural macros.
RUN target="$(rustc -vV | sed -n 's/^host: //p')" \
 && RUSTFLAGS="-C target-feature=+crt-static" cargo build --release --locked --bin egret --target "$target" \
 && cp "target/$target/release/egret" /egret

FROM scratch
COPY --from=build /egret /egret
COPY --from=build /src/config /etc/egret
# The user that `egret netfilter apply --sidecar` lets pass by default.
USER 1129:1129
# 3128: forward proxy of the built-in configuration, on loopback: share the network with its clients.
EXPOSE 3128
HEALTHCHECK --interval=10s --timeout=3s --start-period=2s CMD ["/egret", "health"]
ENTRYPOINT ["/egret"]
CMD ["run"]
