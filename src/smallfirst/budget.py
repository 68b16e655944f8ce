"""What one call may still spend, in USD and seconds. Pure; the ledger of a key's spending is `store`'s."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class Allowance:
    """The limits of one call and what it has spent; None means unlimited.

    `started` and every `now` are readings in seconds of the same monotonic clock.
    """

    started: float
    usd: float | None = None
    seconds: float | None = None
    spent_usd: float = field(default=0.0, init=False)

    def allows(self, usd: float | None, now: float) -> bool:
        """Whether a stage that should cost `usd` (None: unknown, so never within a limit) may start at `now`."""
        in_money = self.usd is None or (usd is not None and self.spent_usd + usd <= self.usd)
        return in_money and (self.seconds is None or now - self.started < self.seconds)

    def left_s(self, now: float, at_most: float) -> float:
        """Seconds that a stage starting at `now` may take."""
        return at_most if self.seconds is None else min(at_most, self.seconds - (now - self.started))

    def spend(self, usd: float) -> None:
        """Settle what an attempt really cost."""
        self.spent_usd += usd
