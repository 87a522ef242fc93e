"""The Python blocks of README.md and of the pages in docs/, which tests run as they stand."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def snippets(page: str, section: str | None = None) -> list[str]:
    """The Python blocks of a page by its path, or of one of its sections; a page without any is an error."""
    text = (ROOT / page).read_text(encoding="utf-8")
    if section is not None:
        (text,) = re.findall(rf"^## {re.escape(section)}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    if not blocks:
        raise ValueError(f"{page} has no Python in {section or 'it'}.")
    return blocks
