"""Asks a predictor from what compressors left, and prices it: what `distortion` compares."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from smallfirst.compress.cases import Case
from smallfirst.compress.distortion import Trial, right
from smallfirst.compress.information import Progress, Report, Summaries, silent
from smallfirst.compress.summary import answer_of
from smallfirst.errors import DataError
from smallfirst.types import Backend, Completion, Request, Sampling, Usage

ANSWER_TOKENS = 32
_ASK = "Answer the question from the text. Give only the answer, in a few words."
Pricing = Callable[[Usage], tuple[float, float]]
"""USD of a usage: local machine time priced, and free."""


async def trial(
    cases: Sequence[Case],
    summaries: Summaries,
    report: Report,
    predictor: Backend,
    model: str,
    *,
    pricing: Pricing,
    usd_per_second: float,
    progress: Progress = silent,
) -> Trial:
    """What a started `predictor` makes of the first summary of each case; `usd_per_second` prices the compressor.

    Raises DataError for a case without right answers, and what the predictor raises.
    """
    if without := [n for n, case in enumerate(cases, 1) if not case.answers]:
        raise DataError(f"Cases {without[:5]} have no answers to compare with.", hint='Give each "answers": ["..."].')
    hits, tokens, priced, free = [], [], [], []
    for n, (case, (made, *_)) in enumerate(zip(cases, summaries.made, strict=True)):
        progress(f"answer after {summaries.compressor}", n, len(cases))
        answer = await ask(predictor, model, made.text, case.question)
        usd, local_free = pricing(answer.usage)
        hits.append(right(answer.choices[0].text, case.answers))
        tokens.append(answer.usage.input_tokens)
        priced.append(usd + made.seconds * usd_per_second)
        free.append(local_free)
    return Trial(report, tuple(hits), tuple(tokens), tuple(priced), tuple(free))


async def ask(predictor: Backend, model: str, text: str, question: str) -> Completion:
    """The predictor's answer to `question` from `text`, at temperature 0."""
    message = {"role": "user", "content": "\n\n".join(filter(None, (_ASK, text, f"Question: {question}\nAnswer:")))}
    sampling = Sampling(temperature=0.0, max_tokens=ANSWER_TOKENS)
    body = {"model": model, "messages": [message], "temperature": 0.0, "max_tokens": ANSWER_TOKENS}
    return await answer_of(predictor, Request("chat", body, model, (message,), sampling=sampling))
