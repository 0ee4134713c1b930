"""A viewer: a process that really reads one file through the mount, at a stream's pace or as fast as it can.

``python -m tests.demo.viewer MOUNTPOINT PATH SIZE [--bytes-per-s N]``, started by ``viewing``. It says how it goes in
JSON lines on standard output, and compares every byte with what the sample library says it should be.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import asdict, dataclass, field

from tests.demo.viewing import Report
from tests.standin.library import SampleFile

CHUNK_BYTES = 256 << 10
REPORT_EVERY_S = 0.2
STATE = "user.cachefs.state"


@dataclass(slots=True)
class Viewing:
    """One file being watched."""

    fd: int
    file: SampleFile
    began: float
    position: int = 0
    first_byte_s: float | None = None
    wrong_bytes: int = 0
    took_s: float = 0.0
    reported_at: float = 0.0
    unchecked: list[tuple[int, bytes]] = field(default_factory=list)

    def read_on(self) -> bool:
        """One chunk; False at the end of the file."""
        data = os.pread(self.fd, CHUNK_BYTES, self.position)
        self.took_s = time.monotonic() - self.began
        if self.first_byte_s is None:
            self.first_byte_s = self.took_s
        self.unchecked.append((self.position, data))
        self.position += len(data)
        return bool(data)

    def check(self) -> None:
        """Compare what was read since the last check."""
        for position, data in self.unchecked:
            right = self.file.content(position, position + len(data))
            self.wrong_bytes += 0 if data == right else len(data)
        self.unchecked.clear()

    def report(self, ended: bool) -> None:
        state = os.getxattr(self.fd, STATE).decode()
        report = Report(self.position, self.first_byte_s, self.wrong_bytes, state, self.took_s, ended)
        os.write(1, json.dumps(asdict(report)).encode() + b"\n")
        self.reported_at = time.monotonic()


def watch(path: str, file: SampleFile, bytes_per_s: float | None) -> None:
    """Read the whole file. At a pace, checks and reports go on meanwhile; otherwise they wait, not to be measured."""
    began = time.monotonic()
    viewing = Viewing(os.open(path, os.O_RDONLY), file, began)
    while viewing.read_on():
        if bytes_per_s is None:
            continue
        viewing.check()
        if time.monotonic() - viewing.reported_at > REPORT_EVERY_S:
            viewing.report(ended=False)
        due = began + (viewing.first_byte_s or 0.0) + viewing.position / bytes_per_s
        time.sleep(max(0.0, due - time.monotonic()))
    viewing.check()
    viewing.report(ended=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="read one sample file through a mount, and check it")
    parser.add_argument("mountpoint")
    parser.add_argument("path")
    parser.add_argument("size", type=int)
    parser.add_argument("--bytes-per-s", type=float)
    given = parser.parse_args()
    watch(os.path.join(given.mountpoint, given.path), SampleFile(given.path, given.size), given.bytes_per_s)


if __name__ == "__main__":
    main()
