"""How large the lake's tables are, as the catalogue's tables tell it: in SQL, for those who ask with or without DuckDB."""

# Of each table the files of now, and what of their records was deleted since: subtract one from the other.
FILES_AND_DELETES = """files AS (
    SELECT table_id, sum(record_count) AS records, sum(file_size_bytes) AS bytes, count(*) AS files
    FROM ducklake_data_file WHERE end_snapshot IS NULL GROUP BY 1
), deletes AS (
    SELECT d.table_id, sum(d.delete_count) AS records, sum(d.file_size_bytes) AS bytes, count(*) AS files
    FROM ducklake_delete_file d JOIN ducklake_data_file f USING (data_file_id)
    WHERE d.end_snapshot IS NULL AND f.end_snapshot IS NULL GROUP BY 1
)"""
