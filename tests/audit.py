"""Known vulnerabilities of the installed packages: ``make audit``.

pip-audit says "No known vulnerabilities found", with exit code 0, where its service can't be reached through an
index of one's own: it skips what it does not find. So a package with a known hole is asked for as well, and
unless that is found nothing is believed. Exit code 0: every package was looked up, and none is known to be
vulnerable; 1: some are; 3: nobody could be asked, or not about all of them.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

#: CVE-2024-22195 and later ones.
CANARY = "jinja2==3.1.2"
CLEAN, VULNERABLE, UNKNOWN = 0, 1, 3


def asked(command: Sequence[str], *options: str) -> list[dict[str, Any]] | None:
    """What pip-audit says of each package; None where it fails."""
    words = [*command, "--format", "json", "--progress-spinner", "off", *options]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    try:
        return list(json.loads(done.stdout)["dependencies"])
    except (ValueError, KeyError, TypeError):
        print(*done.stderr.strip().splitlines()[-1:], sep="\n")
        return None


def verdict(installed: list[dict[str, Any]] | None, canary: list[dict[str, Any]] | None) -> tuple[int, str]:
    """Exit code and the lines to tell.

    Args:
        installed: what pip-audit says of the packages here.
        canary: what it says of one that is known to be vulnerable.
    """
    if not canary or not any(one.get("vulns") for one in canary):
        return UNKNOWN, f"audit: no vulnerability service knows {CANARY} here: nothing was checked."
    if installed is None:
        return UNKNOWN, "audit: pip-audit failed: nothing was checked."
    bad = [one for one in installed if one.get("vulns")]
    skipped = [one["name"] for one in installed if "skip_reason" in one]
    if bad:
        holes = (f"{one['name']} {one['version']} ({', '.join(h['id'] for h in one['vulns'])})" for one in bad)
        return VULNERABLE, f"audit: vulnerable: {'; '.join(holes)}"
    if skipped:
        share = f"{len(skipped)} of {len(installed)}"
        return UNKNOWN, f"audit: nobody knows of {share} packages: {', '.join(skipped)}"
    return CLEAN, f"audit: {len(installed)} packages, none known to be vulnerable"


def main(command: Sequence[str] = (sys.executable, "-m", "pip_audit")) -> int:
    """Ask and tell; the exit code."""
    with tempfile.TemporaryDirectory() as name:
        wanted = Path(name) / "canary.txt"
        wanted.write_text(f"{CANARY}\n")
        canary = asked(command, "--requirement", str(wanted), "--no-deps", "--disable-pip")
    code, words = verdict(asked(command, "--skip-editable"), canary)
    print(words)
    return code


if __name__ == "__main__":
    sys.exit(main())
