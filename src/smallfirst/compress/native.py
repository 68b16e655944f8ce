"""Log-probabilities of given tokens from llama.cpp's C functions: one prefill, the context kept for all that follow.

The functions are those of the library that `xllamacpp` ships. Their structures are no documented interface of that
package, so what is known of them is checked when the library is loaded, and `NativeUnavailable` raised when it differs:
`tokens.EngineModel` then gives the same figures through the public interface, much slower.
"""

from __future__ import annotations

import asyncio
import ctypes
import importlib.util
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smallfirst.compress.base import ModelShape
from smallfirst.compress.tokens import Continuation, gguf_shape
from smallfirst.errors import ModelFileError, SmallfirstError

_BATCH = 512  # tokens evaluated at once
_SEQUENCES = 64  # continuations evaluated at once
_OPAQUE = 512  # bytes: more than either structure has, and trailing bytes of a last argument are not read


class NativeUnavailable(SmallfirstError):
    """The library's C functions are not those that this module knows."""


class _ContextParams(ctypes.Structure):
    _fields_ = (
        ("n_ctx", ctypes.c_uint32),
        ("n_batch", ctypes.c_uint32),
        ("n_ubatch", ctypes.c_uint32),
        ("n_seq_max", ctypes.c_uint32),
        ("kept", ctypes.c_uint32 * 3),
        ("n_threads", ctypes.c_int32),
        ("n_threads_batch", ctypes.c_int32),
        ("more", ctypes.c_uint8 * (141 - 36)),
        ("kv_unified", ctypes.c_bool),
        ("rest", ctypes.c_uint8 * (_OPAQUE - 142)),
    )


class _ModelParams(ctypes.Structure):
    _fields_ = (("all", ctypes.c_uint8 * _OPAQUE),)


class _Batch(ctypes.Structure):
    _fields_ = (
        ("n_tokens", ctypes.c_int32),
        ("token", ctypes.POINTER(ctypes.c_int32)),
        ("embd", ctypes.c_void_p),
        ("pos", ctypes.POINTER(ctypes.c_int32)),
        ("n_seq_id", ctypes.POINTER(ctypes.c_int32)),
        ("seq_id", ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))),
        ("logits", ctypes.POINTER(ctypes.c_int8)),
    )


_Log = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
_DEFAULTS = bytes.fromhex(
    "00020000000800000002000001000000000000000000000001000000040000000400000000000000ffffffffffffffffffffffffffffffff"
    "0000000000000000000080bf000080bf000080bf000080bf00000000000080bf000000000000000000000000000000000100000001000000"
    "0000000000000000000000000000000000000000000000000001010101000000"
)
"""The context's parameters as the library gives them: sizes, threads, unset kinds, YaRN at -1, F16 caches, flags."""


def available() -> bool:
    """Whether the library is the one that is known here."""
    try:
        _library()
    except NativeUnavailable:
        return False
    return True


@cache
def _library() -> Any:
    """The library with its functions declared, quiet, and checked to be the one that is known here."""
    spec = importlib.util.find_spec("xllamacpp")
    files = sorted(Path(spec.origin).parent.glob("xllamacpp*.so")) if spec is not None and spec.origin else []
    if not files:
        raise NativeUnavailable("xllamacpp's shared library is not found.")
    try:
        lib: Any = ctypes.CDLL(str(files[0]))
        _declare(lib)
    except (OSError, AttributeError) as error:
        raise NativeUnavailable(f"{files[0].name} does not have the functions that are needed: {error}.") from error
    if bytes(lib.llama_context_default_params())[: len(_DEFAULTS)] != _DEFAULTS:
        raise NativeUnavailable(f"The structures of {files[0].name} are not those known.")
    lib.unheard = _Log(lambda *_: None)  # kept as long as the library, which calls it
    lib.llama_log_set(lib.unheard, None)
    lib.llama_backend_init()
    return lib


def _declare(lib: Any) -> None:
    pointer, i32, flag = ctypes.c_void_p, ctypes.c_int32, ctypes.c_bool
    tokens = ctypes.POINTER(i32)
    signatures: dict[str, tuple[Any, tuple[Any, ...]]] = {
        "llama_log_set": (None, (_Log, pointer)),
        "llama_backend_init": (None, ()),
        "llama_model_default_params": (_ModelParams, ()),
        "llama_context_default_params": (_ContextParams, ()),
        "llama_model_load_from_file": (pointer, (ctypes.c_char_p, _ModelParams)),
        "llama_model_free": (None, (pointer,)),
        "llama_model_get_vocab": (pointer, (pointer,)),
        "llama_init_from_model": (pointer, (pointer, _ContextParams)),
        "llama_free": (None, (pointer,)),
        "llama_get_memory": (pointer, (pointer,)),
        "llama_memory_clear": (None, (pointer, flag)),
        "llama_memory_seq_cp": (None, (pointer, i32, i32, i32, i32)),
        "llama_memory_seq_rm": (flag, (pointer, i32, i32, i32)),
        "llama_vocab_n_tokens": (i32, (pointer,)),
        "llama_vocab_get_add_bos": (flag, (pointer,)),
        "llama_vocab_bos": (i32, (pointer,)),
        "llama_tokenize": (i32, (pointer, ctypes.c_char_p, i32, tokens, i32, flag, flag)),
        "llama_batch_init": (_Batch, (i32, i32, i32)),
        "llama_batch_free": (None, (_Batch,)),
        "llama_decode": (i32, (pointer, _Batch)),
        "llama_get_logits_ith": (ctypes.POINTER(ctypes.c_float), (pointer, i32)),
    }
    for name, (returns, takes) in signatures.items():
        function = getattr(lib, name)
        function.restype, function.argtypes = returns, takes


class NativeModel:
    """A GGUF file whose log-probabilities are read in this process (protocol `tokens.TokenModel`).

    `window` tokens of context and continuation fit; `threads` evaluate. Raises ModelFileError for a file that cannot be
    loaded, NativeUnavailable when the library is not the known one.
    """

    def __init__(self, weights: Path, *, window: int = 4096, threads: int = 1) -> None:
        self.name = f"{weights.stem} (llama.cpp)"
        self.window = window
        self._weights, self._threads = weights, threads
        self._model: int | None = None
        self._kept: list[int] = []  # the context tokens that the cache holds
        self._lock = asyncio.Lock()

    @property
    def shape(self) -> ModelShape:
        return gguf_shape(self._weights)

    async def start(self) -> None:
        await asyncio.to_thread(self._load)

    async def close(self) -> None:
        if self._model is not None:
            self._lib.llama_batch_free(self._batch)
            self._lib.llama_free(self._context)
            self._lib.llama_model_free(self._model)
            self._model = None

    async def tokenize(self, text: str, *, special: bool) -> list[int]:
        raw = text.encode("utf-8", "replace")
        room = (ctypes.c_int32 * (len(raw) + 8))()
        count = self._lib.llama_tokenize(self._vocab, raw, len(raw), room, len(room), False, special)
        return room[:count]

    @property
    def begin(self) -> list[int]:
        """The tokens that every text of this model begins with."""
        adds = self._lib.llama_vocab_get_add_bos(self._vocab)
        return [self._lib.llama_vocab_bos(self._vocab)] if adds else []

    async def logprobs(self, context: Sequence[int], continuations: Sequence[Continuation]) -> list[float]:
        async with self._lock:
            return await asyncio.to_thread(self._score, list(context), continuations)

    def _load(self) -> None:
        self._lib = lib = _library()
        self._model = lib.llama_model_load_from_file(str(self._weights).encode(), lib.llama_model_default_params())
        if not self._model:
            raise ModelFileError(
                f"llama.cpp cannot load {str(self._weights)!r}.", hint="Name a whole GGUF file of a kind that it knows."
            )
        self._vocab = lib.llama_model_get_vocab(self._model)
        self._words = lib.llama_vocab_n_tokens(self._vocab)
        params = lib.llama_context_default_params()
        params.n_ctx = self.window + _BATCH
        params.n_batch = params.n_ubatch = _BATCH
        params.n_seq_max = _SEQUENCES + 1
        params.n_threads = params.n_threads_batch = self._threads
        params.kv_unified = True
        self._context = lib.llama_init_from_model(self._model, params)
        if not self._context:
            lib.llama_model_free(self._model)
            raise ModelFileError(
                f"There is no memory for {params.n_ctx} tokens with {self._weights.name}.", hint="Make the window less."
            )
        self._memory = lib.llama_get_memory(self._context)
        self._batch = lib.llama_batch_init(_BATCH, 0, 1)

    def _score(self, context: list[int], continuations: Sequence[Continuation]) -> list[float]:
        self._read(context)
        results: list[float] = []
        group: list[Continuation] = []
        for item in continuations:
            if group and (len(group) == _SEQUENCES or sum(len(g.tokens) for g in group) + len(item.tokens) > _BATCH):
                results += self._group(len(context), group)
                group = []
            group.append(item)
        return results + (self._group(len(context), group) if group else [])

    def _read(self, context: list[int]) -> None:
        """Has the cache hold `context` as sequence 0, reading what it does not hold yet."""
        same = 0
        for kept, wanted in zip(self._kept, context, strict=False):
            if kept != wanted:
                break
            same += 1
        self._lib.llama_memory_seq_rm(self._memory, 0, same, -1)
        self._kept = context
        for start in range(same, len(context), _BATCH):
            rows = [(token, start + i, 0, False) for i, token in enumerate(context[start : start + _BATCH])]
            self._decode(rows)

    def _group(self, at: int, group: Sequence[Continuation]) -> list[float]:
        """The scores of continuations of the context, each in a sequence of its own, read together."""
        for sequence in range(1, len(group) + 1):
            self._lib.llama_memory_seq_cp(self._memory, 0, sequence, 0, at)
        rows = [
            (token, at + i, sequence, given - 1 <= i < len(tokens) - 1)
            for sequence, (tokens, given) in enumerate(((c.tokens, c.given) for c in group), 1)
            for i, token in enumerate(tokens)
        ]
        totals = [0.0] * len(group)
        for start in range(0, len(rows), _BATCH):
            part = rows[start : start + _BATCH]
            self._decode(part)
            for row, (_, position, sequence, wanted) in enumerate(part):
                if wanted:
                    token = group[sequence - 1].tokens[position - at + 1]
                    totals[sequence - 1] += self._logprob(row, token)
        for sequence in range(1, len(group) + 1):
            self._lib.llama_memory_seq_rm(self._memory, sequence, -1, -1)
        return totals

    def _decode(self, rows: Sequence[tuple[int, int, int, bool]]) -> None:
        """Evaluates (token, position, sequence, whether its logits are wanted)."""
        batch = self._batch
        batch.n_tokens = len(rows)
        for i, (token, position, sequence, wanted) in enumerate(rows):
            batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, position, 1
            batch.seq_id[i][0], batch.logits[i] = sequence, wanted
        if code := self._lib.llama_decode(self._context, batch):
            self._kept = []
            self._lib.llama_memory_clear(self._memory, True)
            raise ModelFileError(f"llama.cpp could not evaluate {len(rows)} tokens (code {code}).")

    def _logprob(self, row: int, token: int) -> float:
        """The log-probability of `token` after the token at `row` of the last batch."""
        logits: NDArray[np.float32] = np.ctypeslib.as_array(
            self._lib.llama_get_logits_ith(self._context, row), shape=(self._words,)
        )
        top = logits.max()
        return float(logits[token] - top) - float(np.log(np.exp(logits - top).sum(dtype=np.float64)))
