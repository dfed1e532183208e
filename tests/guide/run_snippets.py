"""Runs the Python of documents, each in a process of its own: `python -m tests.guide.run_snippets FILE…`.

A document may set up logging, traces and Celery apps for its whole process. What all of them import
is imported once, and each then runs in a fork.
"""

import os
import sys
import traceback
from pathlib import Path
from types import ModuleType

from tests.guide.markdown import name_of, snippets

NAMESPACE = "snippets"
_PRELOADED = ("celery", "sqlalchemy", "orchestrator.bootstrap", "workers.sdk")


def run(document: Path) -> None:
    """Run every snippet of a document; raises what the first failing one raises."""
    module = ModuleType(NAMESPACE)
    sys.modules[NAMESPACE] = module  # a class in a snippet asks for the module that it stands in
    name = name_of(document)
    for block in snippets(document.read_text()):
        # Blank lines in front, so that a traceback gives the line of the document.
        code = compile("\n" * (block.line - 1) + block.code, name, "exec")
        if not block.note.startswith("not-run"):
            exec(code, vars(module))


def _run_in_fork(document: Path, folder: Path) -> int:
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    code = 1
    try:
        folder.mkdir()
        os.chdir(folder)
        run(document)
        code = 0
    except BaseException:  # noqa: BLE001 - whatever it is, it is told, and the next one runs
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def main(documents: list[str]) -> None:
    """Run documents; a line ``exit CODE FILE`` follows what each has written."""
    for module in _PRELOADED:
        __import__(module)
    for number, document in enumerate(documents):
        code = _run_in_fork(Path(document), Path.cwd() / str(number))
        print(f"\nexit {code} {document}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
