"""What a result looks like: one HTML page that opens offline, and tables for the terminal.

Everything is made from a `Document`, plain data read from `result.json`; neither the model nor torch is needed.
"""

from enxuto.reports.document import Document, read_document
from enxuto.reports.page import write_html
from enxuto.reports.tables import (
    LayerCost,
    exports_table,
    layers_table,
    ledger_table,
    memory_layers_table,
    memory_table,
    steps_table,
    summary_table,
)

__all__ = [
    "Document",
    "LayerCost",
    "exports_table",
    "layers_table",
    "ledger_table",
    "memory_layers_table",
    "memory_table",
    "read_document",
    "steps_table",
    "summary_table",
    "write_html",
]
