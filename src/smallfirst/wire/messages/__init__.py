"""Anthropic Messages."""

from smallfirst.wire.messages.answer import Reader, read
from smallfirst.wire.messages.reply import Writer, error, render
from smallfirst.wire.messages.request import Body, body, extend, parse

__all__ = ["Body", "Reader", "Writer", "body", "error", "extend", "parse", "read", "render"]
