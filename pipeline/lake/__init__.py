"""The lake: DuckLake tables whose catalogue is in PostgreSQL and whose rows are Parquet in a folder or bucket."""
