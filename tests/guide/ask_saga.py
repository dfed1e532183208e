"""The `saga` of a shell that `sessions` has started: hands a command line over, and writes what came of it."""

import json
import os
import socket
import sys

with socket.socket(fileno=int(os.environ["SESSION_FD"])) as line, line.makefile("rw") as file:
    asked = {"arguments": sys.argv[1:], "cwd": os.path.realpath("."), "env": dict(os.environ)}
    file.write(json.dumps(asked) + "\n")
    file.flush()
    code, out, err = json.loads(file.readline())
sys.stdout.write(out)
sys.stdout.flush()
sys.stderr.write(err)
sys.exit(code)
