"""A test, readable at any time, of the mean difference between two arms, from outcomes between 0 and 1.

Bets on a quantity whose mean is at most 0 under the hypothesis gain nothing on average, so P(capital ever reaches 1/a)
<= a (Ville; Waudby-Smith and Ramdas, arXiv 2010.09686; Ramdas et al., arXiv 2210.01948). Pure.

Of a call that both arms answered the quantity is Z = (sign / observed) (canary - incumbent + margin), where `observed`
is the probability with which its outcomes became known. Of a call that a draw gave to one arm, canary - incumbent is
(y - m) / share for the canary and -(y - m) / (1 - share) for the incumbent, with a forecast m of the incumbent's
outcome: whatever m is, the mean over the draw is that of the pair (Robins, Rotnitzky and Zhao 1994), while the spread
is that of y - m. So nothing is assumed of how rates change over time, as long as they change for both arms alike, and a
forecast that is off costs power only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

_MEMORY = 0.998
_OPEN = 48
_MOST_LOST = 0.6
_LEAST_KEPT = 0.1
_LEAST_VARIANCE = 0.02
_PAIRS = (0.2, 10.0)
_CAPITAL = (1e-250, 1e250)


@dataclass(slots=True)
class _Episode:
    """What was fixed when the episode began: its `kind` ("pair" or an arm), the canary's share, the forecast, and by
    size the bet per unit of Z and how many calls it can bear; and what came since: calls, and by size the sum of Z."""

    kind: str
    share: float
    forecast: float
    bets: list[float]
    bears: list[int]
    totals: list[float]
    calls: int = 0


class Bets:
    """A mixture of bets of several sizes against one hypothesis: with sign 1 that canary - incumbent <= -margin, with
    sign -1 that it is >= 0 (margin 0).

    Calls of one episode share their arm and often their fate, so their Z add up within one factor 1 + bet x sum, and
    only factors of different episodes multiply. Read within an episode, the capital keeps its promise where the rest of
    an episode is not better than the forecast after a bad call: where outcomes within it do not oppose each other.
    A bet counts as many of an episode's calls as could not lose more than nine tenths, whatever they turn out to be.
    The `_OPEN` latest episodes are remembered; one that comes back after that counts as another.
    """

    def __init__(
        self,
        *,
        sign: Literal[1, -1],
        margin: float,
        sizes: tuple[tuple[float, float], ...],
        prior: float,
        prior_n: float,
        least: tuple[float, float],
    ) -> None:
        """`sizes`: (the mean of Z that a bet is best for, its weight), weights summing to 1; `prior`: the incumbent's
        rate, as if seen `prior_n` times; `least`: the least probability of a label, for canary and incumbent."""
        if not math.isclose(sum(weight for _, weight in sizes), 1):
            raise ValueError(f"sizes {sizes!r}: allowed are weights that sum to 1")
        self._sign, self._margin, self._sizes, self._least = sign, margin, sizes, least
        self._sum, self._n = prior * min(prior_n, 1 / (1 - _MEMORY)), min(prior_n, 1 / (1 - _MEMORY))
        self._squares, self._pairs = _PAIRS[0] * _PAIRS[1], _PAIRS[1]
        self._capitals = [1.0 for _ in sizes]
        self._open: dict[str, _Episode] = {}

    @property
    def capital(self) -> float:
        """What 1 has become."""
        return sum(weight * capital for capital, (_, weight) in zip(self._capitals, self._sizes, strict=True))

    def take(self, episode: str, canary: float | None, incumbent: float | None, share: float, observed: float) -> None:
        """Take in one call: the outcomes, in [0, 1], of the arms that answered, the canary's share, and the probability
        with which the outcome was observed. A call of an episode that began in another arm counts for nothing; a call
        of no episode ("") is one of its own.

        Raises ValueError for a share that gives the arm no chance, or a probability below the least one.
        """
        kind = "pair" if canary is not None and incumbent is not None else "incumbent" if canary is None else "canary"
        least = {"pair": min(self._least), "canary": self._least[0], "incumbent": self._least[1]}[kind]
        if kind != "pair" and not 0 < share < 1:
            raise ValueError(f"share {share!r}: allowed is a number between 0 and 1, without both")
        if not least <= observed <= 1:
            raise ValueError(f"observed {observed!r}: allowed is a probability from {least!r} to 1")
        known = self._open.pop(episode, None) or self._begun(kind, share)
        if episode:
            self._open[episode] = known
        if len(self._open) > _OPEN:
            del self._open[next(iter(self._open))]
        if known.kind == kind:
            self._bet(known, self._z(known, canary, incumbent) / observed)
        self._learn(canary, incumbent)

    def _begun(self, kind: str, share: float) -> _Episode:
        forecast = min(max(self._sum / self._n, 0.02), 0.98)
        if kind == "pair":
            least = min(self._least)
            scale, worst = least * self._pairs / self._squares, 1 / least
        else:
            by_canary, by_incumbent = 1 / (share * self._least[0]), 1 / ((1 - share) * self._least[1])
            scale = 1 / (max(forecast * (1 - forecast), _LEAST_VARIANCE) * (by_canary + by_incumbent))
            up = max((1 - forecast) * by_canary, forecast * by_incumbent)
            down = max(forecast * by_canary, (1 - forecast) * by_incumbent)
            worst = up if self._sign < 0 else down
        bets = [min(size * scale, _MOST_LOST / worst) for size, _ in self._sizes]
        bears = [int((1 - _LEAST_KEPT) / (bet * worst)) for bet in bets]
        return _Episode(kind, share, forecast, bets, bears, [0.0 for _ in bets])

    def _z(self, known: _Episode, canary: float | None, incumbent: float | None) -> float:
        """Z x observed."""
        if canary is not None and incumbent is not None:
            difference = canary - incumbent
        elif canary is not None:
            difference = (canary - known.forecast) / known.share
        else:
            assert incumbent is not None
            difference = -(incumbent - known.forecast) / (1 - known.share)
        return self._sign * (difference + self._margin)

    def _bet(self, known: _Episode, z: float) -> None:
        least, most = _CAPITAL
        for i, (bet, bears, total) in enumerate(zip(known.bets, known.bears, known.totals, strict=True)):
            if known.calls < bears:
                capital = self._capitals[i] * (1 + bet * (total + z)) / (1 + bet * total)
                self._capitals[i] = min(max(capital, least), most)
                known.totals[i] = total + z
        known.calls += 1

    def _learn(self, canary: float | None, incumbent: float | None) -> None:
        if incumbent is None:
            return
        self._sum, self._n = self._sum * _MEMORY + incumbent, self._n * _MEMORY + 1
        if canary is not None:
            self._squares = self._squares * _MEMORY + (canary - incumbent) ** 2
            self._pairs = self._pairs * _MEMORY + 1

    def state(self) -> dict[str, Any]:
        """All that `take` has changed, for JSON."""
        fields = _Episode.__dataclass_fields__
        return {
            "sums": [self._sum, self._n, self._squares, self._pairs],
            "capitals": list(self._capitals),
            "open": [[key, *(getattr(e, name) for name in fields)] for key, e in self._open.items()],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave. Raises ValueError when that is of other bets."""
        if len(state["capitals"]) != len(self._sizes):
            raise ValueError(f"{len(state['capitals'])} bets: allowed are {len(self._sizes)}")
        self._sum, self._n, self._squares, self._pairs = state["sums"]
        self._capitals = list(state["capitals"])
        self._open = {key: _Episode(*rest) for key, *rest in state["open"]}
