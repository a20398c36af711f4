"""What Dagster and the lake do, as figures for Prometheus: read from the database, counted once, kept over restarts."""
