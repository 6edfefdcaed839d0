"""CSV that a spreadsheet may open."""

import csv
import io

import pandas as pd
import pytest

from data.table_files import csv_cell, csv_text


@pytest.mark.parametrize("text", ["=1+1", "+1", "-5 red", "@cat", "\tx", "'=1", "a=1", "'tis", ""])
def test_a_text_is_no_formula_and_comes_back(text: str) -> None:
    """Numbers stay numbers, negative ones too."""
    written = csv_text(pd.DataFrame({"text": [text, "a"], "number": [-1.5, 2.0]}))
    [_, cells, _] = csv.reader(io.StringIO(written, newline=""))
    assert cells[0][:1] not in ("=", "+", "-", "@", "\t", "\r") or not text
    assert csv_cell(cells[0]) == text and cells[1] == "-1.5"
