"""Millrace: a data platform installed with one command. Nothing is imported here, so that ``--help`` is instant."""
