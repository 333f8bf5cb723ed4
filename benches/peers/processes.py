"""Processes that end with their block, and what they use."""

import contextlib
import os
import socket
import subprocess
import tempfile
import time

PATIENCE = 60
LOOK_AGAIN = 0.05
TICKS = os.sysconf("SC_CLK_TCK")


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


def wait_until(is_true, patience=PATIENCE):
    """True once `is_true` is, and false if that takes too long."""
    deadline = time.monotonic() + patience
    while not is_true():
        if time.monotonic() > deadline:
            return False
        time.sleep(LOOK_AGAIN)
    return True


class Process:
    """A server on a port of the loopback, in a folder of its own. It ends with the block."""

    def __init__(self, command, port, folder):
        self.command, self.port, self.folder = [str(part) for part in command], port, folder

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.end()

    def start(self):
        with open(os.path.join(self.folder, "log"), "ab") as log:
            self.child = subprocess.Popen(self.command, cwd=self.folder, stdout=log, stderr=log)
        if not wait_until(lambda: self.child.poll() is not None or self.is_open()) or not self.is_open():
            self.end()
            with open(os.path.join(self.folder, "log"), encoding="utf-8", errors="replace") as log:
                raise SystemExit(f"{self.command[0]} does not start:\n{log.read()}")

    def is_open(self):
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
            return True
        return False

    def kill(self):
        """Ends it at once, with its children: nginx has workers."""
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, 9)
        self.child.wait()

    def end(self):
        self.kill()

    def pids(self):
        found = [self.child.pid]
        for pid in found:
            with contextlib.suppress(OSError), open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
                found += [int(child) for child in file.read().split()]
        return found

    def cpu_s(self):
        """Seconds of processor time, user and system."""
        total = 0
        for pid in self.pids():
            with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
                fields = file.read().rsplit(")", 1)[1].split()
            total += int(fields[11]) + int(fields[12])
        return total / TICKS

    def memory_kib(self):
        """Resident memory; a page that processes share counts once."""
        total = 0
        for pid in self.pids():
            with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
                total += sum(int(line.split()[1]) for line in file if line.startswith("Pss:"))
        return total


def folder():
    return tempfile.TemporaryDirectory(prefix="rejoin-peers-")


class Redis(Process):
    """A Redis that saves nothing."""

    def __init__(self, folder):
        port = free_port()
        command = ["redis-server", "--port", port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        super().__init__(command, port, folder)

    @property
    def url(self):
        return f"redis://127.0.0.1:{self.port}"
