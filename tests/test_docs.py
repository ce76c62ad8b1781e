"""What the docs say of settings, logged numbers and commands is what there is."""

import ast
import importlib
import re
import shlex
import sys
import tomllib
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path

import jax
import numpy as np
import pytest
from hydra import compose as compose_with_hydra
from PIL import Image

import llmrl
from llmrl.assembly.methods import METHODS, make_method
from llmrl.assembly.parts import build, make_environment
from llmrl.cli import main as cli
from llmrl.learner import influence, meta, streams
from llmrl.learner.arms import decided, first_arms
from llmrl.learner.balancing import first_balance
from llmrl.learner.eipo import first_stage
from llmrl.learner.irpo import nothing_earned, shares
from llmrl.learner.ppo import UpdateInfo
from llmrl.learner.resets import PoolStatistics
from llmrl.learner.rollout import EpisodeStatistics
from llmrl.learner.streams import stream_states
from llmrl.results.evaluate import STYLES
from llmrl.rewards import language
from llmrl.runs import metrics
from llmrl.settings import overrides
from llmrl.settings.config import TRANSFORMS, Config
from llmrl.studies.grids import points_of
from llmrl.training import arms, decoupled, eipo, irpo, select
from llmrl.training.answers import COUNTERS
from llmrl.training.devices import state_shapes
from llmrl.training.loop import make_trainer

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
SAID = [*PAGES, ROOT / "CONTRIBUTING.md"]


@pytest.fixture(scope="module")
def settings():
    """The script that makes the page of settings."""
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        import docs_settings
    finally:
        sys.path.remove(str(ROOT / "scripts"))
    return docs_settings


# --- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schema", overrides.SCHEMAS.values(), ids=overrides.SCHEMAS)
def test_every_key_of_a_schema_has_a_meaning(settings, schema):
    page = settings.page()
    for key in settings.keys(schema):
        assert f"`{key}`" in page
    sections = [schema, *(section for _, section in settings._sections(schema))]
    for section in sections:
        said = settings.meanings(section)
        assert set(said) == set(section.__dataclass_fields__)
        assert all(said.values())


def test_units_are_of_keys_that_exist(settings):
    assert set(settings._UNIT_OF) <= set(settings.keys(Config))


def test_every_choice_of_a_group_is_on_the_page(settings):
    page = settings.page()
    for file in overrides.config_dir().glob("*/*.yaml"):
        assert f"| `{file.stem}` |" in page


# --- logged numbers ---------------------------------------------------------------------------------------------------

SPECIAL = {
    "implicit": ("method.weight.discount=true", "method.weight.offset=true", "method.trust.ceiling=true"),
    "ellm": (f"method.goals.table={ROOT / 'tests' / 'goals.jsonl'}",),
    "ellm_pretrained": (f"method.goals.table={ROOT / 'tests' / 'goals.jsonl'}",),
}
TINY = ("ppo=tiny", "aux=harmful")


def _config(name):
    if name == "frozen":
        config = llmrl.compose("method=implicit", *TINY)
        return replace(config, method=replace(config.method, name="frozen", reward_of="implicit"))
    return llmrl.compose(f"method={name}", *TINY, *SPECIAL.get(name, ()))


def _reported(name, random_rollout):
    """What the transforms of a method report; nothing is computed."""
    config = _config(name)
    spec = make_environment(config).spec
    rollout = random_rollout(spec, config.ppo.num_steps, config.ppo.num_envs)
    found = set()
    streams = make_method(config, spec).streams
    started = [jax.eval_shape(stream.transform.init, jax.random.key(0)) for stream in streams]
    for stream, phi, state in stream_states(streams, *zip(*started, strict=True)):
        found |= set(jax.eval_shape(stream.transform.report, phi, state, rollout))
    return found


@pytest.fixture(scope="module")
def logged(random_rollout):
    """Every name that a run may log, sources as ``<source>``."""
    found = {name for method in METHODS for name in _reported(method, random_rollout)}
    found |= {*metrics.INDEX, *EpisodeStatistics._fields, *PoolStatistics._fields, *UpdateInfo._fields}
    found |= {f"{name}/<source>" for name in influence.METRICS} | {streams.CORRECTION_SHARE}
    found |= {*meta.METRICS, "meta_step", "skipped_update", *(f"language_{name}" for name in COUNTERS)}
    heard, config = language(0), llmrl.compose("aux=language", "ppo=tiny", "llm.cache=null")
    spec = make_environment(config).spec
    table = jax.numpy.zeros(1, jax.numpy.uint32), jax.numpy.zeros((1, 2))
    found |= set(jax.eval_shape(heard.fill, heard.init(), random_rollout(spec), *table)[2])
    goals = ("env=craftax_classic", "env.task=place_table", "aux=[goals,novelty]", "llm=oracle")
    found |= _said_by_late_sources(random_rollout, *goals)
    for transform in TRANSFORMS:
        found |= _said_by_late_sources(random_rollout, "aux=harmful", f"aux.transform={transform}")
    found |= {re.sub(r"/\d+", "/<arm>", name) for name in _said_of_arms()}
    return {name.replace("/harmful", "/<source>") for name in found}


def _said_by_late_sources(random_rollout, *chosen):
    config = llmrl.compose(*chosen, "ppo=tiny")
    env = make_environment(config)

    shape = config.ppo.num_steps, config.ppo.num_envs
    obs = np.zeros((*shape, *env.spec.obs_shape), np.uint8 if env.spec.encoding else np.float32)
    rollout = random_rollout(env.spec, *shape, obs=obs, next_obs=obs)

    def filled(key):
        parts = build(config, env)
        return parts.sources.annotate(parts.sources.init(key), rollout, None)[2]

    return set(jax.eval_shape(filled, jax.random.key(0)))


def _said_of_arms():
    state = first_arms(2, 4)
    zero = jax.numpy.zeros(())
    of_explorer = decoupled.reported(zero, jax.numpy.ones(2))
    of_eipo = eipo.reported(first_stage(0.5), zero, zero)
    of_select = select.reported(select.SelectState(first_balance(2, 1.0), *[zero] * 4, ()))
    earned = nothing_earned(2)
    of_explorers = irpo.reported(earned, shares(earned, 1.0), jax.numpy.zeros(2))
    of_peers = of_eipo | of_explorer | of_explorers | of_select
    return arms.reported(state, decided(state, zero, arms.rule_of(_config("twin")))) | of_peers


@pytest.fixture(scope="module")
def told():
    """The names in the first cells of the tables of docs/logged.md."""
    rows = re.findall(r"^(`[^|\n]*) \|", (ROOT / "docs" / "logged.md").read_text(), flags=re.MULTILINE)
    return {name for row in rows for name in re.findall(r"`([^`]+)`", row)}


def test_no_logged_number_is_missing_from_its_page(logged, told):
    assert logged - told == set()


def test_the_page_tells_of_no_number_that_is_not_logged(logged, told):
    assert told - logged == set()


def test_nothing_else_is_logged_by_an_iteration(logged):
    config = _config("implicit")
    trainer = make_trainer(config)
    state = jax.eval_shape(lambda states: jax.tree.map(lambda x: x[0], states), state_shapes(trainer, config))
    _, found = jax.eval_shape(lambda state: trainer.run(state, trainer.numbers, 1), state)
    assert {name.replace("/harmful", "/<source>") for name in found} <= logged


def test_an_evaluation_logs_what_the_page_says():
    page = (ROOT / "docs" / "logged.md").read_text()
    for prefix in STYLES:
        for name in ("episode_return", "episode_length", "success_rate"):
            assert f"`{prefix}{name}`" in page


# --- glossary ---------------------------------------------------------------------------------------------------------

TERMS = (ROOT / "docs" / "glossary.md").read_text()
NAMED = sorted(set(re.findall(r"`([^`]+)`", TERMS)))


@pytest.mark.parametrize("section", ["weight", "trust", "outer"])
def test_the_glossary_has_every_setting_of_learned_trust(section):
    keys = {f"method.{section}.{key}" for key in getattr(Config().method, section).__dataclass_fields__}
    assert keys - set(NAMED) == set()


def test_the_glossary_has_every_number_of_the_blend_and_of_the_outer_level(random_rollout):
    reported = {name.replace("/harmful", "/<source>") for name in _reported("implicit", random_rollout)}
    assert (reported | {*meta.METRICS, "meta_step"}) - set(NAMED) == set()


def _exists(name, settings, logged):
    if name.startswith("llmrl."):
        module, _, attribute = name.rpartition(".")
        return hasattr(importlib.import_module(module), attribute)
    group, chosen, choice = name.partition("=")
    if chosen:
        return (overrides.config_dir() / group / f"{choice}.yaml").exists()
    sections = {key.rpartition(".")[0] for key in settings.keys(Config)}
    return name in {*logged, *settings.keys(Config), *sections}


@pytest.mark.parametrize("name", NAMED)
def test_every_name_in_the_glossary_exists(settings, logged, name):
    assert _exists(name, settings, logged)


def test_every_entry_of_the_glossary_is_one_sentence_and_says_where():
    rows = [line.replace(" | | ", " |  | ").split(" | ") for line in TERMS.splitlines() if " | " in line]
    rows = [row for row in rows if row[0] != "Term"]
    assert len(rows) > 50
    for term, _, meaning, where in rows:
        assert re.fullmatch(r"[A-Z].*\.", meaning) and ". " not in meaning, term
        assert "`" in where, term


# --- commands ---------------------------------------------------------------------------------------------------------


CHECKED = {
    "train": overrides.to_config,
    "compare": overrides.to_comparison,
    "check": overrides.to_check,
    "evaluate": overrides.to_evaluation,
    "label": overrides.to_label,
    "write": overrides.to_writing,
    "refine": overrides.to_refinement,
    "bench": overrides.to_bench,
    "report": overrides.to_report,
    "status": overrides.to_status,
    "figure": overrides.to_reproduction,
    "suite": overrides.to_suite,
}


def _commands():
    for page in PAGES:
        for line in page.read_text().splitlines():
            command = re.match(rf"(?:\$ | {{4}})(llmrl (?:{'|'.join(CHECKED)})\b.*)", line)
            if command:
                yield page.name, command[1]


def _first_of_several(word):
    """What a sweep runs first."""
    key, equals, value = word.partition("=")
    first = re.match(r"\[.*?\]|'.*'|[^,]*", value)
    return f"{key}{equals}{first[0]}" if first and not value.startswith("['") else word


@pytest.mark.parametrize(("page", "command"), sorted(set(_commands())))
def test_every_command_in_the_docs_is_understood(page, command):
    _, name, *words = shlex.split(command, comments=True)
    words = [word for word in words if not word.startswith("-") and word != "job" and "..." not in word]
    words = [_first_of_several(word) for word in cli.keyed(name, words)]
    words, grid = overrides.without_grid(words)
    # A launcher is of an extra that is not there in every environment, and its keys come with it.
    words = [word for word in words if not word.startswith(("launcher=", "hydra."))]
    overrides.register_schemas()
    with overrides._own_hydra():
        node = compose_with_hydra(name, words)
    config = CHECKED[name](node)
    if grid:
        assert len(points_of(config, grid)) > 1


def test_the_docs_have_commands():
    assert len(list(_commands())) > 30


def _said(pattern):
    """Where the docs match a pattern: page and first group."""
    found = {(page.name, match) for page in SAID for match in re.findall(pattern, page.read_text())}
    assert found
    return sorted(found)


@pytest.mark.parametrize(("page", "target"), _said(r"`make ([a-z-]+)"))
def test_every_target_of_make_in_the_docs_exists(page, target):
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert target in phony[1].split()


@pytest.mark.parametrize(("page", "name"), _said(r"\bllmrl\.([a-z_]+)\("))
def test_every_function_of_llmrl_that_the_docs_call_exists(page, name):
    assert callable(getattr(llmrl, name))


@pytest.mark.parametrize(("page", "name"), _said(r"`(?:tests/)?(?:\w+/)*(test_\w+\.py)`"))
def test_every_file_of_tests_in_the_docs_exists(page, name):
    assert list((ROOT / "tests").rglob(name))


# --- installing -------------------------------------------------------------------------------------------------------


def _installed():
    """Every ``pip install`` of llmrl in the docs and in the code's own words: file and what is installed."""
    for path in (*SAID, *sorted((ROOT / "llmrl").rglob("*.py"))):
        for what in re.findall(r"pip install (?:--?[a-z]+ )*(['\"]?(?:llmrl|\.)(?:\[.*?\])?['\"]?)", path.read_text()):
            yield path.relative_to(ROOT).as_posix(), what.strip("'\"")
        for extra in re.findall(r"\binstall\(['\"]([\w-]+)['\"]\)", path.read_text()):
            yield path.relative_to(ROOT).as_posix(), f".[{extra}]"


@pytest.mark.parametrize(("file", "what"), sorted(set(_installed())))
def test_what_is_to_be_installed_exists(file, what):
    """llmrl is on no package index, so it is installed from its folder; an extra is one of pyproject.toml."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert what == "." or re.fullmatch(r"\.\[(.*)\]", what)[1] in {*extras, "{extra}"}


def test_installing_shows_what_it_does():
    installs = [line for line in (ROOT / "Makefile").read_text().splitlines() if "pip install" in line]
    assert installs and not any("--quiet" in line or " -q" in line for line in installs)


# --- how the pages read -----------------------------------------------------------------------------------------------


def test_the_page_of_settings_begins_with_what_its_reader_can_do_after_it(settings):
    _begins_well(settings.page())


@pytest.mark.parametrize("page", PAGES[1:], ids=lambda page: page.name)
def test_a_page_begins_with_what_its_reader_can_do_after_it(page):
    _begins_well(page.read_text())


def _begins_well(text):
    title, empty, promise = text.splitlines()[:3]
    assert title.startswith("# ") and not empty
    assert promise.startswith("After this page you ")


VAGUE = re.compile(r"nobody|whoever|borne out|outgrow|flawless|talkative", flags=re.IGNORECASE)


@pytest.mark.parametrize("page", SAID, ids=lambda page: page.name)
def test_a_page_says_who_and_what(page):
    assert not VAGUE.findall(page.read_text())


def test_the_code_and_its_configs_say_who_and_what():
    files = [*(ROOT / "llmrl").rglob("*.py"), *(ROOT / "configs").rglob("*.yaml")]
    names = {file: file.relative_to(ROOT).as_posix() for file in files}
    vague = [name for file, name in names.items() if VAGUE.search(file.read_text())]
    assert len(files) > 200 and vague == []


def test_the_readme_is_read_in_a_few_minutes():
    assert len(README.read_text().splitlines()) <= 150


# --- links and pictures -----------------------------------------------------------------------------------------------


def _links():
    for page in SAID:
        for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
            if not target.startswith(("http:", "https:")):
                yield page.relative_to(ROOT).as_posix(), target


def _anchor(heading):
    return re.sub(r"[^\w\s-]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize(("page", "target"), sorted(set(_links())))
def test_every_link_leads_to_something_in_the_repository(page, target):
    """Not to a page that exists only on the site that `make docs` builds."""
    path, _, anchor = target.partition("#")
    aim = (ROOT / page).parent / path if path else ROOT / page
    assert aim.exists()
    if anchor and aim.suffix == ".md":
        headings = re.findall(r"^#+ (.*)$", aim.read_text(), flags=re.MULTILINE)
        assert anchor in {_anchor(heading) for heading in headings}


def test_every_link_to_code_leads_to_a_page_of_the_site():
    """``make docs`` fails at a module that no page of the reference shows; what builds it is not installed here."""
    source = ast.parse((ROOT / "scripts" / "docs_site.py").read_text())
    values = {
        node.targets[0].id: node.value
        for node in source.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }
    patterns = [pattern for _, shown in ast.literal_eval(values["API"]).values() for pattern in shown]
    for page in (ROOT / "docs").rglob("*.md"):
        for link in re.findall(r"\]\((?:\.\./)+llmrl/([\w./-]+?)(?:\.py)?/?(?:#[\w.-]+)?\)", page.read_text()):
            shown = any(fnmatch(link, pattern) or pattern == f"{link}/*" for pattern in patterns)
            assert shown or link == "settings/config", (page.name, link)


def test_a_picture_of_runs_has_the_same_number_of_seeds_on_every_page():
    """A picture that was drawn from runs says how many seeds they had."""
    drawn = {path.name: Image.open(path).info.get("Description") for path in (ROOT / "docs" / "figures").glob("*.png")}
    drawn = {name: seeds for name, seeds in drawn.items() if seeds}
    assert "trust.png" in drawn
    for page in SAID:
        for name, after in re.findall(r"!\[[^]]*\]\([\w/]*?([\w]+\.png)\)(.{,600})", page.read_text(), re.DOTALL):
            if name in drawn:
                assert re.search(r"\d+ seeds", after)[0] == drawn[name], (page.name, name)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_intervals_on_a_page_are_called_what_the_code_has(page):
    """Student's t; a bootstrap is named beside it, as what numbers of an older code are or as what the code has not."""
    text = page.read_text()
    assert "Student's t" in text or not re.search(r"\bbootstraps?\b", text)


def test_the_readme_repeats_the_table_of_no_regret():
    """Area / last tenth of each method: the numbers of docs/benchmarks.md, as they are rounded there."""
    tasks = {"CartPole": "cartpole", "CartPole, continuous": "cartpole_continuous"}
    sources = {"harmful, ten times as loud": "harmful_x10"}
    measured = {}
    page = (ROOT / "docs" / "benchmarks.md").read_text()
    for row in re.findall(
        r"^\| (cartpole\w*) \| (\w+) \| (\w+) \| ([\d.]+) \[.*?\] \| ([\d.]+) \|", page, re.MULTILINE
    ):
        measured.setdefault(row[:3], row[3:])
    rows = re.findall(r"^(CartPole.*?) \| (.*?) \| (.*?) \| (.*?) \| (.*?)$", README.read_text(), re.MULTILINE)
    assert len(rows) == 8
    for task, source, *told in rows:
        for method, words in zip(("ppo", "add", "implicit"), told, strict=True):
            row = tasks[task], "any" if method == "ppo" else sources.get(source, source), method
            assert words == " / ".join(f"{float(number):.1f}" for number in measured[row])


def test_what_the_docs_import_is_there():
    """Imports of llmrl in the Python of any page, one by one."""
    imports = r"^\s*((?:from llmrl\S* )?import llmrl\S*|from llmrl\S* import [\w, ]+)"
    told = {
        line
        for page in [README, *(ROOT / "docs").rglob("*.md")]
        for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
        for line in re.findall(imports, block, re.MULTILINE)
    }
    assert len(told) > 5
    for line in told:
        exec(line, {})
