"""The HTML page that a person looks at."""

from quantrim.report.page import write_report
from quantrim.report.results import Result, read_result

__all__ = ["Result", "read_result", "write_report"]
