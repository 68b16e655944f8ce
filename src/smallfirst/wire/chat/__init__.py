"""OpenAI chat completions: the wire whose words the domain types use."""

from smallfirst.wire.chat.answer import Reader, read
from smallfirst.wire.chat.reply import Writer, error, render
from smallfirst.wire.chat.request import Body, body, extend, parse

__all__ = ["Body", "Reader", "Writer", "body", "error", "extend", "parse", "read", "render"]
