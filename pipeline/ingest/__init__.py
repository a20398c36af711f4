"""Copying sources into the lake's raw schema, unchanged: files, and any Airbyte connector."""
