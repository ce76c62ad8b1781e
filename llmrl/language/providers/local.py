"""A GGUF file on this machine as a provider: llama.cpp's server as a child process, asked like any other endpoint."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryFile
from typing import BinaryIO, NamedTuple

from llmrl.language.providers.llama_server import LISTENS
from llmrl.language.providers.openai import openai
from llmrl.language.question import Answer, Provider, Question, Unanswered
from llmrl.settings.config import LLMConfig
from llmrl.settings.errors import BadValue, brief, end_of, install

SERVER = Path(__file__).with_name("llama_server.py")

_MAGIC = b"GGUF"
_END = 2**20


def local(config: LLMConfig, asking: Callable[[LLMConfig], Provider] = openai) -> Provider:
    """A provider that asks a model of its own.

    Its server starts with the first question, whose deadline counts the loading too. It ends when the provider is
    closed, or when this process ends, in whatever way.

    Args:
        config: the settings; ``model`` is the file's path.
        asking: who asks its server, as for any other endpoint.

    Raises:
        ValueError: there is no such file, it is no GGUF file, or the extra ``local`` is not installed.
    """
    model, fingerprint = _examined(config.model)
    for package in ("xllamacpp", "openai"):
        if find_spec(package) is None:
            raise BadValue(f"llm=local needs the package {package}: {install('local')}")

    def asked_at(address: str) -> Provider:
        return asking(replace(config, base_url=f"{address}/v1", key_variable=None, model=model.stem))

    owned, starting = AsyncExitStack(), []

    async def start() -> tuple[_Server, Provider]:
        server = await owned.enter_async_context(_serving(model, config.threads))
        provider = asked_at(server.address)
        owned.push_async_callback(provider.close)
        return server, provider

    async def answer(question: Question) -> Answer:
        if not starting:
            starting.append(asyncio.create_task(start()))
        server, provider = await asyncio.shield(starting[0])  # one question's deadline does not end the start
        assert provider.answer is not None
        try:
            return await provider.answer(question)
        except Unanswered as failure:
            if failure.kind == "unreachable" and server.process.returncode is not None:
                raise server.ended() from None
            raise

    async def close() -> None:
        for task in starting:
            task.cancel()
            await asyncio.wait([task])
        await owned.aclose()

    # The port is another one each time, and the path says nothing of what is in the file.
    unasked, endpoint = asked_at("http://127.0.0.1"), f"local/{model.name}/{fingerprint}"
    identity = json.dumps([endpoint, *json.loads(unasked.identity)[1:]])
    return unasked._replace(identity=identity, answer=answer, close=close, endpoint=endpoint)


def _examined(name: str) -> tuple[Path, str]:
    """A model's path and what tells its file from others: size and a digest of both ends, as some have 100 GB."""
    path = Path(name).expanduser()
    try:
        with path.open("rb") as file:
            start = file.read(_END)
            size = file.seek(0, 2)
            file.seek(max(0, size - _END))
            end = file.read()
    except OSError as error:
        raise BadValue(f"llm.model must be the path of a GGUF file, got {brief(name)!r}: {error.strerror}") from error
    if not start.startswith(_MAGIC):
        raise BadValue(f"llm.model must be the path of a GGUF file, got {brief(name)!r}, which begins otherwise")
    return path.resolve(), f"{size}-{hashlib.sha256(start + end).hexdigest()[:12]}"


class _Server(NamedTuple):
    """A running child.

    Attributes:
        process: the child.
        address: where it listens.
        log: what it has said on standard error.
        model: what it serves.
    """

    process: Process
    address: str
    log: BinaryIO
    model: Path

    def ended(self) -> Unanswered:
        """Why nothing more is answered, with the first error that the child has told of: others follow from it."""
        assert self.process.returncode is not None
        self.log.seek(0)
        said = self.log.read().decode("utf-8", "replace").strip().partition("\n")[0] or "it said nothing"
        ended = end_of(self.process.returncode)
        return Unanswered("misconfigured", f"the server of {brief(self.model)} {ended}: {brief(said, 200)}")


@asynccontextmanager
async def _serving(model: Path, threads: int | None) -> AsyncIterator[_Server]:
    """A child process that has loaded a model; it ends with the block.

    Raises:
        Unanswered: it has ended before it listened.
    """
    command = [sys.executable, "-P", str(SERVER), str(model), *([] if threads is None else [str(threads)])]
    with TemporaryFile() as log:
        # A group of its own: an interrupt from the keyboard is for the parent, which may have questions left.
        process = await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE, stderr=log, process_group=0)
        try:
            address = await _address(process)
            server = _Server(process, address, log, model)
            if not address:
                await process.wait()
                raise server.ended()
            yield server
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            await process.wait()


async def _address(process: Process) -> str:
    """Where a child says that it listens; nothing if it ends before."""
    assert process.stdout is not None
    async for line in process.stdout:
        if line.startswith(LISTENS.encode()):
            return line.decode().removeprefix(LISTENS).strip()
    return ""
