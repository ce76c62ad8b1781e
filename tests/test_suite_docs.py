"""The suite's table replaces what stands between its markers, and nothing else."""

import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "suite_docs.py"
PAGE = "# A\n\n<!-- suite report -->\nold\n<!-- end of suite report -->\n\n![x](figures/suite_report_implicit.png)\n"


@pytest.fixture
def docs(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("suite_docs_for_tests", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (tmp_path / "page.md").write_text(PAGE)
    (tmp_path / "figures").mkdir()
    monkeypatch.setattr(module, "PAGES", (tmp_path / "page.md",))
    monkeypatch.setattr(module, "FIGURES", tmp_path / "figures")
    return module


def results(tmp_path, name, table):
    folder = tmp_path / name
    folder.mkdir(exist_ok=True)
    (folder / "suite.md").write_text(table)
    (folder / "heat-implicit.png").write_bytes(b"picture")
    return str(folder)


def test_only_what_is_between_the_markers_changes_and_twice_is_once(docs, tmp_path):
    folder = results(tmp_path, "report", "    command\n\n| method | 1\\2 |\n")
    docs.main([folder])
    once = (tmp_path / "page.md").read_text()
    assert once == PAGE.replace("\nold\n", "\n\n    command\n\n| method | 1\\2 |\n\n")
    assert (tmp_path / "figures" / "suite_report_implicit.png").read_bytes() == b"picture"
    docs.main([folder])
    assert (tmp_path / "page.md").read_text() == once


def test_results_without_a_place_are_an_error(docs, tmp_path):
    with pytest.raises(SystemExit, match="no page has the markers <!-- suite other -->"):
        docs.main([results(tmp_path, "other", "x")])
    assert (tmp_path / "page.md").read_text() == PAGE
    with pytest.raises(SystemExit, match=r"has no suite\.md"):
        docs.main([str(tmp_path / "nowhere")])
