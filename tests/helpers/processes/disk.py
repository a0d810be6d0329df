"""A trainer on a disk that is full and read-only for a while: disk.py FOLDER prints what it said as JSON.

The disk is a file system in memory of 24 MB, of which a checkpoint takes 4. To be run where mounts are its own, by
`unshare --mount`; ends with 77 where none is allowed. FOLDER/kept is a copy of the run in the end, and FOLDER/straight
a run of as many steps on a disk that has room.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

EXPERIMENT = str(Path(__file__).with_name("soak.py"))
MB = 2**20


class Trainer:
    """`jaxdiff train` in a process of its own, killed for certain in the end."""

    def __init__(self, workdir, log, steps=10**6, pause=0.02):
        self.workdir, self.log, self.begun = workdir, log, log.stat().st_size if log.exists() else 0
        own = {"XLA_FLAGS": "--xla_force_host_platform_device_count=1", "JAX_PLATFORMS": "cpu"}
        own |= {"JAX_ENABLE_COMPILATION_CACHE": "false", "PYTHONUNBUFFERED": "1", "SOAK_PAUSE": str(pause)}
        command = [sys.executable, "-m", "jaxdiff", "train", EXPERIMENT, "--workdir", str(workdir)]
        with log.open("a") as file:
            self.process = subprocess.Popen(
                [*command, "--steps", str(steps), "--save-every", "20"], env=os.environ | own, stdout=file, stderr=file
            )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()

    def said(self):
        return self.log.read_text()[self.begun :]

    def steps(self):
        folder = self.workdir / "checkpoints"
        return sorted(int(path.name) for path in folder.glob("*") if path.name.isdecimal())

    def until(self, true, meanwhile=lambda: None):
        deadline = time.monotonic() + 60
        while not true():
            assert self.process.poll() is None and time.monotonic() < deadline, self.said()[-3000:]
            meanwhile()
            time.sleep(0.02)

    def fails(self, why, meanwhile=lambda: None):
        """Wait until another save has failed; return the line that says so, and the checkpoints then."""
        line = lambda: [s for s in self.said().splitlines() if "was not saved" in s and why in s]  # noqa: E731
        before = len(line())
        self.until(lambda: len(line()) > before, meanwhile)
        return [line()[-1], self.steps()]

    def saves(self):
        """Wait until another checkpoint is there, and return all."""
        before = max(self.steps(), default=0)
        self.until(lambda: max(self.steps(), default=0) > before)
        return self.steps()

    def ends(self):
        return self.process.wait(timeout=60)


class Filler:
    """A file that takes all the room but so many bytes."""

    def __init__(self, path):
        self.path = path

    def fill(self, leave=0):
        with self.path.open("ab", buffering=0) as file, contextlib.suppress(OSError):
            while shutil.disk_usage(self.path.parent).free > leave:
                file.write(bytes(min(MB, max(4096, shutil.disk_usage(self.path.parent).free - leave))))

    def free(self):
        self.path.unlink()


def mount(*arguments):
    subprocess.run(["mount", *map(str, arguments)], check=True)


def main(folder):
    folder = Path(folder)
    disk, log = folder / "disk", folder / "log"
    run = disk / "run"
    disk.mkdir()
    try:
        mount("-t", "tmpfs", "-o", "size=24m", "none", disk)
    except (OSError, subprocess.CalledProcessError) as error:
        print(error, file=sys.stderr)
        sys.exit(77)
    filler, seen = Filler(disk / "filler"), {}
    filler.fill(leave=MB)  # room for what a run begins with, and for no checkpoint
    with Trainer(run, log) as trainer:
        seen["little"] = trainer.fails("No space left")
        filler.free()
        seen["room"] = trainer.saves()
        seen["full"] = trainer.fails("No space left", filler.fill)  # also with what a failed save has left again
        filler.free()
        seen["room again"] = trainer.saves()
        # A mount that covers the folder, since that of an open file cannot be changed.
        mount("--bind", run, run)
        mount("-o", "remount,bind,ro", run)
        seen["read-only"] = trainer.fails("Read-only file system")
        subprocess.run(["umount", "--lazy", str(run)], check=True)
        seen["writable"] = trainer.saves()
        trainer.process.send_signal(signal.SIGTERM)
        seen["status"], seen["said"] = trainer.ends(), trainer.said()
        seen["end"] = trainer.steps()
    filler.fill()
    with Trainer(run, log) as trainer:  # there is no room even to begin
        seen["no room"] = [trainer.ends(), trainer.said(), trainer.steps()]
    filler.free()
    last = seen["end"][-1]
    with Trainer(folder / "straight", log, steps=last, pause=0) as trainer:
        seen["straight"] = trainer.ends()
    shutil.copytree(run, folder / "kept")
    print(json.dumps(seen))


if __name__ == "__main__":
    main(sys.argv[1])
