"""HTML pages of results, and the index of a folder of them."""

from quantrim.report.index import write_index
from quantrim.report.page import write_report
from quantrim.report.results import Result, read_result

__all__ = ["Result", "read_result", "write_index", "write_report"]
