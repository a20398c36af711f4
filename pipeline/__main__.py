"""``python -m pipeline`` is the command `millrace`."""

from pipeline.cli import main

main()
