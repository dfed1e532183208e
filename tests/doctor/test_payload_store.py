"""A payload store is tried, and left as it was."""

from pathlib import Path

from orchestrator.doctor.findings import Code, Severity
from orchestrator.doctor.payload_store import check_payload_store
from shared.settings import Settings
from tests.doctor.conftest import bad

WRONG = Severity.WRONG


def test_a_payload_store_that_works_is_left_empty(tmp_path: Path) -> None:
    """What was tried is told; without one there is nothing to tell."""
    (tmp_path / "claims").mkdir()
    (finding,) = check_payload_store(Settings(claim_check_url=f"file://{tmp_path}/claims"))
    assert finding.severity is Severity.OK
    assert list((tmp_path / "claims").iterdir()) == []
    assert list(check_payload_store(Settings())) == []


def test_a_payload_store_that_does_not_work(tmp_path: Path) -> None:
    """The folder is not there; and nobody reads such a URL."""
    settings = Settings(claim_check_url=f"file://{tmp_path}/claims")
    assert bad(check_payload_store(settings)) == [(WRONG, Code.PAYLOAD_STORE)]
    assert bad(check_payload_store(Settings(claim_check_url="nope://x"))) == [
        (WRONG, Code.SETTING)
    ]
