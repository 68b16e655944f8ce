"""Files that pages refer to, each under a URL that holds its hash, so that browsers keep them for good.

Besides our style sheet and script that is Vega, Vega-Lite and Vega-Embed in one file, which `vl_convert` makes of what
it ships: nothing is fetched. It is made when a page with charts is first asked for, in a process of its own, because
that takes seconds of work and a JavaScript engine.
"""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import sys
from dataclasses import dataclass
from importlib import resources
from importlib.metadata import version

from starlette.requests import Request
from starlette.responses import Response

from smallfirst.errors import NotFoundError, SmallfirstError

_TYPES = {".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".svg": "image/svg+xml"}
_OURS = ("dashboard.css", "dashboard.js", "icon.svg")
_BUNDLE = "vega.js"
_MAKE = "import sys, vl_convert; sys.stdout.buffer.write(vl_convert.javascript_bundle().encode())"
_FOR_GOOD = "public, max-age=31536000, immutable"


@dataclass(frozen=True, slots=True)
class _File:
    media_type: str
    plain: bytes
    packed: bytes


class Assets:
    """The files, in memory, plain and gzip-compressed."""

    def __init__(self) -> None:
        folder = resources.files("smallfirst.dashboard") / "static"
        self._files = {name: _file(name, (folder / name).read_bytes()) for name in _OURS}
        self._hashes = {name: hashlib.sha256(file.plain).hexdigest()[:12] for name, file in self._files.items()}
        self._hashes[_BUNDLE] = hashlib.sha256(f"{version('vl-convert-python')} {_MAKE}".encode()).hexdigest()[:12]
        self._making = asyncio.Lock()

    def url(self, name: str) -> str:
        """Where a page finds the file."""
        return f"/dashboard/static/{self._hashes[name]}/{name}"

    async def serve(self, request: Request) -> Response:
        """Answer a request for a file. Raises NotFoundError."""
        name = request.path_params["name"]
        if self._hashes.get(name) != request.path_params["hash"]:
            raise NotFoundError(f"There is no file {name!r:.100}.")
        file = self._files.get(name) or await self._bundle()
        packed = "gzip" in request.headers.get("accept-encoding", "")
        headers = {"cache-control": _FOR_GOOD, "vary": "accept-encoding", "x-content-type-options": "nosniff"}
        if packed:
            headers["content-encoding"] = "gzip"
        return Response(file.packed if packed else file.plain, headers=headers, media_type=file.media_type)

    async def _bundle(self) -> _File:
        async with self._making:
            if _BUNDLE not in self._files:
                self._files[_BUNDLE] = await asyncio.to_thread(_file, _BUNDLE, await made_bundle())
        return self._files[_BUNDLE]


async def made_bundle() -> bytes:
    """Vega with Vega-Lite and Vega-Embed as one script. Raises SmallfirstError when it cannot be made."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", _MAKE, stdout=pipe, stderr=pipe)
    made, said = await process.communicate()
    if process.returncode:
        raise SmallfirstError(f"vl-convert made no bundle of Vega: {said.decode(errors='replace')[-300:]}")
    return made


def _file(name: str, content: bytes) -> _File:
    media_type = next(kind for ending, kind in _TYPES.items() if name.endswith(ending))
    return _File(media_type, content, gzip.compress(content, mtime=0))
