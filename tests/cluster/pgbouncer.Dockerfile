# PgBouncer for clusters that cannot pull the chart's own image; MILLRACE_TEST_PGBOUNCER names it.
# The program alone: its package wants a server's certificate and user set up.
FROM docker.io/library/debian:bookworm-slim
RUN apt-get update && apt-get install -y --no-install-recommends libevent-2.1-7 libc-ares2 libssl3 libpam0g libsystemd0 && \
    cd /tmp && apt-get download pgbouncer && dpkg --extract pgbouncer_*.deb package && mv package/usr/sbin/pgbouncer /usr/bin/ && \
    rm -rf /tmp/p* /var/lib/apt/lists/* && pgbouncer --version
