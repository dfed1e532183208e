"""`saga graph`: a definition as a drawing, and how far a saga got."""

from datetime import timedelta

from orchestrator import graph
from orchestrator.core.definition import WaitFor
from orchestrator.core.state import Phase
from orchestrator.testing import fails, given, rejects
from tests.core.builders import Retry, saga, step

DIAMOND = saga(
    step("a", after=()),
    step("b", after=("a",)),
    step("c", after=("a",)),
    step("d", after=("b", "c"), pivot=True, compensation=None),
    step("e", after=("d",), compensation=None, retry=Retry.forever()),
)


def test_plain_text_shows_what_can_run_at_the_same_time() -> None:
    """One level under the other; the pivot is named."""
    assert graph.ascii_art(DIAMOND.definition).splitlines() == [
        "○ a          service.a  undo: service.undo-a",
        "│",
        "├─○ b          service.b  undo: service.undo-b",
        "└─○ c          service.c  undo: service.undo-c",
        "│",
        "○ d (pivot)  service.d",
        "│",
        "○ e          service.e",
    ]


def test_what_a_step_comes_after_is_said_where_the_level_does_not_say_it() -> None:
    """Two branches of their own."""
    definition = saga(
        step("a", after=()), step("b", after=()), step("c", after=("a",)), step("d", after=("b",))
    ).definition
    lines = graph.ascii_art(definition).splitlines()
    assert lines[3].endswith("after a")
    assert lines[4].endswith("after b")


def test_a_saga_shows_how_far_it_got() -> None:
    """Marks in plain text, colours in the others."""
    bench = given(DIAMOND).step("c", rejects()).undo("b", fails(retryable=False)).run()
    drawn = graph.ascii_art(DIAMOND.definition, bench.state).splitlines()
    assert ["✔", "├─‼", "└─✘", "·", "·"] == [line.split()[0] for line in drawn if line != "│"]
    assert "undo failed, STUCK" in drawn[2]
    mermaid = graph.mermaid(DIAMOND.definition, bench.state)
    assert "style s1 fill:#ffcdd2" in mermaid
    assert 's1["b<br/>service.b<br/>undo: service.undo-b<br/>undo failed, STUCK"]' in mermaid
    assert 'fillcolor="#c8e6c9"' in graph.dot(DIAMOND.definition, bench.state)


def test_every_edge_is_drawn_once() -> None:
    """In both languages."""
    edges = {("s0", "s1"), ("s0", "s2"), ("s1", "s3"), ("s2", "s3"), ("s3", "s4")}
    for drawn, arrow in (
        (graph.mermaid(DIAMOND.definition), " --> "),
        (graph.dot(DIAMOND.definition), " -> "),
    ):
        found = [line.strip(" ;").split(arrow) for line in drawn.splitlines() if arrow in line]
        assert sorted(map(tuple, found)) == sorted(edges)


def test_what_a_label_cannot_hold_is_escaped() -> None:
    """Task names may hold anything."""
    strange = 'a"b<c>#d\\e'
    definition = saga(step("a", action=strange, compensation="u")).definition
    assert 's0["a<br/>a#34;b#60;c#62;#35;d\\e<br/>undo: u"]' in graph.mermaid(definition)
    assert r'label="a\na\"b<c>#d\\e\nundo: u"' in graph.dot(definition)


def test_a_wait_says_what_it_waits_for() -> None:
    """Instead of a task."""
    wait = step("a", action=WaitFor("ok"), compensation=None, timeout=timedelta(hours=1))
    assert "signal ok" in graph.ascii_art(saga(wait).definition)


def test_every_phase_has_a_mark_and_a_colour() -> None:
    """A new one needs them, too."""
    assert {*Phase} == {*graph.MARKS} == {*graph.COLOURS}
