"""Power that fails while a checkpoint is saved: power.py FOLDER prints what each next start finds as JSON.

The file system is ext4 in a file. A copy of that file, made at any moment, holds what has reached the disk until then,
and nothing of what only the kernel knows: its content is what a machine finds when it starts again. The options are
those that promise least. To be run where mounts are its own, by `unshare --mount`; ends with 77 where none is allowed.
"""

import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import kills

from jaxdiff import storage, train
from jaxdiff.train.checkpoint import manifest, steps

OPTIONS = "loop,data=writeback,commit=300,noauto_da_alloc"


LOG = "of a step before\n" * 500


def run(*command):
    subprocess.run([str(part) for part in command], check=True)


def copied(image, folder, act):
    """Copy the disk before each call of os.fsync and os.rename, and at the end; return what each was followed by."""
    labels, one_at_a_time = [], threading.Lock()

    def keep(label):
        shutil.copyfile(image, folder / f"{len(labels):03}.img")
        labels.append(label)

    def watched(name, call):
        def replacement(first, *rest, **options):
            path = os.readlink(f"/proc/self/fd/{first}") if name == "fsync" else os.fspath(first)
            with one_at_a_time:
                keep(f"{name} {'/'.join(part.split('-')[0] for part in Path(path).parts[-2:])}")
                return call(first, *rest, **options)

        return replacement

    real = {name: getattr(os, name) for name in ("fsync", "rename", "replace")}
    for name, call in real.items():
        setattr(os, name, watched(name, call))
    act()
    for name, call in real.items():
        setattr(os, name, call)
    keep("the end")
    return labels


def save(say, image, folder, place):
    """Save step 3, by which step 1 goes, after a line of the log."""
    log = place / "log"
    with train.Checkpointer(place, logs=[log]) as checkpointer:
        now = kills.on_device(kills.state(3))

        def act():
            log.write_text(LOG)
            checkpointer.save(now)
            checkpointer.wait()

        say(copied(image, folder, act))


def write(say, image, folder, place):
    say(copied(image, folder, lambda: storage.write_text(place / "new" / "a.json", "x" * 5000)))
    say(copied(image, folder / "again", lambda: storage.write_text(place / "new" / "a.json", "y" * 9000)))


def found(folder, mount, look):
    """What is on each copy of the disk."""
    results = []
    for image in sorted(folder.glob("*.img")):
        run("mount", "-o", OPTIONS, image, mount)
        try:
            results.append(look())
        finally:
            run("umount", mount)
    return results


def main(folder):
    folder = Path(folder)
    image, mount, place = folder / "disk", folder / "mounted", folder / "mounted" / "run"
    for name in ("mounted", "saves", "texts", "texts/again"):
        (folder / name).mkdir()
    with image.open("wb") as file:
        file.truncate(8 * 2**20)
    try:
        run("mkfs.ext4", "-q", "-b", 1024, "-J", "size=1", image)
        run("mount", "-o", OPTIONS, image, mount)
    except (OSError, subprocess.CalledProcessError) as error:
        print(error, file=sys.stderr)
        sys.exit(77)
    for step in (1, 2):
        status, _ = kills.Life(kills.save, place, step, None).end()
        assert status == 0
    _, (saving,) = kills.Life(save, image, folder / "saves", place).end()
    _, texts = kills.Life(write, image, folder / "texts", place).end()
    # It is not unmounted before the copies are looked at, which would write the rest.
    run("umount", "--lazy", mount)

    def whole():
        """Step -> whether its folder is as its manifest says, of all that has a step's name."""
        folder, log = place / "checkpoints", place / "log"
        if (folder / "3").exists() and (not log.exists() or log.read_text() != LOG):
            return {3: "named before its log"}
        return {
            step: step in steps.complete(folder) and not problems(folder / str(step)) for step in steps.numbered(folder)
        }

    def problems(step):
        files = manifest.read(step).files
        return manifest.problems(step, files, {*files, *manifest.files_of(step)})

    def text():
        path = place / "new" / "a.json"
        return path.read_text() if path.exists() else None

    looks = [list(zip(saving, found(folder / "saves", mount, whole), strict=True))]
    looks += [list(zip(said, found(folder / name, mount, text), strict=True))
              for said, name in zip(texts, ("texts", "texts/again"), strict=True)]  # fmt: skip
    shutil.rmtree(folder / "saves")
    print(json.dumps(looks))


if __name__ == "__main__":
    main(sys.argv[1])
