"""``python -m examples.serving MODEL``: the service under its name of old; it is ``quantrim serve`` now."""

from __future__ import annotations

import sys

from quantrim.cli import main

if __name__ == "__main__":
    sys.argv[1:1] = ["serve"]
    main()
