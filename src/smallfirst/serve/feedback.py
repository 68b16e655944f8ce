"""The body of /v1/feedback: a later label of a record."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from smallfirst.errors import RequestError
from smallfirst.types import Feedback

_TYPES: Mapping[str, tuple[type, ...]] = {
    "correct": (bool,),
    "score": (float, int),
    "comment": (str,),
    "answer": (dict, list, str),
}


class FeedbackBody(msgspec.Struct, forbid_unknown_fields=True):
    """What a client sends; `source` tells who says so ("user", "tests", ...)."""

    record_id: str
    kind: Literal["correct", "score", "answer", "comment"]
    value: Any
    source: str = "api"


def parse_feedback(raw: bytes, feedback_id: str) -> Feedback:
    """Raises RequestError for anything that is not a label."""
    try:
        body = msgspec.json.decode(raw, type=FeedbackBody)
    except (msgspec.DecodeError, UnicodeDecodeError) as err:
        raise RequestError(f"The feedback cannot be read: {err}.", hint="Send record_id, kind and value.") from None
    allowed = _TYPES[body.kind]
    if not isinstance(body.value, allowed) or (isinstance(body.value, bool) and bool not in allowed):
        names = " or ".join(t.__name__ for t in allowed)
        raise RequestError(f"The value of {body.kind!r} is {body.value!r}; allowed is {names}.", param="value")
    return Feedback(feedback_id, body.record_id, time.time(), body.kind, body.value, body.source)
