"""Actors on a virtual clock: one runs at a time, and each decides alone where it lets go.

An actor is ordinary, blocking code in a greenlet, so that the engine and the coordinator run as
they are. It lets go in `Scheduler.sleep` and `Scheduler.park`, and only there can another actor
run, or can it be killed: whatever is not durable by then is lost with it.
"""

import heapq
from collections.abc import Callable
from typing import Any

import greenlet

STEPS_MAX = 200_000


class Killed(BaseException):
    """The process of this actor is gone; raised where it had let go, or where it stands."""


class Endless(AssertionError):
    """The simulation does not come to an end."""


class Actor:
    """Something that runs.

    Attributes:
        name: For the trace.
        owner: Whose it is.
        error: What ended it, if that was neither its own end nor a kill.
        ticket: Of the last call that wakes it; those before it do not any more.
        doomed: It is to end where it stands.
        ended: It will not run again.
        greenlet: Runs it; None until it has begun.
    """

    def __init__(self, name: str, body: Callable[[], None], owner: Any) -> None:
        self.name = name
        self.owner = owner
        self.error: BaseException | None = None
        self.ticket = 0
        self.doomed = False
        self.ended = False
        self.greenlet: greenlet.greenlet | None = None
        self._body = body

    def run(self) -> None:
        """Run it to its end; called in a greenlet."""
        try:
            self._body()
        except Killed:
            pass
        except BaseException as error:  # noqa: BLE001 - shown by the simulation as its finding
            self.error = error
        self.ended = True


class Scheduler:
    """The clock, and who is next.

    Attributes:
        now: Seconds since the simulation began.
        current: The actor that runs; None between two of them.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self.current: Actor | None = None
        self._hub = greenlet.getcurrent()
        self._idle: list[greenlet.greenlet] = []
        self._entries: list[tuple[float, int, Actor | Callable[[], None], int]] = []
        self._actors: list[Actor] = []
        self._number = 0
        self._steps = 0

    def spawn(
        self, name: str, body: Callable[[], None], *, owner: Any, after: float = 0.0
    ) -> Actor:
        """Let something run, from some seconds on."""
        actor = Actor(name, body, owner)
        self._push(after, actor, actor.ticket)
        self._actors.append(actor)
        return actor

    def later(self, seconds: float, action: Callable[[], None]) -> None:
        """Call a function that does not let go."""
        self._push(seconds, action, 0)

    def sleep(self, seconds: float) -> None:
        """Let the others run for so long."""
        actor = self._running()
        if actor.doomed:
            raise Killed
        self.wake(actor, seconds)
        self._hub.switch()

    def park(self, seconds: float | None = None) -> None:
        """Let the others run until somebody calls `wake`, or so long at most."""
        actor = self._running()
        if actor.doomed:
            raise Killed
        if seconds is None:
            actor.ticket += 1
        else:
            self.wake(actor, seconds)
        self._hub.switch()

    def wake(self, actor: Actor, after: float = 0.0) -> None:
        """Let a parked actor go on."""
        ticket = actor.ticket = actor.ticket + 1
        number = self._number = self._number + 1
        heapq.heappush(self._entries, (self.now + after, number, actor, ticket))

    def kill(self, actor: Actor) -> None:
        """End an actor where it stands; one that runs ends where it next lets go, or calls us."""
        actor.doomed = True
        if actor is not self.current and not actor.ended:
            self.wake(actor)

    def kill_current(self) -> None:
        """End the actor that runs."""
        self._running().doomed = True
        raise Killed

    @property
    def idle(self) -> bool:
        """Whether nothing will ever happen."""
        return not self._entries

    def step(self) -> None:
        """Let the next actor run until it lets go.

        Raises:
            Endless: It has been too many steps.
        """
        self._steps += 1
        if self._steps > STEPS_MAX:
            raise Endless(f"it goes on after {STEPS_MAX} steps, at {self.now:.1f} s")
        at, _, what, ticket = heapq.heappop(self._entries)
        self.now = max(self.now, at)
        if not isinstance(what, Actor):
            what()
        elif ticket == what.ticket and not what.ended:
            self.current = what
            if what.doomed:
                self._end(what, Killed)
            elif what.greenlet is None:
                # One that has ended another actor is used again: to make one takes ten times as
                # long as to switch to it.
                what.greenlet = self._idle.pop() if self._idle else self._new_greenlet()
                what.greenlet.switch(what)
            else:
                what.greenlet.switch()
            self.current = None
            if what.error is not None:
                raise what.error

    def close(self) -> None:
        """End whatever has not ended."""
        for actor in self._actors:
            while not actor.ended:
                self.current, actor.doomed = actor, True
                self._end(actor, greenlet.GreenletExit)
        self.current = None
        for idle in self._idle:
            idle.throw(greenlet.GreenletExit)
        self._idle.clear()
        self._actors.clear()
        self._entries.clear()

    def _end(self, actor: Actor, reason: type[BaseException]) -> None:
        if actor.greenlet is None:
            actor.ended = True
        else:
            actor.greenlet.throw(reason)

    def _new_greenlet(self) -> greenlet.greenlet:
        def run(actor: Actor) -> None:
            while True:
                actor.run()
                self._idle.append(greenlet.getcurrent())
                actor = self._hub.switch()

        return greenlet.greenlet(run, self._hub)

    def _push(self, after: float, what: "Actor | Callable[[], None]", ticket: int) -> None:
        self._number += 1
        heapq.heappush(self._entries, (self.now + after, self._number, what, ticket))

    def _running(self) -> Actor:
        assert self.current is not None, "only an actor can let go"
        return self.current
