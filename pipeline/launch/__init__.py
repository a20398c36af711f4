"""How runs are started."""
