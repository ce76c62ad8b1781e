"""``llmrl report``: statistics, pictures and trust of finished runs, on one page that needs nothing but itself."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from llmrl.analysis.answers import answers, extremes
from llmrl.analysis.arms_plots import who_acted
from llmrl.analysis.comparison import IGNORES, TRUSTS
from llmrl.analysis.comparison_plots import Curve, learning_curves, profiles, solver_health
from llmrl.analysis.plots import steps_of
from llmrl.analysis.statistics import LEAST_SEEDS, last_tenth
from llmrl.analysis.trust import TrustMap, find_dims, telling_dims
from llmrl.analysis.trust_plots import heat_maps, shares_over_training
from llmrl.results.report import tables
from llmrl.results.report.entries import Broken, Entry, Task, counted_once, find, read, sort_into_tasks
from llmrl.results.report.tables import Table
from llmrl.results.trust_map import trust_map
from llmrl.runs.metrics import replace_file
from llmrl.settings.errors import BadValue
from llmrl.training.progress import note, plural
from llmrl.trust.blend import TRUSTED_FROM

PAGE = "index.html"


class Picture(NamedTuple):
    """A picture of the page.

    Attributes:
        file: its name beside the page.
        data: the same as a data URI.
        says: what it shows, for those who do not see it.
    """

    file: str
    data: str
    says: str


class Comparison(NamedTuple):
    """What a report says of a task: heading, anchor, pictures and tables; None where there is nothing to say."""

    title: str
    anchor: str
    measure: str
    curves: Picture | None
    final: Table
    regret: Table
    improvement: Table | None
    profiles: Picture | None


class Trust(NamedTuple):
    """What a report says of a run's trust: a table, a picture or two per source, or why there is none."""

    title: str
    anchor: str
    directory: str
    table: Table | None = None
    sources: tuple[tuple[str, Picture, str, Picture | None], ...] = ()
    discount: str = ""
    problem: str = ""
    words: tuple[tuple[str, Table | None], ...] = ()
    answers: Table | None = None


def report(
    paths: Sequence[str],
    out: str | Path = "report",
    *,
    measure: str | None = None,
    dims: Sequence[str] = (),
    trust: bool = True,
    command: str = "",
    make_map: Callable[[Path], TrustMap] = trust_map,
) -> Path:
    """Writes the page and its pictures.

    Args:
        paths: run directories, directories that hold some at any depth, or glob patterns.
        out: directory of the page.
        measure: metric that is compared; each environment's own where not given.
        dims: two components of the observation for the maps of trust; the most telling ones where not given.
        trust: whether to play the trained policies for the maps.
        command: what was typed, to be shown.
        make_map: how, for a run's directory.

    Returns:
        The page, ``out/index.html``.

    Raises:
        ValueError: no run was found at all, or none has the measure.
    """
    out = Path(out)
    found, broken = find(paths)
    entries = []
    for path in found:
        entry = read(path)
        entries.append(entry) if isinstance(entry, Entry) else broken.append(entry)
    if not found:
        raise BadValue(f"no run found: {'; '.join(f'{path}: {reason}' for path, reason in broken) or 'name some'}")
    if measure is not None and entries and not any(measure in entry.curves for entry in entries):
        raise BadValue(f"measure={measure} is in no run's metrics.csv")
    out.mkdir(parents=True, exist_ok=True)
    draw = drawer(out)
    counted, repeats = counted_once(entries)
    tasks = sort_into_tasks(counted, measure)
    names = _shown_names(tasks)
    labels = _labels_of(tasks)
    health = {label: entry for label, entry in labels.items() if "meta_residual" in entry.curves}
    folder = tables.common_folder(entries)
    common, differing = tables.settings_tables(entries, folder) if entries else (None, None)
    contents = {
        "title": "llmrl report",
        "command": command,
        "folder": folder,
        "runs": tables.runs_table(entries, folder, repeats),
        "broken": broken,
        "comparisons": [_compare(task, names, draw) for task in tasks],
        "arms": tables.arms_table(labels),
        "arms_picture": _arms_picture(labels, draw),
        "solvers": tables.solver_table(health),
        "solver_picture": _solver_picture(health, draw),
        "trust": [_trust(label, entry, dims, make_map, draw) for label, entry in labels.items() if _trusts(entry)]
        if trust
        else [],
        "threshold": f"{100 * TRUSTED_FROM:.0f} %",
        "least_seeds": LEAST_SEEDS,
        "ignores": IGNORES,
        "trusts": TRUSTS,
        "common": common,
        "differing": differing,
        "configs": [(name, _yaml(entry)) for name, entry in zip(tables.below(folder, entries), entries, strict=True)],
        "versions": _versions(entries),
    }
    for path, reason in broken:
        note(f"{path}: {reason}")
    for path, repeat in repeats.items():
        note(f"{path}: {plural(repeat.seeds, 'seed')} counted once, equal to those of {repeat.path}")
    replace_file(out / PAGE, render(contents))
    return out / PAGE


def render(contents: dict[str, Any], template: str = "page.html.j2") -> str:
    """The page, after one of the templates in this folder; whatever comes from a run's files is escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    templates = FileSystemLoader(Path(__file__).parent)
    page = Environment(
        loader=templates, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return page.get_template(template).render(contents)


# --- parts ------------------------------------------------------------------------------------------------------------

Draw = Callable[[Callable[[Path], Any], str, str], Picture]
"""``(picture drawn into a file, its name, what it shows) -> Picture``."""


def drawer(out: Path) -> Draw:
    """Draws pictures into a directory, each under a name of its own."""
    used: set[str] = set()

    def draw(paint: Callable[[Path], Any], name: str, says: str) -> Picture:
        name = stem = _file_name(name)
        number = 2
        while name in used:
            name, number = f"{stem}-{number}", number + 1
        used.add(name)
        path = out / f"{name}.png"
        paint(path)
        data = base64.b64encode(path.read_bytes()).decode()
        return Picture(path.name, f"data:image/png;base64,{data}", says)

    return draw


def _file_name(text: str) -> str:
    return re.sub(r"[^\w.]+", "-", text).strip("-.")[:80] or "picture"


def _shown_names(tasks: Sequence[Task]) -> list[str]:
    """What the methods of all tasks are called in pictures, so that each has one colour throughout."""
    return list(dict.fromkeys(tables.marked(method) for task in tasks for method in task.methods.values()))


def _compare(task: Task, names: Sequence[str], draw: Draw) -> Comparison:
    title = f"{task.env}: {task.source}"
    shown = {tables.marked(method): method.curves for method in task.methods.values() if task.measure in method.curves}
    curves = {label: Curve(steps_of(metrics), metrics[task.measure]) for label, metrics in shown.items()}
    ends = {label: last_tenth(metrics[task.measure]) for label, metrics in shown.items()}
    picture = profile = None
    if curves:
        picture = draw(
            lambda path: learning_curves(curves, task.measure, path, names),
            f"curves-{title}",
            f"learning curves, {title}",
        )
        profile = draw(
            lambda path: profiles(ends, task.measure, path, names), f"profile-{title}", f"performance profile, {title}"
        )
    return Comparison(
        title,
        _file_name(f"task-{title}"),
        task.measure.replace("_", " "),
        picture,
        tables.final_table(task),
        tables.regret_table(task),
        tables.improvement_table(task),
        profile,
    )


def _labels_of(tasks: Sequence[Task]) -> dict[str, Entry]:
    """Every run once, by what it is called among its own task's."""
    labels: dict[str, Entry] = {}
    seen: set[Path] = set()
    for task in tasks:
        for method in task.methods.values():
            for entry in method.entries:
                if entry.path in seen:
                    continue
                seen.add(entry.path)
                label = f"{task.env}: {task.source}: {method.label}"
                label += f", seed={entry.config.seed}" if len(method.entries) > 1 else ""
                labels[label if label not in labels else f"{label} ({entry.path})"] = entry
    return labels


def _arms_picture(labels: Mapping[str, Entry], draw: Draw) -> Picture | None:
    runs = {label: (entry.curves, names) for label, entry in labels.items() if (names := tables.arms_names(entry))}
    if not runs:
        return None
    return draw(lambda path: who_acted(runs, path), "arms", "what each policy earns, and its share of the episodes")


def _solver_picture(health: dict[str, Entry], draw: Draw) -> Picture | None:
    if not health:
        return None
    runs = {label: (steps_of(entry.curves), entry.curves) for label, entry in health.items()}
    return draw(
        lambda path: solver_health(runs, tables.SOLVER_PANELS, path),
        "solver-health",
        "residual, solution norm and cuts of the inverse-curvature solves",
    )


# --- trust ------------------------------------------------------------------------------------------------------------


def _trusts(entry: Entry) -> bool:
    """Whether a weight was learned: of a weight that is 1 everywhere there is nothing to show."""
    return "weight_mean" in entry.curves and any(name.startswith("weight_mean_active/") for name in entry.curves)


def _trust(label: str, entry: Entry, dims: Sequence[str], make_map: Callable[[Path], TrustMap], draw: Draw) -> Trust:
    start = Trust(label, _file_name(f"trust-{label}"), str(entry.path), discount=_discount(entry))
    note(f"playing the policies of {entry.path}")
    try:
        found = make_map(entry.path)
        for sentence in tables.sign_sentences(found):
            note(f"{entry.path}: {sentence}")
        words, told = _in_words(entry, found)
        return start._replace(
            words=words,
            answers=told,
            table=tables.trust_table(found, entry.curves),
            sources=tuple(_source(label, entry, found, source, dims, draw) for source in found.sources),
        )
    except Exception as error:  # a run whose policies cannot be played still has curves
        problem = " ".join(str(error).split())[:300] or type(error).__name__
        note(f"{entry.path}: no map of trust: {problem}")
        return start._replace(problem=problem)


def _in_words(entry: Entry, found: TrustMap) -> tuple[tuple[tuple[str, Table | None], ...], Table | None]:
    """What became of a language model's answers: the extremes of each kind, and all of them."""
    if found.words is None:
        return (), None
    told = answers(found.words, found.influence[..., found.words.source], found.settled[..., found.words.source])
    center = entry.config.aux.center
    kinds = extremes(told, found.threshold, center if isinstance(center, int | float) else entry.config.llm.neutral)
    words = tuple((kind, tables.answer_table(those) if those else None) for kind, those in kinds.items())
    return words, tables.answer_table(told)


def _source(
    label: str, entry: Entry, found: TrustMap, source: str, dims: Sequence[str], draw: Draw
) -> tuple[str, Picture, str, Picture | None]:
    chosen = find_dims(found, dims) if dims else telling_dims(found, source)
    across, up = (found.obs_names[dim] for dim in chosen)
    maps = draw(
        lambda path: heat_maps(found, source, chosen, path),
        f"trust-{label}-{source}",
        f"influence and learned weights of {source} over {across} and {up}, beside what it says",
    )
    over_training = None
    if f"trust_used/{source}" in entry.curves:
        over_training = draw(
            lambda path: shares_over_training(entry.curves, source, path),
            f"shares-{label}-{source}",
            f"shares of steps on which {source} was used, ignored and turned around, over training",
        )
    return source, maps, f"{across} and {up}", over_training


def _discount(entry: Entry) -> str:
    """The learned discount at the end, or the one that was set."""
    if "discount" in entry.curves:
        return f"learned, {tables.known(tables.mean_interval(last_tenth(entry.curves['discount'])))} at the end"
    return f"set to {entry.config.ppo.discount:g}, not learned"


def _yaml(entry: Entry) -> str:
    path = entry.path / "config.yaml"
    return path.read_text() if path.is_file() else yaml.safe_dump({})


def _versions(entries: Sequence[Entry]) -> list[str]:
    """Each set of versions that the runs were made with, once."""
    sets = [entry.summary["versions"] for entry in entries if entry.summary and "versions" in entry.summary]
    return list(dict.fromkeys(", ".join(f"{name} {version}" for name, version in each.items()) for each in sets))


__all__ = ["Broken", "Comparison", "Picture", "Trust", "drawer", "render", "report"]
