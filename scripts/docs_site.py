"""What mkdocs is told beyond mkdocs.yml: pages made of the code, formulas as MathML, links out of docs/.

Nothing is loaded from elsewhere: browsers draw MathML by themselves, without a script. They need a font with
mathematics for it, which many systems lack, so that the part of one that formulas use comes with the site.
"""

from __future__ import annotations

import html
import io
import re
import sys
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import jupytext
import ziamath
from fontTools import subset
from latex2mathml.converter import convert
from mkdocs.structure.files import File, InclusionLevel

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

import docs_settings  # noqa: E402

NOTEBOOKS = sorted((ROOT / "scripts" / "notebooks").glob("*.py"))

API = {
    "index": (
        "The front door",
        ("settings/overrides", "training/loop", "results/*", "studies/sweeps", "studies/compare", "studies/label"),
    ),
    "bilevel": ("Bi-level problems", ("bilevel/*", "bilevel/solvers/*")),
    "trust": ("Trust", ("trust/*", "assembly/trust_learning")),
    "rewards": ("Reward transforms", ("rewards/*",)),
    "environments": ("Environments and captions", ("envs/*",)),
    "language": ("Language", ("language/*", "training/answers")),
    "learner": (
        "Learner",
        (
            "assembly/methods",
            "assembly/parts",
            "training/iteration",
            "training/devices",
            "learner/*",
            "nets/*",
            "ops/*",
        ),
    ),
    "analysis": ("Analysis and reports", ("analysis/*", "results/report/*", "studies/carry_out", "studies/figures")),
    "files": ("Runs and files", ("runs/*", "training/progress", "training/transfer", "settings/errors", "cli/main")),
    "types": ("Types and settings", ("types", "settings/config")),
}
"""Page -> title and modules, as paths below llmrl/."""


MATHEMATICS = ((0x20, 0xFF), (0x370, 0x3FF), (0x2000, 0x23FF), (0x27E6, 0x27EB), (0x1D434, 0x1D4FF), (0x1D538, 0x1D7FF))
"""Ranges of characters that formulas are made of."""


FENCES = {
    r"\langle": r"\left\langle",
    r"\rangle": r"\right\rangle",
    r"\lvert": r"\left|",
    r"\rvert": r"\right|",
}


def on_config(config: Any) -> Any:
    """Leaves pages out of the navigation that are not written yet, and adds those that are made here."""
    config.nav = _there(config.nav, Path(config.docs_dir))
    config.nav.append({"Notebooks": [{_title(path): f"notebooks/{path.stem}.md"} for path in NOTEBOOKS]})
    config.nav.append({"API": [{title: f"api/{name}.md"} for name, (title, _) in API.items()]})
    config.nav.append({"Changes": "changes.md"})
    return config


def _there(nav: list, docs: Path) -> list:
    kept = []
    for entry in nav:
        ((title, target),) = entry.items()
        if isinstance(target, list):
            kept.append({title: _there(target, docs)})
        elif (docs / target).exists() or target in ("settings.md",):
            kept.append(entry)
    return kept


def on_files(files: Any, config: Any) -> Any:
    """Adds the pages that are made of the code."""

    def add(uri: str, text: str, listed: bool = True) -> None:
        inclusion = InclusionLevel.INCLUDED if listed else InclusionLevel.NOT_IN_NAV
        files.append(File.generated(config, uri, content=text, inclusion=inclusion))

    files.append(File.generated(config, "assets/math.woff", content=_math_font()))
    add("settings.md", docs_settings.page())
    add("changes.md", (ROOT / "CHANGELOG.md").read_text())
    for path in NOTEBOOKS:
        add(f"notebooks/{path.stem}.md", _notebook(path))
    for name, (title, modules) in API.items():
        add(f"api/{name}.md", _reference(title, modules))
    for path in sorted((ROOT / "scripts" / "examples").glob("*.py")):
        heading = f"---\nsearch: {{exclude: true}}\n---\n# {path.relative_to(ROOT)}\n\n"
        add(_source_uri(path), f"{heading}```python\n{path.read_text()}```\n", listed=False)
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """On the site, a link to a file of the repository leads to the page that shows it or is made of it."""
    place = Path(page.file.src_uri)

    def shown(link: re.Match) -> str:
        path = (ROOT / "docs" / place.parent / link[1]).resolve().relative_to(ROOT)
        return f"]({'../' * (len(place.parts) - 1)}{_site_page(path)}{link[2] or ''})"

    return re.sub(r"\]\(((?:\.\./)+(?:scripts|llmrl)/[\w./-]+)(#[\w.-]+)?\)", shown, markdown)


def _site_page(path: Path) -> str:
    """The page of the site for a file or folder of the repository."""
    if path.parts[0] == "scripts":
        return f"notebooks/{path.stem}.md" if path.parent.name == "notebooks" else _source_uri(ROOT / path)
    if path == Path("llmrl/settings/config.py"):
        return "settings.md"
    module = "/".join(path.with_suffix("").parts[1:])
    for page, (_, patterns) in API.items():
        if any(fnmatch(module, pattern) or pattern == f"{module}/*" for pattern in patterns):
            return f"api/{page}.md"
    raise ValueError(f"no page of the site shows {path}")


def on_page_content(content: str, **_: Any) -> str:
    """TeX to MathML."""

    def formula(match: re.Match) -> str:
        tex, display = html.unescape(match["tex"]).strip(), match["tag"] == "div"
        for name, fence in FENCES.items():  # else they are taken for letters, and spaced like them
            tex = tex.replace(name, fence)
        drawn = convert(tex, display="block" if display else "inline")
        if "\\" in drawn:
            raise ValueError(f"a formula is not fully understood: {tex}")
        return f'<{match["tag"]} class="formula">{drawn}</{match["tag"]}>'

    pattern = r'<(?P<tag>span|div) class="arithmatex">\\[(\[](?P<tex>.*?)\\[)\]]</(?P=tag)>'
    return re.sub(pattern, formula, content, flags=re.DOTALL)


def _math_font() -> bytes:
    """What formulas need of STIX Two Math."""
    options = subset.Options(flavor="woff", layout_features=["*"])
    font = subset.load_font(str(Path(ziamath.__file__).parent / "fonts" / "STIXTwoMath-Regular.ttf"), options)
    wanted = subset.Subsetter(options)
    wanted.populate(unicodes=[code for first, last in MATHEMATICS for code in range(first, last + 1)])
    wanted.subset(font)
    written = io.BytesIO()
    subset.save_font(font, written, options)
    return written.getvalue()


def _source_uri(path: Path) -> str:
    return f"source/{path.relative_to(ROOT).with_suffix('.md')}"


def _title(path: Path) -> str:
    return next(line[4:] for line in path.read_text().splitlines() if line.startswith("# # "))


def _notebook(path: Path) -> str:
    notebook = jupytext.read(path)
    notebook.metadata = {}
    text = jupytext.writes(notebook, "md")
    place = path.relative_to(ROOT)
    lead = f"\n*A notebook: `jupytext --to ipynb {place}`, or `python {place}`.*\n"
    text = re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.DOTALL).lstrip()
    heading, _, rest = text.partition("\n")
    return f"{heading}\n{lead}{rest}"


def _reference(title: str, modules: tuple[str, ...]) -> str:
    names: list[str] = []
    for module in modules:
        found = sorted((ROOT / "llmrl").glob(f"{module}.py"))
        names += [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in found if path.stem != "__init__"]
    return f"# {title}\n\n" + "\n".join(f"::: {name}\n" for name in dict.fromkeys(names))
