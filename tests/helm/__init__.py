"""The chart, rendered by helm: no cluster, no network."""
