"""The page of the names says what the code says."""

import importlib.util
from pathlib import Path

import enxuto

ROOT = Path(__file__).parents[1]


def test_the_page_of_the_names_is_current():
    spec = importlib.util.spec_from_file_location("api", ROOT / "tools" / "api.py")
    api = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(api)
    text = api.page()
    assert all(f"### ex.{name}\n" in text for name in enxuto._HOMES)
    assert "### ex.memory.predict\n" in text
    assert "### enxuto.runtime.open\n" in text
    assert (ROOT / "docs" / "api.md").read_text(encoding="utf-8") == text, "run python tools/api.py"
