"""The programs of this directory as processes, for the self-tests."""

import json
import queue
import subprocess
import sys
import threading
from pathlib import Path

HERE = Path(__file__).parent
PATIENCE = 60  # seconds for a line or an exit: far more than any takes


class Program:
    """A running program whose lines of JSON are read as they come."""

    def __init__(self, name, *arguments, server=False):
        command = [sys.executable, str(HERE / name), *map(str, arguments)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.lines, self.read = queue.Queue(), []
        threading.Thread(target=self._read, daemon=True).start()
        self.address = self.lines.get(timeout=PATIENCE).removeprefix("listening on ").strip() if server else None

    def _read(self):
        for line in self.process.stdout:
            self.lines.put(line)
        self.lines.put("")

    def next(self, **wanted):
        """The next line that has these members."""
        while line := self.lines.get(timeout=PATIENCE):
            if line.startswith("{"):
                said = json.loads(line)
                self.read.append(said)
                if all(said.get(name) == value for name, value in wanted.items()):
                    return said
        raise AssertionError(f"no line with {wanted} in {self.read}; {self.process.stderr.read()}")

    def line(self):
        """The next line as it is."""
        return self.lines.get(timeout=PATIENCE).strip()

    def ask(self):
        """One line on its standard input."""
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def end(self):
        """Its exit status, after its standard input was closed."""
        self.process.stdin.close()
        return self.process.wait(timeout=PATIENCE)

    def stop(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(timeout=PATIENCE)
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            stream.close()
