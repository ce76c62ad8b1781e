"""Everything that was ever answered, in one SQLite file: a question that was paid for once is never paid for again.

Text and JSON only. Eight processes may share a file: the write-ahead log is switched on once, under a lock on a file
beside it (switching is the one thing that SQLite refuses to do concurrently). A damaged file is set aside and said so.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from filelock import FileLock

from llmrl.language.lines import header, is_score, read_lines
from llmrl.language.question import Answer, Provider, Question
from llmrl.settings.errors import BadValue

SCHEMA = 1
_APPLICATION = 0x6C6C6D72
"""Marks a file as a cache of llmrl, so that another program's database is not taken for a damaged cache."""

_BUSY_SECONDS = 30.0
_NETWORK_FILE_SYSTEMS = ("nfs", "nfs4", "cifs", "smb3", "smbfs", "fuse.sshfs", "9p", "afs")
_COLUMNS = (
    "key", "model", "endpoint", "prompt", "parameters", "context", "state", "events", "system", "user",
    "raw", "scores", "prompt_tokens", "answer_tokens", "time",
)  # fmt: skip
_JSON_COLUMNS = ("parameters", "events", "raw", "scores")

_log = logging.getLogger(__name__)
_T = TypeVar("_T")


class Cache(NamedTuple):
    """Answers that were given before; safe for threads and processes. None of these functions raises for a bad disk:
    what cannot be read is a miss, what cannot be written is counted in ``problems``.

    Attributes:
        get: ``(provider, question) -> Answer | None``.
        put: ``(provider, question, answer) -> None``.
        knows: ``(provider) -> whether this model, at this endpoint and with these parameters, has ever answered``.
        export: ``(path) -> rows written``, as JSON lines that ``recorded`` reads too.
        import_: ``(path) -> rows new to the cache``.
        size: ``() -> rows``.
        problems: ``() -> how many reads and writes failed``.
        close: ``() -> None``.
    """

    get: Callable[[Provider, Question], Answer | None]
    put: Callable[[Provider, Question, Answer], None]
    knows: Callable[[Provider], bool]
    export: Callable[[str | Path], int]
    import_: Callable[[str | Path], int]
    size: Callable[[], int]
    problems: Callable[[], int]
    close: Callable[[], None]


def cache_key(provider: Provider, question: Question) -> str:
    """A digest of all that decides an answer: who, which prompt in which version, the whole text, which events."""
    decisive = [
        SCHEMA, provider.identity, question.prompt, question.system, question.user, question.state, question.phrases
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(decisive, ensure_ascii=True).encode()).hexdigest()


def open_cache(path: str | Path | None) -> Cache:
    """Opens a cache, making it where there is none.

    Args:
        path: the file; None keeps answers in memory.

    Raises:
        ValueError: the file is another program's database, or lies where SQLite cannot be trusted.
        OSError: it cannot be opened or written.
    """
    if path is None:
        return _make_cache(_Store(None))
    path = Path(path).expanduser().absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind := _network_file_system(path):
        raise BadValue(
            f"{path} is on a network file system ({kind}), where SQLite loses data: choose a local disk with "
            "llm.cache=..., and share answers between machines by export and import"
        )
    return _make_cache(_Store(path))


class _Store:
    """One connection, shared by threads under a lock; reopened where the file turns out to be damaged."""

    def __init__(self, path: Path | None):
        self.path = path
        self.lock = threading.RLock()
        self.problems = 0
        self.connection = _connect(path)

    def run(self, work: Callable[[sqlite3.Connection], _T], otherwise: _T) -> _T:
        with self.lock:
            for attempt in range(2):
                try:
                    with self.connection:
                        return work(self.connection)
                except sqlite3.Error as error:
                    self.problems += 1
                    damaged = type(error) is sqlite3.DatabaseError  # its subclasses are locks, full disks, bugs
                    if not (damaged and attempt == 0 and self.path):
                        _log.warning("cache of answers: %s", error)
                        return otherwise
                    with contextlib.suppress(sqlite3.Error):
                        self.connection.close()
                    try:
                        self.connection = _connect(self.path)
                    except (OSError, ValueError) as failure:
                        _log.warning("cache of answers: %s; going on in memory", failure)
                        self.path, self.connection = None, _connect(None)
        return otherwise

    def close(self) -> None:
        with self.lock, contextlib.suppress(sqlite3.Error):
            self.connection.close()


def _connect(path: Path | None) -> sqlite3.Connection:
    if path is None:
        connection = sqlite3.connect(":memory:", check_same_thread=False)
        _create(connection)
        return connection
    with FileLock(f"{path}.lock"):
        for _ in range(2):
            connection = None
            try:
                connection = sqlite3.connect(path, timeout=_BUSY_SECONDS, check_same_thread=False)
                if _is_sound(connection, path):
                    connection.execute("PRAGMA journal_mode=WAL")
                    connection.execute("PRAGMA synchronous=NORMAL")
                    _create(connection)
                    return connection
                problem = "another version of llmrl wrote it"
            except sqlite3.OperationalError as error:
                if connection is not None:
                    connection.close()
                raise OSError(f"cannot use {path} as a cache of answers: {error}") from None
            except sqlite3.DatabaseError as error:
                problem = str(error)
            if connection is not None:
                connection.close()
            _set_aside(path, problem)
    raise OSError(f"cannot make a cache of answers at {path}")


def _is_sound(connection: sqlite3.Connection, path: Path) -> bool:
    """Whether this is an empty database or a cache of ours; raises if it is damaged."""
    application = connection.execute("PRAGMA application_id").fetchone()[0]
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    if tables and application != _APPLICATION:
        connection.close()
        raise BadValue(f"{path} is a database of another program; choose another file with llm.cache=...")
    check = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    if check != "ok":
        raise sqlite3.DatabaseError(check)
    return not tables or version == SCHEMA


def _create(connection: sqlite3.Connection) -> None:
    connection.executescript(f"""
        PRAGMA application_id = {_APPLICATION};
        PRAGMA user_version = {SCHEMA};
        CREATE TABLE IF NOT EXISTS answers (
            key TEXT PRIMARY KEY, model TEXT, endpoint TEXT, prompt TEXT, parameters TEXT, context TEXT, state TEXT,
            events TEXT, system TEXT, user TEXT, raw TEXT, scores TEXT NOT NULL, prompt_tokens INTEGER,
            answer_tokens INTEGER, time REAL
        ) WITHOUT ROWID;
    """)


def _set_aside(path: Path, problem: str) -> None:
    """Renames a damaged file, and what SQLite keeps beside it, instead of deleting anything."""
    stamp = f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    aside = path.with_name(f"{path.name}.corrupt-{stamp}")
    for suffix in ("", "-wal", "-shm"):
        with contextlib.suppress(FileNotFoundError):
            Path(f"{path}{suffix}").rename(f"{aside}{suffix}")
    _log.warning("the cache of answers %s was damaged (%s): set aside as %s, begun anew", path, problem, aside.name)


def _network_file_system(path: Path) -> str | None:
    """The kind of network file system that a path lies on, where the system says so."""
    try:
        mounts = [line.split()[1:3] for line in Path("/proc/self/mounts").read_text().splitlines()]
    except OSError:
        return None
    folder = os.path.realpath(path.parent)
    holding = [(len(point), kind) for point, kind in mounts if os.path.commonpath([folder, point]) == point]
    kind = max(holding, default=(0, ""))[1]
    return kind if kind in _NETWORK_FILE_SYSTEMS else None


# --- rows -------------------------------------------------------------------------------------------------------------


def _make_cache(store: _Store) -> Cache:
    def get(provider: Provider, question: Question) -> Answer | None:
        statement = "SELECT scores, raw, prompt_tokens, answer_tokens FROM answers WHERE key = ?"
        key = cache_key(provider, question)
        row = store.run(lambda connection: connection.execute(statement, (key,)).fetchone(), None)
        scores = _read_scores(row[0], len(question.events)) if row else None
        return Answer(scores, row[1], row[2], row[3]) if scores is not None else None

    def put(provider: Provider, question: Question, answer: Answer) -> None:
        row = _row(provider, question, answer)
        store.run(lambda connection: _insert(connection, row, replace=True), 0)

    def knows(provider: Provider) -> bool:
        statement = "SELECT 1 FROM answers WHERE endpoint = ? AND model = ? AND parameters = ? LIMIT 1"
        asked = provider.endpoint, provider.model, _parameters(provider)
        return store.run(lambda connection: connection.execute(statement, asked).fetchone() is not None, False)

    def export(path: str | Path) -> int:
        return store.run(lambda connection: _export(connection, Path(path)), 0)

    def import_(path: str | Path) -> int:
        return store.run(lambda connection: sum(_insert(connection, row) for row in _importable(Path(path))), 0)

    def size() -> int:
        return store.run(lambda connection: connection.execute("SELECT count(*) FROM answers").fetchone()[0], 0)

    return Cache(get, put, knows, export, import_, size, lambda: store.problems, store.close)


def _read_scores(text: str, expected: int) -> tuple[float, ...] | None:
    """Scores of a row, or None where somebody wrote something else into it."""
    try:
        scores = json.loads(text)
    except ValueError:
        return None
    sound = isinstance(scores, list) and len(scores) == expected and all(map(is_score, scores))
    return tuple(map(float, scores)) if sound else None


def _row(provider: Provider, question: Question, answer: Answer) -> dict[str, Any]:
    return {
        "key": cache_key(provider, question),
        "model": provider.model,
        "endpoint": provider.endpoint,
        "prompt": question.prompt,
        "parameters": _parameters(provider),
        "context": question.context,
        "state": question.state,
        "events": json.dumps(question.phrases),
        "system": question.system,
        "user": question.user,
        "raw": answer.raw,
        "scores": json.dumps(answer.scores, allow_nan=False),
        "prompt_tokens": answer.prompt_tokens,
        "answer_tokens": answer.answer_tokens,
        "time": time.time(),
    }


def _parameters(provider: Provider) -> str:
    return json.dumps(provider.parameters, sort_keys=True)


def _insert(connection: sqlite3.Connection, row: dict[str, Any], replace: bool = False) -> int:
    places = ", ".join(f":{column}" for column in _COLUMNS)
    verb = "REPLACE" if replace else "IGNORE"
    return connection.execute(f"INSERT OR {verb} INTO answers ({', '.join(_COLUMNS)}) VALUES ({places})", row).rowcount


def _export(connection: sqlite3.Connection, path: Path) -> int:
    rows = connection.execute(f"SELECT {', '.join(_COLUMNS)} FROM answers ORDER BY state, events, key")
    written = 0
    scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with scratch.open("w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(json.dumps(header("answers of language models")) + "\n")
            for values in rows:
                row = dict(zip(_COLUMNS, values, strict=True))
                row |= {column: json.loads(row[column]) for column in _JSON_COLUMNS}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
                written += 1
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)
    return written


def _importable(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of an exported file, ready to be inserted.

    Raises:
        ValueError: the file has another format, or a row without a proper score; the message names the line.
    """
    for number, row in read_lines(path):
        if not {"key", "events", "scores"} <= row.keys():
            raise BadValue(f"{path}:{number}: no exported answer (key, events or scores is missing)")
        if _read_scores(json.dumps(row["scores"]), len(row["events"])) is None:
            raise BadValue(f"{path}:{number}: needs one score in [0, 1] per event")
        row = {column: row.get(column) for column in _COLUMNS}
        yield row | {column: json.dumps(row[column]) for column in _JSON_COLUMNS}
