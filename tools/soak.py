"""Disturb real runs at random for a while, and see that they lose nothing: python tools/soak.py --minutes 30

Runs of a few minutes follow one another, each under one kind of disturbance until it is over: processes are killed,
the number of processes changes, the disk fills up (a small tmpfs; needs root), the object store stops answering (needs
moto), pictures become unreadable. What is left behind and how each run ends is compared with a run that nobody
disturbed. The last line is the verdict; the exit code is 1 where something was lost.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar
from unittest import mock

import torch

ROOT = Path(__file__).resolve().parent.parent
SETTINGS = {
    "recipe": "soak", "dataset": "shapes", "shapes_train": 40, "shapes_val": 8, "shapes_classes": 2, "shapes_size": 80,
    "image_size": 75, "batch_size": 4, "val_batch_size": 4, "epochs": 2, "opt": "momentum", "lr": 0.001, "workers": 0,
    "log_interval": 1, "tensorboard": False, "device": "cpu", "amp": "off", "drop_rate": 0.3, "ema": True,
    "ckpt_steps": 1, "keep_checkpoint_max": 3, "bn_momentum": 0.9, "hang_timeout": 60, "resume": "auto",
}  # fmt: skip
"""Ten steps of two processes over two epochs, with a checkpoint after each."""
STATE = ("model", "ema", "optimizer", "step", "best", "ema_updates", "position")
TRACEBACK = re.compile(r"^Traceback \(most recent call last\):\n(?:  .*\n)+", re.M)
SLOWEST = 400.0
"""Seconds after which a run that does not end counts as hanging."""
CHECKPOINTS_MB = 2600
"""Room for the three checkpoints and the weights of such a run, and for what is being written."""


class Lost(Exception):
    """Something that a run must never do."""


class Start:
    """One start of `train`, under torchrun for several processes.

    Attributes:
        running: those that may not have ended yet.
    """

    running: ClassVar[list[Start]] = []

    def __init__(self, folder: Path, log: Path, processes: int, restarts: int = 0, **settings: object) -> None:
        alone = [sys.executable, "-m", "inception_v4"]
        group = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}",
                 f"--max-restarts={restarts}", "-m", "inception_v4"]  # fmt: skip
        flags = [f"--{name.replace('_', '-')}={value}" for name, value in (SETTINGS | settings).items()]
        self.log, self.processes = log, processes
        self.noted: list[tuple[int, int]] = []
        self.before = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("a") as file:
            self.process = subprocess.Popen(
                [*(group if processes > 1 else alone), "train", *flags, f"--output-dir={folder}"],
                env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "200"},
                stdout=file, stderr=file,
            )  # fmt: skip
        Start.running = [start for start in Start.running if start.process.poll() is None] + [self]

    def said(self) -> str:
        with self.log.open("rb") as file:
            file.seek(self.before)
            return file.read().decode(errors="replace")

    def wait_for(self, pattern: str, seconds: float) -> bool:
        """Whether a line came before the end of the run or of the time."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and self.process.poll() is None:
            if re.search(pattern, self.said()):
                return True
            time.sleep(0.05)
        return False

    def workers(self) -> list[int]:
        """Process numbers of the training processes."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                if parent == self.process.pid and b"\0RANK=" in b"\0" + (entry / "environ").read_bytes():
                    found.append(int(entry.name))
            except (OSError, ValueError, IndexError):
                continue  # it has ended meanwhile
        return found or ([self.process.pid] if self.processes == 1 else [])

    def note_saved(self, folder: Path) -> None:
        """Before a process is killed: what torchrun starts again must go on from no less than is saved now."""
        self.noted.append((len(self.said()), _saved(folder)))

    def require_saved(self) -> None:
        said = self.said()
        for place, saved in self.noted:
            again = re.search(r"images per step.*?(?:resumed at step (\d+)| step \d+/)", said[place:], re.S)
            if again and int(again[1] or 0) < saved:
                raise Lost(f"step {saved} was saved, and torchrun's next start went on from {again[1] or 'none'}")

    def kill_all(self) -> None:
        if self.process.poll() is not None:
            return
        for pid in [self.process.pid, *self.workers()]:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue  # it was faster

    def end(self) -> int:
        """The exit code; raises Lost where the run hangs or ends without a word for people."""
        try:
            code = self.process.wait(SLOWEST)
        except subprocess.TimeoutExpired:
            self.kill_all()
            raise Lost(f"a run did not end within {SLOWEST:g} s") from None
        # torchrun has tracebacks of its own.
        if any(f'File "{ROOT}/inception_v4/' in traceback for traceback in TRACEBACK.findall(self.said())):
            raise Lost("a run ended with a traceback")
        return code


class Soak:
    """The work of one call: a random series of disturbed runs, and what was counted."""

    def __init__(self, work: Path, minutes: float, seed: int) -> None:
        self.work, self.rng = work, random.Random(seed)
        self.began, self.limit = time.monotonic(), 60 * minutes
        self.counts: Counter[str] = Counter()
        self.whole = work / "undisturbed"
        self._finish(Start(self.whole, work / "undisturbed.log", 2), self.whole)

    def over(self) -> bool:
        return time.monotonic() - self.began > self.limit

    def run(self) -> None:
        kinds = [self.kills, self.other_numbers_of_processes, self.pictures]
        kinds += [self.full_disk] if os.geteuid() == 0 else []
        kinds += [self.outages] if _has_moto() else []
        while not self.over():
            self.rng.shuffle(kinds)
            for kind in kinds:
                if self.over():
                    break
                folder = self.work / f"{self.counts['runs']:03d}-{kind.__name__}"
                kind(folder)
                self.counts["runs"] += 1
                print(f"{(time.monotonic() - self.began) / 60:5.1f} min  {folder.name}: whole", flush=True)
                shutil.rmtree(folder, ignore_errors=True)

    def kills(self, folder: Path) -> None:
        """Any process, or all of them, at any moment; torchrun starts again, or the next start goes on."""
        over = False
        while not over:
            start, killed = self._start(folder, 2, restarts=3), False
            for _ in range(self.rng.randint(0, 2)):
                if self.over() or not self._moment(start):
                    break
                start.note_saved(folder)
                self._kill_one(start)
            if not self.over() and self.rng.random() < 0.3 and self._moment(start):
                start.kill_all()
                killed = True
                self.counts["whole jobs killed"] += 1
            over = self._finish(start, folder, may_fail=killed)
        self._same_bits(folder)

    def other_numbers_of_processes(self, folder: Path) -> None:
        """Each start has another number of processes; signals and kills in between."""
        over, before = False, 0
        while not over:
            processes = self.rng.choice([number for number in (1, 2, 3) if number != before])
            start, disturbed, before = self._start(folder, processes), False, processes
            self.counts["starts with another number of processes"] += 1
            if not self.over() and self.rng.random() < 0.8 and self._moment(start):
                disturbed = True
                if self.rng.random() < 0.5:
                    self._signal_one(start, signal.SIGTERM, "signals")
                else:
                    self._kill_one(start)
            over = self._finish(start, folder, may_fail=disturbed)
        position = _newest(folder)["position"]
        if position["samples"] != SETTINGS["shapes_train"] or (position["epoch"], position["done"]) != (2, 0):
            raise Lost(f"a run that is over stands at {position}")

    def full_disk(self, folder: Path) -> None:
        """The disk fills up at some moment, and is emptied later."""
        disk = folder.with_suffix(".disk")
        policy = self.rng.choice(["stop", "continue"])
        with _small_disk(disk, CHECKPOINTS_MB):
            code = 1
            while code:
                start, filled = self._start(disk / "run", 2, on_disk_full=policy), False
                if not self.over() and self._moment(start):
                    filled = True
                    _fill(disk / "ballast", leave=self.rng.randrange(1 << 28))
                    self.counts["full disks"] += 1
                    time.sleep(self.rng.uniform(1, 8))
                    if self.rng.random() < 0.5:
                        (disk / "ballast").unlink()
                code = start.end()
                (disk / "ballast").unlink(missing_ok=True)
                if code and not filled:
                    raise Lost(f"exit code {code} of a run whose disk was not filled")
                if code and not re.search(r"error.*(disk is full|are free)", start.said()):
                    raise Lost(f"exit code {code} without a word about the disk")
            self._same_bits(disk / "run")

    def outages(self, folder: Path) -> None:
        """The store that a copy of the run goes to stops answering, and answers again."""
        with _store() as server:
            import s3fs

            # Not the instance that fsspec keeps: it would ask the server of an earlier round.
            files = s3fs.S3FileSystem(skip_instance_cache=True)
            files.mkdir("soak")
            start = self._start(folder, 1, upload_to="s3://soak/run", upload_wait=5)
            for _ in range(2):
                if not self.over() and self._moment(start):
                    server.send_signal(signal.SIGSTOP)
                    self.counts["outages of the store"] += 1
                    time.sleep(self.rng.uniform(1, 6))
                    server.send_signal(signal.SIGCONT)
            self._finish(start, folder)
            for file in (f for f in folder.rglob("*") if f.is_file() and not re.search(r"^\.|^run\.lock", f.name)):
                name = f"soak/run/{file.relative_to(folder)}"
                if not files.exists(name) or files.info(name)["size"] != file.stat().st_size:
                    raise Lost(f"the store's copy lacks {name}")

    def pictures(self, folder: Path) -> None:
        """Pictures become unreadable between and during starts."""
        data = self.work / "pictures"
        source = next((Path(os.environ["XDG_CACHE_HOME"]) / "inception-v4").glob("shapes-*"))
        shutil.copytree(source, data, dirs_exist_ok=True)
        victims = self.rng.sample(sorted((data / "train").rglob("*.*")), 4)
        given = {"dataset": "folder", "data_dir": data, "val_split": "val"}
        strict = self._start(folder, 1, **given)
        for victim in victims:
            victim.write_bytes(victim.read_bytes()[: self.rng.randrange(200)])
            self.counts["pictures made unreadable"] += 1
        code = strict.end()
        if code and not any(str(victim) in strict.said() for victim in victims):
            raise Lost(f"exit code {code} names none of the unreadable pictures")
        self._finish(self._start(folder, 2, on_corrupt="skip", **given), folder)
        shutil.rmtree(data)

    def _start(self, folder: Path, processes: int, restarts: int = 0, **settings: object) -> Start:
        """Start, and see that it goes on from the newest checkpoint there is, or from one before where it says why."""
        newest = _saved(folder)
        start = Start(folder, self._log_of(folder), processes, restarts, **settings)
        self.counts["starts"] += 1
        if newest:
            start.wait_for(r"resumed at step \d+| step \d+/", 90)
            match = re.search(r"resumed at step (\d+)", said := start.said())
            if match and int(match[1]) < newest:
                raise Lost(f"step {newest} was saved, and the next start went on from {match[1]}")
            if match is None and re.search(r" step \d+/", said):
                raise Lost(f"step {newest} was saved, and the next start began anew")
        return start

    def _log_of(self, folder: Path) -> Path:
        """Of all starts of a run; never on a disk that is filled up."""
        return self.work / f"{'-'.join(folder.relative_to(self.work).parts)}.log"

    def _moment(self, start: Start) -> bool:
        """Wait for a random moment; False where the run is over before it."""
        if self.rng.random() < 0.7 and not start.wait_for(r" step \d+/", 90):
            return False
        time.sleep(self.rng.uniform(0, 4))
        return start.process.poll() is None

    def _kill_one(self, start: Start) -> None:
        self._signal_one(start, signal.SIGKILL, "processes killed")

    def _signal_one(self, start: Start, number: signal.Signals, name: str) -> None:
        if workers := start.workers():
            try:
                os.kill(self.rng.choice(workers), number)
                self.counts[name] += 1
            except ProcessLookupError:
                return  # it was faster

    def _finish(self, start: Start, folder: Path, *, may_fail: bool = False) -> bool:
        """Whether the run is over; raises Lost where it failed and nobody had touched it."""
        code = start.end()
        start.require_saved()
        if code and not may_fail:
            raise Lost(f"exit code {code} of a run that should have ended well")
        if code == 0 and list(folder.rglob("*.tmp")):
            raise Lost("a finished run left temporary files behind")
        return code == 0

    def _same_bits(self, folder: Path) -> None:
        whole, disturbed = _newest(self.whole), _newest(folder)
        for name in STATE:
            if not _equal(whole[name], disturbed[name]):
                raise Lost(f"{name} differs from that of the undisturbed run")
        if (self.whole / "last.safetensors").read_bytes() != (folder / "last.safetensors").read_bytes():
            raise Lost("last.safetensors differs from that of the undisturbed run")
        self.counts["ends equal to the last bit"] += 1


def _saved(folder: Path) -> int:
    """The step of the newest checkpoint, 0 where there is none."""
    return max((int(file.stem[-8:]) for file in (folder / "checkpoints").glob("step-*.pt")), default=0)


def _newest(folder: Path) -> dict:
    return torch.load(max((folder / "checkpoints").glob("step-*.pt")), map_location="cpu", weights_only=True)


def _equal(a: object, b: object) -> bool:
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(_equal, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) else a == b


@contextmanager
def _small_disk(place: Path, megabytes: int) -> Iterator[None]:
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(place)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def _fill(ballast: Path, *, leave: int) -> None:
    """Take the free space but for `leave` bytes, also where the run takes some meanwhile."""
    with open(ballast, "wb") as file:
        for _ in range(20):
            state = os.statvfs(ballast.parent)
            size = state.f_bavail * state.f_frsize - leave
            try:
                if size > 0:
                    os.posix_fallocate(file.fileno(), 0, size)
                return
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise


def _has_moto() -> bool:
    return subprocess.run([sys.executable, "-c", "import moto.server, s3fs"], capture_output=True).returncode == 0


@contextmanager
def _store() -> Iterator[subprocess.Popen]:
    """An S3 server in a process of its own; meanwhile the environment leads to it."""
    program = (
        "import sys, moto.server as m; s = m.ThreadedMotoServer(ip_address='127.0.0.1', port=0, verbose=False); "
        "s.start(); print(*s.get_host_and_port(), flush=True); sys.stdin.read()"
    )
    server = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                              stderr=subprocess.DEVNULL, text=True)  # fmt: skip
    assert server.stdout is not None
    try:
        host, port = server.stdout.readline().split()
        address = {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "loopback", "AWS_SECRET_ACCESS_KEY": "loopback",
        }  # fmt: skip
        with mock.patch.dict(os.environ, address):
            yield server
    finally:
        server.kill()
        server.wait()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30, help="after so long no run is disturbed any more")
    parser.add_argument("--seed", type=int, default=None, help="of the disturbances; default: the time")
    parser.add_argument("--json", metavar="FILE", help="counts and verdict, as JSON")
    options = parser.parse_args()
    seed = time.time_ns() % 10**6 if options.seed is None else options.seed
    work = Path(tempfile.mkdtemp(prefix="soak-"))
    os.environ["XDG_CACHE_HOME"] = str(work / "cache")
    print(f"soak, seed {seed}, in {work}", flush=True)
    soak, verdict = None, "nothing lost"
    try:
        soak = Soak(work, options.minutes, seed)
        soak.run()
    except Lost as error:
        verdict = f"LOST: {error} (see {work})"
    finally:
        for start in Start.running:
            start.kill_all()
    counts = soak.counts if soak is not None else Counter()
    minutes = (time.monotonic() - soak.began) / 60 if soak is not None else 0
    if options.json:
        result = {"seed": seed, "minutes": minutes, "counts": counts, "verdict": verdict}
        Path(options.json).write_text(json.dumps(result, indent=2) + "\n")
    told = ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
    print(f"soak of {minutes:.1f} minutes: {told}: {verdict}")
    if verdict != "nothing lost":
        return 1
    shutil.rmtree(work)
    return 0


if __name__ == "__main__":
    sys.exit(main())
