"""Our own tables, in schema ``millrace`` of database ``dagster``: one file a change, in `versions`."""
