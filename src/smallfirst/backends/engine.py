"""The embedded engine: llama.cpp's server in a child process that lives and dies with its parent.

Run as `python -m smallfirst.backends.engine` it is the child: it reads its settings as one line of JSON from stdin,
serves on a free port of 127.0.0.1 behind an API key, prints `{"url": ...}` or `{"error": ...}` on stdout, and ends
when stdin ends. `Engine` is the parent's side: it starts the child, starts it again when it dies, and stops it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from smallfirst.errors import BackendUnavailable, ModelFileError
from smallfirst.extra import patient_threads

_BACKOFF_S = (0.1, 1.0, 5.0, 30.0)  # before the first, second, ... restart in a row
_STEADY_S = 60.0  # a child that lived this long starts a new row
_START_S = 120.0
_SETTLE_S = 0.5
_PROMPT_CACHE_MIB = 256


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """What the child is started with. `context` is in tokens per slot; `adapters` are LoRA files, known by position."""

    weights: str
    context: int
    slots: int
    threads: int
    batch_threads: int
    adapters: tuple[str, ...]
    api_key: str


class Engine:
    """The child process, kept alive. `url` and `headers` reach it once `ready` has returned."""

    def __init__(
        self, *, weights: Path, context: int, slots: int, threads: int, batch_threads: int, adapters: tuple[Path, ...]
    ) -> None:
        self._settings = EngineSettings(
            weights=str(weights),
            context=context,
            slots=slots,
            threads=threads,
            batch_threads=batch_threads,
            adapters=tuple(map(str, adapters)),
            api_key=secrets.token_urlsafe(24),
        )
        self.headers = {"Authorization": f"Bearer {self._settings.api_key}"}
        self.url = ""
        self._known = asyncio.Event()  # whether the child serves; clear while it is started again
        self._failure = ""  # why it does not
        self._process: asyncio.subprocess.Process | None = None
        self._keeper: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        """The child's process id while it runs."""
        return self._process.pid if self._process and self._process.returncode is None else None

    async def start(self) -> None:
        """Starts the child and waits until it serves. Raises ModelFileError when it cannot load the weights."""
        await self._spawn()
        self._keeper = asyncio.create_task(self._keep())

    async def ready(self) -> None:
        """Waits until the child can be asked; the caller bounds the wait.

        Raises BackendUnavailable before `start`, and while the child does not come back.
        """
        if self._keeper is None:
            raise BackendUnavailable("The embedded engine is not running.", hint="Start the backend first.")
        await self._known.wait()
        if self._failure:
            raise BackendUnavailable(f"The embedded engine died and cannot be started again yet. {self._failure}")

    async def settle(self) -> None:
        """After a broken connection: returns once it is known whether the child died, so that `ready` is true."""
        if self._process is not None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._process.wait(), _SETTLE_S)
                await asyncio.sleep(0)  # the keeper notices first

    async def close(self) -> None:
        """Stops the child; it does not come back."""
        if self._keeper is not None:
            self._keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._keeper
            self._keeper = None
        await self._stop()

    async def _keep(self) -> None:
        failures = 0
        while True:
            assert self._process is not None
            born = time.monotonic()
            await self._process.wait()
            self._known.clear()
            failures = 0 if time.monotonic() - born > _STEADY_S else failures + 1
            while self._failure or not self._known.is_set():
                await asyncio.sleep(_BACKOFF_S[min(failures, len(_BACKOFF_S)) - 1] if failures else 0.0)
                try:
                    await self._spawn()
                except (ModelFileError, BackendUnavailable, OSError) as error:
                    failures, self._failure = failures + 1, str(error)
                    self._known.set()

    async def _spawn(self) -> None:
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "smallfirst.backends.engine"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(asdict(self._settings)).encode() + b"\n")
            await self._process.stdin.drain()
            async with asyncio.timeout(_START_S):
                said = await self._process.stdout.readline()
        except (TimeoutError, ConnectionError) as error:
            await self._stop()
            raise BackendUnavailable(f"The embedded engine did not start within {_START_S:.0f} s.") from error
        except asyncio.CancelledError:
            await self._stop()
            raise
        whole = said.endswith(b"\n")
        answer = json.loads(said) if whole else {"error": f"it ended with exit code {await self._process.wait()}"}
        if "url" not in answer:
            await self._stop()
            raise ModelFileError(
                f"The embedded engine cannot serve {self._settings.weights!r}: {answer['error']}.",
                hint="Check that it and the adapters are GGUF files of this engine's kind, and that memory suffices.",
            )
        self.url, self._failure = answer["url"], ""
        self._known.set()

    async def _stop(self) -> None:
        if self.pid is not None:
            assert self._process is not None
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()


def serve(settings: EngineSettings) -> Any:
    """Starts the server in this process; it serves at its `listening_address` for as long as it is referenced."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = settings.weights
    params.n_ctx = settings.context * settings.slots
    params.n_parallel = settings.slots
    params.cpuparams.n_threads = settings.threads
    params.cpuparams_batch.n_threads = settings.batch_threads
    params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(path, 0.0) for path in settings.adapters]
    params.fit_params = False
    # llama.cpp takes a prompt back from memory whichever adapter has read it.
    params.cache_ram_mib = 0 if settings.adapters else _PROMPT_CACHE_MIB
    params.api_keys = [settings.api_key]
    params.port = 0
    params.ui = False
    params.endpoint_slots = False
    params.verbosity = 1
    return xllamacpp.Server(params)


def _end_with_parent() -> None:
    while sys.stdin.readline():
        pass
    os._exit(0)


def main() -> None:
    """The child."""
    patient_threads()
    settings = EngineSettings(**json.loads(sys.stdin.readline()))
    pipe = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # nobody reads what the library may print there
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        server = serve(settings)
        answer = {"url": server.listening_address}
    except (RuntimeError, ValueError, OSError) as error:
        answer = {"error": str(error)}
    print(json.dumps(answer), file=pipe, flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main()
