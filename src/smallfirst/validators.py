"""Pure checks of a completion against its request and its task (mechanisms, section 2).

`checks_for(request)` derives checks from the request itself; `task_validator(spec)` makes a task's own from
configuration. A new kind of task check is one function and one line in TASK_VALIDATORS. What a refusal
(`Choice.refusal`) says is never judged here, and neither is whether a valid answer is right.
"""

from __future__ import annotations

import ast
import json
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from importlib import import_module
from itertools import chain, islice
from typing import Any

import jsonschema_rs
import msgspec

from smallfirst.errors import ConfigError, RequestError, TooLargeError
from smallfirst.keywords import unchecked
from smallfirst.recurring import derived
from smallfirst.schemas import (
    PATTERN_OPTIONS,
    JsonTextError,
    check_schema,
    compiled,
    elide,
    elide_text,
    json_path,
    parse_json,
)
from smallfirst.types import Choice, Completion, Json, Request, Tool, ToolCall, Verdict, Violation

Validator = Callable[[Request, Choice], Iterable[Violation]]

MAX_MESSAGE = 300
MAX_VIOLATIONS = 8
"""Most violations reported of one JSON value: more do not help a model to repair it."""
MAX_SCHEMAS_CHARS = 4 * 1024 * 1024
_QUOTED_ANSWER = 2_000


def check_schemas(request: Request) -> None:
    """Refuse a request whose schemas cannot be used, before any model is asked.

    Raises RequestError with `param` for an invalid schema, TooLargeError for one (or all together) over the limits
    of `schemas`.
    """
    derived(request.tools, _check_tools)
    if request.response_format.schema is not None:
        check_schema(request.response_format.schema, param="response_format.json_schema.schema")


def _check_tools(tools: tuple[Tool, ...]) -> None:
    total = 0
    for index, tool in enumerate(tools):
        param = f"tools[{index}].function.parameters"
        check_schema(tool.parameters, param=param)
        total += len(msgspec.json.encode(tool.parameters))
        kind = tool.parameters.get("type", "object")
        if kind != "object" and "object" not in kind:
            raise RequestError(
                f"The schema at {param} has type {kind!r}; arguments of a tool are an object.",
                hint='Write "type": "object" and name the arguments under "properties".',
                param=param,
            )
    if total > MAX_SCHEMAS_CHARS:
        raise TooLargeError(
            f"The tools' schemas have {total} characters together; {MAX_SCHEMAS_CHARS} are allowed.", param="tools"
        )


def unchecked_keywords(request: Request) -> tuple[str, ...]:
    """The keywords of the request's schemas that nothing here enforces (see `keywords.unchecked`), sorted."""
    found = set(derived(request.tools, _unchecked_in))
    if request.response_format.schema is not None:
        found |= set(_unchecked_of(msgspec.json.encode(request.response_format.schema)))
    return tuple(sorted(found))


@lru_cache(maxsize=256)
def _unchecked_of(schema: bytes) -> tuple[str, ...]:
    """The same of one schema, given as JSON: response schemas recur, and finding this out takes as long as a check."""
    return unchecked(msgspec.json.decode(schema))


def _unchecked_in(tools: tuple[Tool, ...]) -> tuple[str, ...]:
    return tuple({name for tool in tools for name in unchecked(tool.parameters)})


def checks_for(request: Request) -> tuple[Validator, ...]:
    """The checks that `request` itself asks for of a whole answer, in the order in which they are reported."""
    checks: tuple[Validator, ...] = (_not_empty, _calls_allowed, _arguments_fit)
    return checks if request.response_format.kind == "text" else (*checks, _text_fits)


def validate(completion: Completion, request: Request, extra: Sequence[Validator] = ()) -> Verdict:
    """Every choice of `completion` against the request's checks and the `extra` ones of its task.

    An answer that was cut off (codes "truncated", "content_filter") is checked no further.
    """
    checks = (*checks_for(request), *extra)
    found: list[Violation] = []
    for index, choice in enumerate(completion.choices):
        cut = tuple(_finished(request, choice))
        violations = cut or chain.from_iterable(check(request, choice) for check in checks)
        prefix = f"$.choices[{index}]" if len(completion.choices) > 1 else "$"
        found += [Violation(v.code, elide_text(v.message, MAX_MESSAGE), prefix + v.path[1:]) for v in violations]
    if not completion.choices:
        found.append(Violation("empty", "There is no answer."))
    return Verdict(tuple(found))


def repair_messages(request: Request, completion: Completion, verdict: Verdict) -> tuple[Json, ...]:
    """Two messages to append to the request's: the model's own first choice as text, and what is wrong with it.

    Both quote the answer as data: calls become JSON text, so that no server has to parse what is malformed.
    """
    choice = completion.choices[0] if completion.choices else Choice()
    calls = [json.dumps({"name": call.name, "arguments": call.arguments}) for call in choice.tool_calls]
    said = "\n".join(filter(None, [choice.text, *calls])) or "(nothing)"
    wrong = "\n".join(f"- {v.message}" for v in verdict.violations[:MAX_VIOLATIONS])
    wanted = "tool call" if choice.tool_calls or request.tool_choice.mode == "required" else "answer"
    return (
        {"role": "assistant", "content": elide_text(said, _QUOTED_ANSWER)},
        {"role": "user", "content": f"That cannot be used:\n{wrong}\nGive the whole {wanted} again, corrected."},
    )


def _finished(request: Request, choice: Choice) -> Iterator[Violation]:
    if choice.finish_reason == "length":
        limit = request.sampling.max_tokens
        within = f" of {limit} tokens" if limit else ""
        yield Violation("truncated", f"The answer was cut off at its limit{within}: answer more briefly.")
    elif choice.finish_reason == "content_filter":
        yield Violation("content_filter", "The answer was cut off by the model's content filter.")


def _not_empty(request: Request, choice: Choice) -> Iterator[Violation]:
    if request.closed and not (choice.text.strip() or choice.tool_calls or choice.refusal):
        yield Violation("empty", "The answer is empty.")


def _calls_allowed(request: Request, choice: Choice) -> Iterator[Violation]:
    known = {tool.name for tool in request.tools}
    allowed = request.callable_tools
    for index, call in enumerate(choice.tool_calls):
        path = f"$.tool_calls[{index}].name"
        if request.tools and request.tool_choice.mode == "none":
            yield Violation("tool_not_allowed", "No tool may be called here: answer in words.", path)
        elif call.name in known and call.name not in allowed:
            yield Violation("tool_not_allowed", f"{elide(call.name)} may not be called here; {_names(allowed)}.", path)
        elif call.name not in known and request.closed:
            yield Violation("unknown_tool", f"There is no tool {elide(call.name)}; {_names(allowed)}.", path)
    if request.tool_choice.mode == "required" and request.closed and not choice.tool_calls and not choice.refusal:
        yield Violation("tool_required", f"A tool must be called; {_names(allowed)}.", "$.tool_calls")
    if not request.parallel_tool_calls and len(choice.tool_calls) > 1:
        message = f"Only one tool may be called at a time, not {len(choice.tool_calls)}."
        yield Violation("too_many_calls", message, "$.tool_calls")


def _names(names: Iterable[str]) -> str:
    listed = ", ".join(elide(name, 40) for name in islice(names, 8))
    return f"allowed: {listed}" if listed else "none may be called"


def _arguments_fit(request: Request, choice: Choice) -> Iterator[Violation]:
    if not choice.tool_calls:
        return
    allowed, checks = request.callable_tools, derived(request.tools, _argument_checks)
    for index, call in enumerate(choice.tool_calls):
        if call.name in allowed:
            path, what = f"$.tool_calls[{index}].arguments", f"The arguments of {call.name}"
            check = checks[call.name]
            yield from _json_fits("arguments", what, path, call.arguments or "{}", check, must_be_object=True)


def _argument_checks(tools: tuple[Tool, ...]) -> Mapping[str, jsonschema_rs.Validator]:
    return {tool.name: compiled(tool.parameters) for tool in tools}


def _text_fits(request: Request, choice: Choice) -> Iterator[Violation]:
    if choice.tool_calls or choice.refusal or not (choice.text.strip() or request.closed):
        return
    wanted = request.response_format
    check = compiled(wanted.schema if wanted.schema is not None else {})
    free = wanted.kind == "json_object"
    yield from _json_fits("response_format", "The answer", "$.text", choice.text, check, must_be_object=free)


def _json_fits(
    code: str, what: str, path: str, text: str, schema: jsonschema_rs.Validator, *, must_be_object: bool
) -> Iterator[Violation]:
    try:
        value = parse_json(text)
    except JsonTextError as error:
        yield Violation(code, f"{what} must be JSON and nothing else, but {error}.", path)
        return
    if must_be_object and not isinstance(value, dict):
        yield Violation(code, f"{what} must be a JSON object, not {elide(value)}.", path)
        return
    for wrong in islice(schema.iter_errors(value), MAX_VIOLATIONS):
        inside = json_path(list(wrong.instance_path))
        yield Violation(code, f"{what}, at {inside}: {_explain(wrong)}.", path + inside[1:])


def _explain(error: jsonschema_rs.ValidationError) -> str:
    """What is allowed, in a clause that a small model can act on."""
    kind, keyword, given = error.kind, error.kind.name, elide(error.instance)
    if isinstance(kind, (kind.AnyOf, kind.OneOfNotValid)):
        branches = [branch for branch in kind.context if branch]
        if branches:
            nearest = min(branches, key=lambda branch: (_is_shallow(branch[0], error), len(branch)))
            path = json_path(list(nearest[0].instance_path[len(error.instance_path) :]))
            return f"{given} fits none of the {len(kind.context)} allowed forms; of the nearest, at {path}: " + (
                _explain(nearest[0])
            )
    match keyword:
        case "type":
            return f"{given} is not of type {' or '.join(kind.as_dict()['types'])}"
        case "enum":
            return f"{given} is not one of {elide_text(', '.join(elide(v) for v in kind.value), 160)}"
        case "const":
            return f"{given} is not {elide(kind.value)}"
        case "required":
            return f"the field {elide(kind.value)} is missing"
        case "additionalProperties" | "unevaluatedProperties":
            return f"the fields {elide(kind.value, 120)} are not allowed"
        case "pattern":
            return f"{given} does not match the pattern {elide(kind.value, 120)}"
        case "format":
            return f"{given} is not a valid {kind.value}"
    return elide_text(error.message, 200).rstrip(".")


def _is_shallow(inner: jsonschema_rs.ValidationError, outer: jsonschema_rs.ValidationError) -> bool:
    """Whether a branch already fails by the type of the value itself: it was not the form that was meant."""
    return inner.kind.name == "type" and len(inner.instance_path) == len(outer.instance_path)


Spec = Mapping[str, Any]
_Check = Callable[[str], str | None]
"""A text to what is wrong with it, as a clause, or None."""


def task_validator(spec: Spec) -> Validator:
    """A task's own check from its configuration: `kind`, what that kind takes, and `at`; "" means: not given.

    `at` is "text" (as if not given) or "arguments.NAME[.NAME ...]": that argument of every tool call that has it, lists
    entered. Raises ConfigError for an unknown kind, a key that the kind does not take, or a value it cannot use.
    """
    given = {key: value for key, value in spec.items() if value != "" and (key, value) != ("at", "text")}
    kind = given.pop("kind", None)
    if kind not in TASK_VALIDATORS:
        raise ConfigError(f"A validator has kind {kind!r}; known are {', '.join(TASK_VALIDATORS)}.")
    return TASK_VALIDATORS[kind](given)


def _take(kind: str, given: Spec, required: tuple[str, ...], optional: tuple[str, ...] = ("at",)) -> None:
    """Refuse missing and unknown keys, and values that are not strings."""
    unknown = sorted(set(given) - {*required, *optional})
    missing = [key for key in required if key not in given]
    if unknown or missing or not all(isinstance(value, str) for value in given.values()):
        raise ConfigError(
            f"A {kind} validator was given {dict(given)!r}.",
            hint=f"It takes strings: {', '.join(required) or 'nothing'} required, {', '.join(optional)} optional.",
        )


def _regex(given: Spec) -> Validator:
    """The text holds a match of `pattern` (ECMA syntax, as in JSON Schema; anchor it with ^ and $)."""
    _take("regex", given, ("pattern",))
    pattern = given["pattern"]
    try:
        matcher = jsonschema_rs.validator_for({"pattern": pattern}, pattern_options=PATTERN_OPTIONS)
    except ValueError:
        raise ConfigError(f"A regex validator has the pattern {pattern!r}, which is no regular expression.") from None
    clause = f"does not match the pattern {elide(pattern, 120)}"
    return _texts("regex", given, lambda text: None if matcher.is_valid(text) else clause)


def _sql(given: Spec) -> Validator:
    """The text is one or more SQL statements in `dialect` (a name that sqlglot knows; any, if not given)."""
    import sqlglot
    from sqlglot import errors, exp

    _take("sql", given, (), ("dialect", "at"))
    dialect = given.get("dialect")
    try:
        sqlglot.Dialect.get_or_raise(dialect)
    except ValueError as error:
        raise ConfigError(f"A sql validator has the dialect {dialect!r}: {error}") from None

    def check(text: str) -> str | None:
        try:
            statements = sqlglot.parse(text, dialect=dialect)
        except errors.ParseError as error:
            at = error.errors[0] if error.errors else {}
            near = f"{at.get('start_context', '')}{at.get('highlight', '')}"
            return f"is not SQL: it cannot be read at line {at.get('line')}, after {elide(near[-40:])}"
        except (errors.SqlglotError, RecursionError) as error:
            return f"is not SQL: {elide_text(str(error), 120)}"
        bare = (exp.Condition, exp.Alias)
        whole = all(s is None or isinstance(s, exp.Query) or not isinstance(s, bare) for s in statements)
        return None if whole and any(statements) else "is not an SQL statement"

    return _texts("sql", given, check)


def _python(given: Spec) -> Validator:
    """The text parses as Python source (of the version that runs the gateway); nothing is executed."""
    _take("python", given, ())

    def check(text: str) -> str | None:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                ast.parse(text)
        except SyntaxError as error:
            return f"is not Python: {error.msg}, line {error.lineno}"
        except (ValueError, RecursionError, MemoryError) as error:
            return f"is not Python: {type(error).__name__}"
        return None

    return _texts("python", given, check)


def _function(given: Spec) -> Validator:
    """The user's `function` ("package.module:name"), called as f(request, choice) -> None, a sentence or a list.

    Fails closed: whatever it raises, and any other result, is the violation "validator_error".
    """
    _take("function", given, ("function",), ())
    module, _, name = given["function"].partition(":")
    try:
        function = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"A function validator cannot load {given['function']!r}: {error}") from None

    def check(request: Request, choice: Choice) -> Iterator[Violation]:
        try:
            said = function(request, choice)
        except Exception as error:  # noqa: BLE001 - the user's code may raise anything; the answer is then not trusted
            yield Violation("validator_error", f"The check {name} failed: {type(error).__name__}: {error}")
            return
        messages = [] if said is None else [said] if isinstance(said, str) else said
        if isinstance(messages, (list, tuple)) and all(isinstance(message, str) for message in messages):
            yield from (Violation("function", message) for message in messages)
        else:
            yield Violation("validator_error", f"The check {name} returned {type(said).__name__}, not sentences.")

    return check


def _texts(code: str, given: Spec, check: _Check) -> Validator:
    """A validator that applies `check` to the texts that `at` selects."""
    root, *names = given.get("at", "text").split(".")
    if not (root == "text" and not names) and not (root == "arguments" and names and all(names)):
        raise ConfigError(
            f"A {code} validator applies at {given['at']!r}.", hint='Write "text" or "arguments.NAME", dots between.'
        )

    def validator(_request: Request, choice: Choice) -> Iterator[Violation]:
        for path, value in _selected(choice, names):
            clause = check(value) if isinstance(value, str) else "is not a string"
            if clause:
                yield Violation(code, f"{elide(value)} {clause}.", path)

    return validator


def _selected(choice: Choice, names: list[str]) -> Iterator[tuple[str, Any]]:
    """(path, value) of the text, or of the argument `names` in every call that has it; unreadable calls have none."""
    if not names:
        if choice.text.strip():
            yield "$.text", choice.text
        return
    for index, call in enumerate(choice.tool_calls):
        found: list[tuple[str, Any]] = [(f"$.tool_calls[{index}].arguments", _arguments(call))]
        for name in names:
            found = [(f"{path}.{name}", item[name]) for path, item in found if isinstance(item, dict) and name in item]
            found = [
                (f"{path}[{i}]" if isinstance(value, list) else path, item)
                for path, value in found
                for i, item in enumerate(value if isinstance(value, list) else [value])
            ]
        yield from found


def _arguments(call: ToolCall) -> Any:
    try:
        return parse_json(call.arguments)
    except JsonTextError:
        return None


TASK_VALIDATORS: Mapping[str, Callable[[Spec], Validator]] = {
    "regex": _regex,
    "sql": _sql,
    "python": _python,
    "function": _function,
}
