"""OpenAI Responses, as far as it is stateless; stored state and hosted tools need an upstream of this wire."""

from smallfirst.wire.responses.answer import Reader, read
from smallfirst.wire.responses.reply import Writer, error, render
from smallfirst.wire.responses.request import Body, body, extend, parse

__all__ = ["Body", "Reader", "Writer", "body", "error", "extend", "parse", "read", "render"]
