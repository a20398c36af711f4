"""Faults of a cluster, made for real: nothing is lost, nothing is done twice, and all comes right by itself."""
