"""How dependent are the columns of my data? A report on a table of mixed columns.

``python -m infotorch report data.csv`` writes it; :func:`report_table` makes it from a csv file, a mapping of arrays,
a structured array or a frame. Matplotlib is loaded when a report is saved, and nothing else that is heavy.
"""

from infotorch.report.pairs import Pair
from infotorch.report.reading import ReadError, TextTable, read_csv
from infotorch.report.records import ColumnInfo, Report
from infotorch.report.table import TableError, report_table

__all__ = ["ColumnInfo", "Pair", "ReadError", "Report", "TableError", "TextTable", "read_csv", "report_table"]
