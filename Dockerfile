# Ringback in a container: one program, as a plain user. It needs a PostgreSQL beside it (DATABASE_URL);
# docker-compose.yml brings both. Build it with `docker build -t ringback .`
FROM rust:1-bookworm AS build
WORKDIR /src
COPY . .
# The caches survive between builds; what is in them is no part of an image, so the program is copied out.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    cargo build --release --locked --bin ringback \
    && install -D target/release/ringback /out/ringback

FROM debian:bookworm-slim
# The roots by which receivers' certificates are verified.
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10001 --user-group --home-dir /var/lib/ringback --create-home ringback
COPY --from=build /out/ringback /usr/local/bin/ringback
USER ringback
WORKDIR /var/lib/ringback
ENV RINGBACK_LISTEN=0.0.0.0:8080 \
    RINGBACK_DATA_DIR=/var/lib/ringback/data
EXPOSE 8080
# SIGTERM hands back what is in flight within RINGBACK_SHUTDOWN_GRACE (25 s); give `docker stop` more than that.
STOPSIGNAL SIGTERM
# Without curl in the image: bash asks /readyz itself.
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s CMD \
    ["bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/8080 && printf 'GET /readyz HTTP/1.0\\r\\nHost: localhost\\r\\n\\r\\n' >&3 && head -n 1 <&3 | grep -q ' 200 '"]
ENTRYPOINT ["ringback"]
CMD ["serve"]
