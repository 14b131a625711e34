"""The HTML page that a person looks at."""

from quantrim.report.page import write_report

__all__ = ["write_report"]
