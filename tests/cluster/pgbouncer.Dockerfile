# PgBouncer for clusters that cannot pull the chart's own image; MILLRACE_TEST_PGBOUNCER names it.
FROM docker.io/library/debian:bookworm-slim
RUN apt-get update && apt-get install -y --no-install-recommends pgbouncer && rm -rf /var/lib/apt/lists/*
