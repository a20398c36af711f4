"""Runs in a cluster: a pod for each, and what becomes of it."""
