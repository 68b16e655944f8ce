"""Features of confidence come from the tokens that carry values; what cannot be known is absent."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smallfirst import agreement
from smallfirst.confidence import (
    COMPRESSION_FEATURES,
    FEATURES,
    REQUEST_FEATURES,
    TOKEN_FEATURES,
    entropy,
    features,
    json_spans,
    margin,
    value_tokens,
)
from smallfirst.types import (
    Choice,
    Completion,
    Request,
    ResponseFormat,
    TokenLogprob,
    Tool,
    ToolCall,
    ToolChoice,
    Verdict,
    Violation,
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=15,
)
WEATHER = Tool("weather", parameters={"type": "object", "properties": {"city": {"type": "string"}}})
REQUEST = Request("chat", {}, "small", ({"role": "user", "content": "Rome?"},), tools=(WEATHER,))


def token(text: str, *probabilities: float, sampled: int = 0) -> TokenLogprob:
    """A token whose alternatives have these probabilities; `sampled` says which of them it is."""
    names = [text if i == sampled else f"<{i}>" for i in range(len(probabilities))]
    top = tuple((name, math.log(p)) for name, p in zip(names, probabilities, strict=True))
    return TokenLogprob(text, top[sampled][1] if top else -0.5, top)


def spoken(pieces: list[str], *calls: tuple[str, str], text: str = "") -> Choice:
    """A choice generated as `pieces`, each certain by 0.9 to 0.1, parsed into `calls`."""
    made = tuple(ToolCall(str(i), name, arguments) for i, (name, arguments) in enumerate(calls))
    return Choice(text=text, tool_calls=made, logprobs=tuple(token(piece, 0.9, 0.1) for piece in pieces))


def found(choice: Choice, request: Request = REQUEST, repairs: int = 0) -> dict[str, float]:
    return features(request, Completion((choice,)), Verdict(), repairs)


def words(choice: Choice) -> list[str]:
    return [value.token for value in value_tokens(choice)]


def leaves(value: Any, path: tuple[str | int, ...] = ()) -> dict[tuple[str | int, ...], Any]:
    """Scalars and empty containers of `value` by path."""
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    below = {p: leaf for key, child in children for p, leaf in leaves(child, (*path, key)).items()}
    return below or {path: value}


@given(JSON, st.sampled_from([None, 0, 2]), st.booleans(), st.text(alphabet="ab\n", max_size=5))
def test_spans_of_values_parse_to_the_values(value: Any, indent: int | None, ascii_only: bool, before: str) -> None:
    """Every leaf has exactly one span, its text parses to the leaf, and every span of a key to its key."""
    raw = before + json.dumps(value, indent=indent, ensure_ascii=ascii_only)
    spans = list(json_spans(raw + " tail", len(before)))
    values = {span.path: json.loads(raw[span.start : span.end]) for span in spans if span.kind == "value"}
    assert values == leaves(value)
    assert all(json.loads(raw[span.start : span.end]) == span.path[-1] for span in spans if span.kind == "key")
    assert [span.start for span in spans] == sorted(span.start for span in spans)


def test_margins_by_hand() -> None:
    """u is p1 - p2 where the likeliest token was taken, negative where another was, unknown below two alternatives."""
    assert margin(token("a", 0.7, 0.2, 0.1)) == pytest.approx(0.5)
    assert margin(token("a", 0.7, 0.2, 0.1, sampled=1)) == pytest.approx(-0.5)
    outside = TokenLogprob("z", math.log(0.05), (("a", math.log(0.6)), ("b", math.log(0.3))))
    assert margin(outside) == pytest.approx(-0.55)
    assert margin(token("a", 0.7)) is None
    assert margin(TokenLogprob("a", -0.1)) is None


def test_entropy_by_hand() -> None:
    """Mass that was not returned is one more outcome; a sampled token outside the alternatives is one too."""
    assert entropy(token("a", 0.5, 0.5)) == pytest.approx(math.log(2))
    assert entropy(token("a", 0.5, 0.25)) == pytest.approx(1.5 * math.log(2))
    outside = TokenLogprob("z", math.log(0.25), (("a", math.log(0.5)),))
    assert entropy(outside) == pytest.approx(1.5 * math.log(2))
    assert entropy(TokenLogprob("a", -0.1)) is None


def test_value_tokens_are_names_and_values_only() -> None:
    """Keys, quotes and punctuation carry no value; a token that holds a quote and a character of a value does."""
    pieces = ['{"', "name", '":', ' "', "wea", "ther", '",', ' "arguments": {"', "city", '": "', "New", " York", '"}}']
    choice = spoken(pieces, ("weather", '{"city": "New York"}'))
    assert words(choice) == ["wea", "ther", "New", " York"]
    merged = spoken(['{"name": "weather", "arguments": {"city"', ': "Ro', 'me"', "}}"], ("weather", '{"city":"Rome"}'))
    assert words(merged) == ['{"name": "weather", "arguments": {"city"', ': "Ro', 'me"']


def test_numbers_literals_and_nested_values_count() -> None:
    """Every scalar is a value, however deep; an empty list is one too."""
    pieces = [
        '{"name": "',
        "f",
        '", "arguments": {"a": ',
        "12",
        ', "b": [',
        "true",
        ", ",
        "null",
        '], "c": ',
        "[]",
        "}}",
    ]
    choice = spoken(pieces, ("f", '{"a":12,"b":[true,null],"c":[]}'))
    assert words(choice) == ["f", "12", "true", "null", "[]"]


def test_calls_are_found_in_lists_fences_and_other_forms() -> None:
    """Values are located through the parsed calls, whatever stands around them."""
    listed = [
        '[{"name": "',
        "f",
        '", "arguments": {"x": ',
        "1",
        '}}, {"name": "',
        "g",
        '", "arguments": {"x": ',
        "2",
        "}}]",
    ]
    assert words(spoken(listed, ("f", '{"x":1}'), ("g", '{"x":2}'))) == ["f", "1", "g", "2"]
    fenced = ["Sure [see]:\n```json\n", '{"tool": "', "f", '", "parameters": {"x": ', "1", "}}\n```"]
    assert words(spoken(fenced, ("f", '{"x": 1}'))) == ["f", "1"]
    tagged = ["<function=", "f", ">", '{"x": ', "1", "}</function>"]
    assert words(spoken(tagged, ("f", '{"x": 1}'))) == ["f", "1"]
    keyed = ['{"', "f", '": {"x": ', "1", "}}"]
    assert words(spoken(keyed, ("f", '{"x": 1}'))) == ["f", "1"]


def test_equal_calls_have_places_of_their_own() -> None:
    """The same call twice is located twice."""
    call = ['{"name": "', "f", '", "arguments": {"x": ', "1", "}}"]
    pieces = ["[", *call, ", ", *call, "]"]
    assert words(spoken(pieces, ("f", '{"x": 1}'), ("f", '{"x": 1}'))) == ["f", "1", "f", "1"]


def test_values_of_structured_text() -> None:
    """An answer under response_format has its values as value tokens; plain text has none."""
    pieces = ['{"', "mood", '": "', "glad", '"}']
    assert words(spoken(pieces, text='{"mood": "glad"}')) == ["glad"]
    assert words(spoken(["I ", "am ", "glad"], text="I am glad")) == []


def test_features_of_a_call_by_hand() -> None:
    """Summaries run over the value tokens; the decision is the first token of the name."""
    logprobs = (
        token('{"name": "', 1.0, 1e-9),
        token("weather", 0.6, 0.4),
        token('", "arguments": {"city": "', 1.0, 1e-9),
        token("Ro", 0.8, 0.1),
        token("me", 0.5, 0.5),
        token('"}}', 1.0, 1e-9),
    )
    choice = Choice(tool_calls=(ToolCall("1", "weather", '{"city": "Rome"}'),), logprobs=logprobs)
    made = found(choice, repairs=1)
    assert made["value_tokens"] == 3
    assert made["margin_mean"] == pytest.approx((0.2 + 0.7 + 0.0) / 3)
    assert made["margin_min"] == pytest.approx(0.0)
    assert made["margin_p10"] == pytest.approx(0.04)
    assert made["logprob_sum"] == pytest.approx(math.log(0.6 * 0.8 * 0.5))
    assert made["logprob_mean"] == pytest.approx(math.log(0.6 * 0.8 * 0.5) / 3)
    assert made["decision_entropy"] == pytest.approx(-(0.6 * math.log(0.6) + 0.4 * math.log(0.4)))
    assert made["form_margin_min"] == pytest.approx(1.0)
    assert made["pressure_max"] == made["pressure_sum"] == 0
    assert (made["no_call"], made["tools"], made["repairs"], made["prompt_chars"]) == (0, 1, 1, 5)
    assert made["schema_chars"] == len('{"properties":{"city":{"type":"string"}},"type":"object"}')


def test_form_and_pressure_by_hand() -> None:
    """Keys and punctuation tell whether an argument was left out; what a grammar took away presses. The end of the turn
    has no text and does not count."""
    logprobs = (
        token('{"name": "', 0.9, 0.1),
        token("weather", 0.2, 0.7),
        token('", "arguments": {"city": "', 1.0, 1e-9),
        token("Rome", 0.8, 0.1),
        token('"}}', 0.5, 0.4),
        token("", 1e-3, 0.9),
    )
    made = found(Choice(tool_calls=(ToolCall("1", "weather", '{"city": "Rome"}'),), logprobs=logprobs))
    assert made["form_margin_min"] == pytest.approx(0.1)
    assert made["form_margin_mean"] == pytest.approx((0.8 + 1.0 + 0.1) / 3)
    assert made["form_logprob_sum"] == pytest.approx(math.log(0.9 * 0.5))
    assert made["pressure_sum"] == made["pressure_max"] == pytest.approx(0.7)
    assert made["value_tokens"] == 2


def test_no_call_is_its_own_class() -> None:
    """Without a call the first token that is not blank is the decision, and there are no value tokens."""
    choice = Choice(text="Hi", logprobs=(token("\n", 1.0, 1e-9), token("Hi", 0.5, 0.5)))
    made = found(choice)
    assert made["no_call"] == 1
    assert made["decision_entropy"] == pytest.approx(math.log(2))
    assert not made.keys() & {"value_tokens", "margin_mean", "logprob_sum"}


def test_what_is_unknown_is_absent() -> None:
    """Without log-probabilities or tools their features are missing, not zero."""
    call = Choice(tool_calls=(ToolCall("1", "weather", "{}"),))
    needs_tokens = TOKEN_FEATURES.keys()
    needs_arguments = {"grounded_min", "grounded_mean", "optional_grounded_min"}
    needs_no_call = {"uncalled_about"}
    needs_others = agreement.FEATURES.keys() | COMPRESSION_FEATURES.keys()
    assert found(call).keys() == FEATURES.keys() - needs_tokens - needs_arguments - needs_no_call - needs_others
    assert found(Choice()).keys() >= {*REQUEST_FEATURES, "no_call", "uncalled_about"}
    plain = Request("chat", {}, "m", (), tool_choice=ToolChoice("none"), tools=(WEATHER,))
    assert "no_call" not in found(Choice(text="x", logprobs=(token("x", 0.5, 0.5),)), plain)
    without_top = Choice(
        tool_calls=(ToolCall("1", "f", '{"x": 1}'),),
        logprobs=(TokenLogprob('{"name": "f", "arguments": {"x": ', -0.1), TokenLogprob("1}}", -0.2)),
    )
    made = found(without_top)
    assert made["logprob_sum"] == pytest.approx(-0.3)
    assert not made.keys() & {"margin_mean", "decision_entropy"}
    lost = spoken(["something", " else"], ("weather", '{"city": "Rome"}'))
    assert "value_tokens" not in found(lost)
    assert features(REQUEST, Completion(()), Verdict(), 0)["no_call"] == 1


def test_sizes_of_the_request() -> None:
    """Text parts count towards the prompt; the answer's schema towards the schemas; violations are counted."""
    messages = ({"role": "system", "content": "ab"}, {"role": "user", "content": [{"type": "text", "text": "cde"}, {}]})
    request = Request("chat", {}, "m", messages, response_format=ResponseFormat("json_schema", {"a": 1}))
    made = features(request, Completion((Choice(),)), Verdict((Violation("x", "y"),)), 0)
    assert (made["prompt_chars"], made["schema_chars"], made["violations"], made["tools"]) == (5, 7, 1, 0)


@given(JSON.filter(lambda value: isinstance(value, dict)), st.randoms())
def test_any_split_into_tokens_is_understood(arguments: Any, random: Any) -> None:
    """However the text is cut into tokens, the value tokens cover every character of every value but its quotes."""
    text = json.dumps(arguments)
    raw = f'{{"name": "f", "arguments": {text}}}'
    cuts = sorted({0, len(raw), *(random.randrange(len(raw)) for _ in range(10))})
    pieces = [raw[a:b] for a, b in pairwise(cuts)]
    kept = "".join(words(spoken(pieces, ("f", text))))
    for leaf in leaves(arguments).values():
        if isinstance(leaf, (int, float)):
            assert json.dumps(leaf) in kept


def test_what_others_answered_is_evidence() -> None:
    """With other answers their agreement is among the features, whichever order the features are computed in."""
    call = Choice(tool_calls=(ToolCall("1", "weather", '{"city": "Rome"}'),))
    other = Choice(tool_calls=(ToolCall("9", "weather", '{ "city": "Rome" }'),))
    made = features(REQUEST, Completion((call,)), Verdict(), others=[Completion((other,)), Completion(())])
    assert made["agree"] == 1
    assert made.keys() <= FEATURES.keys()
    assert features(REQUEST, Completion((call,)), Verdict(), mended=True)["mended"] == 1


def test_every_feature_is_finite_and_declared() -> None:
    """Whatever is answered, features are finite numbers and all of them are declared."""
    answers = [
        Choice(),
        Choice(text="no"),
        Choice(tool_calls=(ToolCall("1", "weather", "{"), ToolCall("2", "x", "[]"))),
    ]
    for choice in answers:
        for name, value in features(REQUEST, Completion((choice,)), Verdict(), others=[Completion((choice,))]).items():
            assert name in FEATURES
            assert math.isfinite(value)
