"""Where far more is asked for than can be served within the targets, part of it is served well.

Without a bound all that comes joins the batches of the workers, steps become longer for everybody, and
nobody's target of time a token is kept; tokens a second hardly rise. So a worker then takes only as many
sequences as its step model says fit the target, and the rest waits in the queue, which knows whom to prefer.

    came    GPU seconds of outputs that are asked for of a worker, fixed costs of steps not counted
    debt    += came - passed, within [0, FULL]         what no batch, however large, could have kept up with
    n       a + n·(b + e) + d·n·context <= target      sequences of the mean context there

Workers are paced from when the debt is full until it is gone: short of that all are better served a little
slower. The target is never less than a / (1 - YIELD): where a worker yields that part of the tokens a second
that it ever can.
"""

from __future__ import annotations

from math import inf

from services.router.policy.classify import LatencyClass
from services.router.policy.preemption import Seat
from services.router.policy.speed import StepModel
from services.router.policy.ticket import Cost, Ticket
from services.router.policy.worker import WorkerView

YIELD = 0.8
FULL_S = 4.0
"""GPU seconds of a worker: more than bursts of a load that can be served come to."""
_LOOK_S = 0.1
_LONGEST_S = 600.0


class Pace:
    """Counts what one model's foreground requests ask for, and what those on workers have them read."""

    def __init__(self) -> None:
        self.debt_s = 0.0
        self.target_s: float | None = None
        """Of steps, while workers are paced."""
        self._came_s = 0.0
        self._contexts: dict[str, tuple[int, float]] = {}
        self._classes = dict.fromkeys(LatencyClass, 0)
        self._looked_s = -inf

    def came(self, ticket: Ticket, model: StepModel) -> None:
        """A request was asked for."""
        if ticket.foreground:
            prompt, output = ticket.prefill_tokens, ticket.expected_output
            token_s = model.b + model.e + (prompt + output / 2) * model.d
            self._came_s += min(output * token_s, _LONGEST_S)

    def seated(self, seat: Seat, sign: int = 1) -> None:
        """It is on a worker (1), or there no more (-1)."""
        ticket = seat.ticket
        if not ticket.foreground:
            return
        requests, tokens = self._contexts.get(seat.worker, (0, 0.0))
        tokens += sign * (ticket.prefill_tokens + ticket.expected_output / 2)
        self._contexts[seat.worker] = (requests + sign, tokens)
        if not requests + sign:
            del self._contexts[seat.worker]
        self._classes[ticket.latency_class] += sign

    def due(self, now: float) -> bool:
        """Whether it is time to `look`."""
        return not self._looked_s <= now < self._looked_s + _LOOK_S

    @property
    def tightest(self) -> LatencyClass | None:
        """The most urgent class that has a request on a worker."""
        return next((each for each in LatencyClass if self._classes[each]), None)

    def look(
        self, now: float, target_s: float | None, model: StepModel, workers: int, sequences: float
    ) -> None:
        """Decides whether workers are paced.

        Args:
            target_s: of a token, of the tightest class; None: there is none.
            model: of the worker in the pool's middle.
            sequences: foreground requests on all workers, those of other routers among them.
        """
        self._owe(now, workers, sequences)
        if target_s is None or not workers or not self.debt_s:
            self.target_s = None
        elif self.target_s is not None or self.debt_s >= FULL_S:
            self.target_s = max(target_s, model.a / (1.0 - YIELD))

    def hold(self, view: WorkerView, model: StepModel) -> None:
        """While workers are paced, leaves one credit for so many foreground sequences as fit the target."""
        if self.target_s is None:
            return
        credit = view.credit_for(True)
        left = self._most(view.key, model, self.target_s) - (view.sequences - view.batch_sequences)
        if left < credit.sequences:
            view.foreground_credit = Cost(credit.prefill_tokens, max(0, left), credit.kv_blocks)

    def _owe(self, now: float, workers: int, sequences: float) -> None:
        """Adds what came since the last look, and takes off the time that passed."""
        own = sum(self._classes.values())
        routers = max(1.0, sequences / own) if own else 1.0
        passed_s = max(0.0, now - self._looked_s)
        came_s = routers * self._came_s / max(workers, 1)
        self.debt_s = min(max(self.debt_s + came_s - passed_s, 0.0), FULL_S)
        self._came_s, self._looked_s = 0.0, now

    def _most(self, worker: str, model: StepModel, target_s: float) -> int:
        """Sequences of the mean context there whose steps keep the target."""
        requests, tokens = self._contexts.get(worker, (0, 0.0))
        each_s = model.b + model.e + (tokens / requests if requests else 0.0) * model.d
        return max(1, int((target_s - model.a) / each_s)) if each_s > 0.0 else 1 << 30
