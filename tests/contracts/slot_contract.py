"""What every store does about limits that sagas share."""

import threading
from datetime import timedelta

import msgspec
import pytest

from orchestrator.core.limits import Limit
from orchestrator.core.room import Slot
from orchestrator.core.state import Status
from orchestrator.ports import Change, Control, Crowd, Store
from tests.contracts.store_contract import T0, Opener, change, row, seconds

GATE = ("test", "charge")
HOLDS = Slot(step="charge", run="charge")
WAITS = Slot(step="charge", run="charge", waiting=True)
TWO = {GATE: Limit(in_flight=2)}


def with_slots(made: Change, *slots: Slot, begun: int | None = None) -> Change:
    """A change with all the slots that its saga has after it."""
    new = sum(not slot.waiting for slot in slots) if begun is None else begun
    shares = {"charge": new} if new else {}
    return msgspec.structs.replace(made, slots=slots, begun=shares)


def takes(saga_id: str, second: float = 0) -> Change:
    """A saga begins and takes a slot."""
    at = T0 + seconds(second)
    return with_slots(change(row(saga_id, started_at=at, updated_at=at)), HOLDS)


def waits(saga_id: str, second: float = 0, *, backward: bool = False) -> Change:
    """A saga begins and waits for a slot."""
    at = T0 + seconds(second)
    made = row(saga_id, started_at=at, updated_at=at, backward=backward)
    return with_slots(change(made), WAITS)


class SlotContract:
    """Of every store; a subclass gives the fixture `opener`."""

    def test_no_more_slots_are_taken_than_a_limit_allows(self, opener: Opener) -> None:
        """Nothing of the change is committed, and a slot that was given back is free."""
        store = opener()
        assert store.commit([takes("a"), takes("b"), takes("c")], gates=TWO) == {"c"}
        assert opener().commit([takes("d")], gates=TWO) == {"d"}
        assert store.load(["c", "d"]) == {}
        assert store.crowds([GATE], 10)[GATE].in_flight == 2
        done = row("a", 2, status=Status.COMPLETED)
        assert store.commit([with_slots(change(done))], gates=TWO) == frozenset()
        assert opener().commit([takes("d")], gates=TWO) == frozenset()
        assert store.crowds([GATE], 10)[GATE].in_flight == 2

    def test_one_that_cannot_be_read_waits_no_more_and_keeps_what_it_holds(
        self, opener: Opener
    ) -> None:
        """Who comes after it is the next one."""
        store = opener()
        store.commit([takes("a"), takes("b"), waits("c", 1), waits("d", 2)], gates=TWO)
        store.postpone(["a", "c"], T0 + seconds(60))
        crowd = opener().crowds([GATE], 10)[GATE]
        assert (crowd.in_flight, [one[2] for one in crowd.waiting]) == (2, ["d"])

    def test_a_slot_is_given_and_taken_in_one_transaction(self, opener: Opener) -> None:
        """Whatever their order; a saga that goes from one attempt to the next needs no other."""
        store = opener()
        store.commit([takes("a"), takes("b")], gates=TWO)
        ended = with_slots(change(row("a", 2, status=Status.COMPLETED)))
        again = with_slots(change(row("b", 2)), HOLDS)
        assert store.commit([takes("c"), again, ended], gates=TWO) == frozenset()
        assert store.crowds([GATE], 10)[GATE].in_flight == 2

    def test_a_change_that_is_out_of_date_gives_nothing_back(self, opener: Opener) -> None:
        """Its slots are those of its saga as it is stored."""
        store = opener()
        store.commit([takes("a"), takes("b")], gates=TWO)
        stale = with_slots(change(row("a", 7)))
        assert store.commit([stale, takes("c")], gates=TWO) == {"a", "c"}

    def test_what_waits_is_in_order(self, opener: Opener) -> None:
        """First what undoes, then the oldest saga; it takes nothing."""
        store = opener()
        one = {GATE: Limit(in_flight=1)}
        made = [waits("y", 2), waits("o", 1), waits("u", 3, backward=True), waits("a", 2)]
        assert store.commit([*made, takes("t")], gates=one) == frozenset()
        crowd = opener().crowds([GATE, ("test", "")], 3)
        assert [saga_id for _, _, saga_id in crowd[GATE].waiting] == ["u", "o", "a"]
        assert crowd[GATE].waiting[0] == (0, T0 + seconds(3), "u")
        assert (crowd[GATE].in_flight, crowd[GATE].known) == (1, True)
        assert crowd["test", ""] == Crowd(known=False)
        assert store.crowds([], 3) == {}

    def test_a_survey_counts_what_waits_and_names_what_is_paused(self, opener: Opener) -> None:
        """At every gate that somebody has come to, or that an operator has made."""
        store = opener()
        one = {GATE: Limit(in_flight=1)}
        store.commit([waits("y", 2), waits("o", 1), takes("t")], gates=one)
        said = Control(name="test", limit=Limit(in_flight=3), reason="r", at=T0)
        store.put_control(said)
        store.put_control(Control(name="other", reason="r", at=T0))
        found = opener().survey(T0)
        assert found.awaiting_room == {GATE: 2, ("test", ""): 0}
        assert found.paused == {"other"}

    def test_no_more_begin_than_a_rate_allows(self, opener: Opener) -> None:
        """From any moment on, in a time as long as that of the rate; and nearly as many."""
        store = opener()
        rate = {GATE: Limit(rate="10/s")}
        begun = []
        for tick in range(60):
            second = tick / 25
            made = [takes(f"{tick}-{number}", second) for number in range(3)]
            lost = store.commit(made, gates=rate)
            begun += [second] * (3 - len(lost))
        for first in begun:
            assert sum(first <= second < first + 1 for second in begun) <= 10
        assert len(begun) >= 2.4 * 9

    def test_what_ends_is_not_held_up_by_a_limit_that_was_lowered(self, opener: Opener) -> None:
        """Nor is what neither begins nor ends; but nothing begins until there is room again."""
        store = opener()
        store.commit([takes("a"), takes("b")], gates=TWO)
        one = {GATE: Limit(in_flight=1)}
        kept = with_slots(change(row("a", 2)), HOLDS, begun=0)
        again = with_slots(change(row("b", 2)), HOLDS)
        assert store.commit([kept, again], gates=one) == {"b"}
        ended = with_slots(change(row("a", 3)))
        assert store.commit([ended, again], gates=one) == frozenset()

    def test_slots_stay_where_nothing_is_said_of_them(self, opener: Opener) -> None:
        """A heartbeat changes the row, and not what its saga holds."""
        store = opener()
        store.commit([takes("a")], gates=TWO)
        store.commit([change(row("a", 2))])
        assert store.crowds([GATE], 1)[GATE].in_flight == 1

    def test_slots_of_another_state_are_found(self, opener: Opener) -> None:
        """And those at no gate that is known; those of sagas that are gone are deleted."""
        store = opener()
        store.commit([takes("a"), takes("b"), takes("c")], gates={})
        store.commit([change(row("a", 2))])
        assert store.stray_slots([GATE], 10) == ["a"]
        assert store.stray_slots([], 10) == ["a", "b", "c"]
        store.commit([change(row("c", 2, status=Status.COMPLETED))])
        store.delete(["c"])
        assert store.stray_slots([GATE], 10) == ["a"]
        assert store.crowds([GATE], 1)[GATE].in_flight == 2

    def test_controls_are_kept_until_they_are_taken_back(self, opener: Opener) -> None:
        """A limit and a pause of one name stand side by side; a new one replaces the old one."""
        store = opener()
        limit = Control(name="n", step="s", limit=Limit(in_flight=3), reason="r", by="ada", at=T0)
        pause = Control(name="n", reason="Zürich", by="ada", at=T0 + timedelta(microseconds=1))
        newer = msgspec.structs.replace(limit, limit=Limit(rate="5/m"))
        for control in (limit, pause, newer):
            store.put_control(control)
        assert opener().controls() == [pause, newer]
        assert store.drop_control("n", "s", "limit") == newer
        assert store.drop_control("n", "s", "limit") is None
        assert opener().controls() == [pause]

    @pytest.mark.timeout(60)
    def test_no_more_are_taken_by_many_at_once(self, opener: Opener) -> None:
        """Each has its own connections, and all want the same slots; whoever loses tries again."""
        three = {GATE: Limit(in_flight=3)}
        seen: list[int] = []
        stores: list[Store] = [opener() for _ in range(4)]

        def work(number: int, store: Store) -> None:
            for turn in range(6):
                saga_id = f"{number}-{turn}"
                while store.commit([takes(saga_id)], gates=three):
                    pass
                seen.append(store.crowds([GATE], 1)[GATE].in_flight)
                ended = row(saga_id, 2, status=Status.COMPLETED)
                store.commit([with_slots(change(ended))], gates=three)

        threads = [threading.Thread(target=work, args=each) for each in enumerate(stores)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(seen) == 24
        assert max(seen) <= 3
        assert stores[0].crowds([GATE], 1)[GATE].in_flight == 0
