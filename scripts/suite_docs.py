"""Puts the results of `llmrl suite` into the docs: its table between two markers, its heat maps into docs/figures.

    python scripts/suite_docs.py runs/suite/development runs/suite/report

A page takes the table of `runs/suite/NAME` between the lines `<!-- suite NAME -->` and `<!-- end of suite NAME -->`,
and the map of a method where it shows `figures/suite_NAME_METHOD.png`.
"""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = (ROOT / "docs" / "suite.md", ROOT / "README.md")
FIGURES = ROOT / "docs" / "figures"


def filled(page: str, name: str, table: str) -> str:
    """A page with the table between the markers of that name; unchanged where it has none."""
    start, end = f"<!-- suite {name} -->", f"<!-- end of suite {name} -->"
    between = re.compile(rf"{re.escape(start)}\n.*?{re.escape(end)}", re.DOTALL)
    return between.sub(lambda _: f"{start}\n\n{table.strip(chr(10))}\n\n{end}", page)


def pictures(page: str, name: str) -> list[str]:
    """Methods whose heat map a page shows."""
    return re.findall(rf"figures/suite_{re.escape(name)}_(\w+)\.png", page)


def main(folders: list[str]) -> None:
    if not folders:
        sys.exit("which results? python scripts/suite_docs.py runs/suite/development")
    for folder in map(Path, folders):
        if not (folder / "suite.md").is_file():
            sys.exit(f"{folder} has no suite.md: run llmrl suite out={folder} first")
        table, told = (folder / "suite.md").read_text(), False
        for path in PAGES:
            before = path.read_text()
            after = filled(before, folder.name, table)
            path.write_text(after)
            for method in pictures(after, folder.name):
                shutil.copyfile(folder / f"heat-{method}.png", FIGURES / f"suite_{folder.name}_{method}.png")
            told = told or f"<!-- suite {folder.name} -->" in after
        if not told:
            sys.exit(f"no page has the markers <!-- suite {folder.name} --> and <!-- end of suite {folder.name} -->")
        print(folder)


if __name__ == "__main__":
    main(sys.argv[1:])
