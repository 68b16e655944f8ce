"""Recorded answers as backends, and what they would have cost."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from statistics import fmean

from smallfirst.prices import PriceList
from smallfirst.replay.calls import Answer, Call
from smallfirst.types import Capabilities, Delta, Request, Stage, ToolCallDelta, Usage

_AS_SERVED = ("-FC", "-prompt")
"""Suffixes by which leaderboards tell how a model was asked; price lists do not have them."""


ANSWERS_ALL = Capabilities(
    modalities=frozenset({"text", "image", "audio", "file"}),
    native=frozenset({"chat"}),
    custom_tools=True,
    top_logprobs=20,
)
"""What was recorded was answered, whatever it took."""


class Recorded:
    """A `Backend` that gives a model's recorded answers: to a request, that of the call named by its episode."""

    def __init__(self, model: str, answers: Mapping[str, Answer], usages: Mapping[str, Usage]) -> None:
        self.name = model
        self.capabilities = ANSWERS_ALL
        self._answers, self._usages = answers, usages

    async def generate(self, request: Request) -> AsyncIterator[Delta]:
        """The recorded answer at once."""
        call = request.origin.episode or ""
        choice = self._answers[call].choice
        made = [ToolCallDelta(n, c.id, c.name, c.arguments) for n, c in enumerate(choice.tool_calls)]
        yield Delta(
            text=choice.text,
            tool_calls=tuple(made),
            logprobs=choice.logprobs,
            finish_reason=choice.finish_reason,
            usage=self._usages[call],
            model=self.name,
        )

    async def start(self) -> None:
        """Nothing to start."""

    async def close(self) -> None:
        """Nothing to close."""


class Prices:
    """The costs of recorded answers, by model and call: `usd[model][call id]`.

    A model on the price list costs what its recorded tokens cost; where they are missing for some calls, the mean of
    the others. A model that is not on the list, or has no tokens, is taken for self-hosted: `ratio` times what the
    large model costs on that call. When the large model itself has no price its every call costs one `unit`.
    """

    def __init__(self, calls: Sequence[Call], models: Sequence[str], large: str, ratio: float) -> None:
        prices = PriceList()
        listed = {model: _listed(calls, model, prices) for model in models}
        big = listed[large]
        self.unit = "USD" if big is not None else "calls of the large model"
        reference = big or {call.id: 1.0 for call in calls}
        hosted = {call_id: ratio * usd for call_id, usd in reference.items()}
        self.usd = {model: found or (reference if model == large else hosted) for model, found in listed.items()}
        self.by_list = tuple(model for model, found in listed.items() if found is not None)

    def usages(self, model: str, calls: Sequence[Call]) -> dict[str, Usage]:
        """What the recorded answers used; `busy_seconds` carry the cost, at one USD a second (see `PerCall`)."""
        found = {}
        for call in calls:
            used = call.answers[model].usage or Usage()
            found[call.id] = Usage(used.input_tokens, used.output_tokens, busy_seconds=self.usd[model][call.id])
        return found


class PerCall:
    """A `Pricing` by recorded cost: a usage's busy seconds at one USD each."""

    def cost(self, stage: Stage, usage: Usage) -> tuple[float | None, float | None]:
        del stage
        return usage.busy_seconds, usage.busy_seconds

    def expected(self, stage: Stage, request: Request) -> float | None:
        del stage, request
        return 0.0


def _listed(calls: Sequence[Call], model: str, prices: PriceList) -> dict[str, float] | None:
    """The list's price of every call, None when the list or the tokens do not tell."""
    name = model
    for suffix in _AS_SERVED:
        name = name.removesuffix(suffix)
    known: dict[str, float] = {}
    for call in calls:
        usage = call.answers[model].usage
        usd = None if usage is None else prices.cost(name, None, usage)
        if usd is not None:
            known[call.id] = usd
    if not known:
        return None
    mean = fmean(known.values())
    return {call.id: known.get(call.id, mean) for call in calls}
