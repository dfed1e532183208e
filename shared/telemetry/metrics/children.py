"""The metrics of a prefork worker's children, gathered in its main process.

Each child writes its snapshot to a file of its own, whole or not at all, when something has
changed, at most once a second, and at its end. The main process reads them when it is asked. When a
child has ended its totals are kept and its file is deleted, so that no counter ever goes back,
however often children are recycled. A child that is killed takes the last second with it.

Files, because they need neither a connection nor anybody who listens: a child never waits.
"""

import os
import tempfile
import threading
from pathlib import Path
from shutil import rmtree
from typing import Final

import msgspec

from shared.telemetry.metrics.cardinality import Cardinality
from shared.telemetry.metrics.snapshot import Series, Snapshot, lasting, merged

_SUFFIX: Final = ".json"


class ChildFile:
    """Where a child writes its snapshots.

    Args:
        folder: What its parent reads.
    """

    def __init__(self, folder: Path) -> None:
        # The pid says whether the child lives, the rest tells it from an earlier one of that pid.
        self._path = folder / f"{os.getpid()}-{os.urandom(4).hex()}{_SUFFIX}"
        self._new = self._path.with_suffix(".new")

    def write(self, snapshot: Snapshot) -> None:
        """Replace what was written before.

        Raises:
            OSError: It cannot be written.
        """
        self._new.write_bytes(msgspec.json.encode(snapshot))
        self._new.replace(self._path)


class Children:
    """What the children of this process have written.

    Args:
        label_values_max: Most values of a label of a metric that are kept apart, over all.
    """

    def __init__(self, label_values_max: int) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix=f"saga-metrics-{os.getpid()}-"))
        self._lock = threading.Lock()
        self._cardinality = Cardinality(label_values_max)
        self._ended = Snapshot(started_at=0.0)

    def gather(self, own: Snapshot) -> Snapshot:
        """This process and all of its children, those that have ended too, as one."""
        with self._lock:
            living = self._living()
            ended = [self._ended] if self._ended.families else []
            return merged([self._bounded(own), *ended, *living])

    def upkeep(self) -> None:
        """Take in what ended children have left, so that their files do not pile up."""
        with self._lock:
            self._living()

    def close(self) -> None:
        """Delete the files."""
        rmtree(self.folder, ignore_errors=True)

    def _living(self) -> list[Snapshot]:
        living, ended = [], []
        for path in sorted(self.folder.glob(f"*{_SUFFIX}")):
            # Asked before the file is read: what an ended child has written is its last word.
            alive = _is_alive(int(path.name.partition("-")[0]))
            try:
                snapshot = self._bounded(msgspec.json.decode(path.read_bytes(), type=Snapshot))
            except (OSError, msgspec.DecodeError):
                continue  # the folder was tidied up by somebody else
            if alive:
                living.append(snapshot)
            else:
                ended.append(lasting(snapshot))
                path.unlink(missing_ok=True)
        if ended:
            known = [self._ended] if self._ended.families else []
            self._ended = merged([*known, *ended])
        return living

    def _bounded(self, snapshot: Snapshot) -> Snapshot:
        """With few enough label values over all processes, not only in each."""
        families = [
            msgspec.structs.replace(
                family,
                series=[
                    Series(
                        self._cardinality.bounded(family.name, dict(one.labels)),
                        one.value,
                        one.buckets,
                        one.exemplars,
                    )
                    for one in family.series
                ],
            )
            for family in snapshot.families
        ]
        return msgspec.structs.replace(snapshot, families=families)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
