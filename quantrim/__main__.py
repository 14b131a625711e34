"""``python -m quantrim``."""

from quantrim.cli import main

main()
