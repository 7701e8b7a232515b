"""Two machines: network namespaces with addresses of their own and a link. A machine dies, and the link is cut."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from elastic import assert_same_end, torchrun
from running import TINY, as_flags, environment, final_state
from temporary import NewFolder

ADDRESSES = ("10.213.7.1", "10.213.7.2")
SETTINGS = TINY | {
    "shapes_train": 320, "epochs": 1, "ckpt_steps": 2, "keep_checkpoint_max": 3, "lr": 0.001, "bn_momentum": 0.9,
    "output_dir": "run", "max_steps": 16, "hang_timeout": 30,
}  # fmt: skip


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture
def nodes() -> Iterator[tuple[str, str]]:
    """The names of two namespaces whose ends of a link are up."""
    names = tuple(f"iv4-{os.getpid()}-{end}" for end in "ab")
    links = tuple(f"iv4{end}{os.getpid() % 100000}" for end in "ab")
    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("network namespaces need iproute2 and root")
    try:
        for name in names:
            ip("netns", "add", name)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no network namespaces here: {error.stderr.decode().strip()}")
    try:
        ip("link", "add", links[0], "netns", names[0], "type", "veth", "peer", "name", links[1], "netns", names[1])
        for name, link, address in zip(names, links, ADDRESSES, strict=True):
            ip("-n", name, "addr", "add", f"{address}/24", "dev", link)
            ip("-n", name, "link", "set", link, "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield names[0], names[1]
    finally:
        for name in names:
            ip("netns", "del", name)


def link_of(node: str) -> str:
    shown = subprocess.run(["ip", "-n", node, "-o", "link"], check=True, capture_output=True, text=True).stdout
    return next(line.split(": ")[1].split("@")[0] for line in shown.splitlines() if "iv4" in line)


class Node:
    """torchrun of one process in a namespace; what it says goes into a file."""

    def __init__(self, node: str, number: int, cwd: Path, *, least: int) -> None:
        self.node, self.log = node, cwd / f"node{number}.log"
        words = [
            "ip", "netns", "exec", node, sys.executable, "-m", "torch.distributed.run", f"--nnodes={least}:2",
            "--nproc-per-node=1", "--max-restarts=5", "--rdzv-backend=c10d", f"--rdzv-endpoint={ADDRESSES[0]}:29400",
            "--rdzv-id=job", f"--local-addr={ADDRESSES[number]}",
            f"--rdzv-conf=is_host={str(number == 0).lower()},keep_alive_interval=1,keep_alive_max_attempt=4,"
            "last_call_timeout=3,join_timeout=120,read_timeout=300",
            "-m", "inception_v4", "train", *as_flags(SETTINGS),
        ]  # fmt: skip
        settings = environment() | {"GLOO_SOCKET_IFNAME": link_of(node), "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
        self.file = self.log.open("a")
        self.process = subprocess.Popen(
            words, cwd=cwd, env=settings, stdout=self.file, stderr=self.file, start_new_session=True
        )

    def said(self) -> str:
        return self.log.read_text()

    def until(self, words: str, *, after: int = 0, timeout: float = 120) -> int:
        """Wait for words in what it says from a place on; returns the place behind them."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            place = self.said().find(words, after)
            if place >= 0:
                return place + len(words)
            if self.process.poll() is not None and self.said().find(words, after) < 0:
                break
            time.sleep(0.2)
        raise AssertionError(f"no {words!r} from {self.node}:\n{self.said()[-6000:]}")

    def kill(self) -> None:
        """The machine is gone: torchrun and its processes, which have sessions of their own."""
        pids = subprocess.run(["ip", "netns", "pids", self.node], capture_output=True, text=True).stdout.split()
        for pid in map(int, pids):
            os.kill(pid, signal.SIGKILL)
        self.process.wait()
        self.file.close()


@contextmanager
def two(nodes: tuple[str, str], cwd: Path, *, least: int) -> Iterator[tuple[Node, Node]]:
    started: list[Node] = []
    try:
        for number, node in enumerate(nodes):
            started.append(Node(node, number, cwd, least=least))
        yield started[0], started[1]
    finally:
        for node in started:
            node.kill()


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_node_is_lost_the_other_goes_on_and_it_comes_back(nodes: tuple[str, str], tmp_path: Path) -> None:
    with two(nodes, tmp_path, least=1) as (first, second):
        place = first.until(" step 4/")
        assert "threads x 2" in first.said()
        second.kill()
        place = first.until("torchrun started the run again", after=place)
        assert "threads x 1" in first.said()
        place = first.until("step ", after=place)
        back = Node(nodes[1], 1, tmp_path, least=1)
        try:
            place = first.until("threads x 2", after=place)
            first.until("torchrun started the run again", after=place)
            assert first.process.wait(timeout=200) == 0, first.said()[-4000:]
        finally:
            back.kill()
    position = final_state(tmp_path / "run")["position"]
    assert final_state(tmp_path / "run")["step"] == 16 and position["samples"] == 320


@pytest.fixture(scope="module")
def undisturbed(module_folder: NewFolder) -> Path:
    """The run of two processes that nothing happens to; on one machine the bits are the same."""
    folder = module_folder("undisturbed")
    with torchrun(folder, settings=SETTINGS) as run:
        run.end(0)
    return folder / "run"


@contextmanager
def link_down(node: str) -> Iterator[float]:
    """For the time of the block no packet comes from or to a node; when that began."""
    link = link_of(node)
    ip("-n", node, "link", "set", link, "down")
    try:
        yield time.monotonic()
    finally:
        ip("-n", node, "link", "set", link, "up")


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_link_that_is_cut_for_seconds_is_waited_for(
    nodes: tuple[str, str], tmp_path: Path, undisturbed: Path
) -> None:
    """The connections outlast it: nobody is started again."""
    with two(nodes, tmp_path, least=2) as (first, second):
        first.until(" step 4/")
        with link_down(nodes[1]):
            time.sleep(2)  # what was under way is done
            before = first.said().count(" step ")
            time.sleep(6)
            assert first.said().count(" step ") == before, "it goes on without the other node"
        for node in (first, second):
            assert node.process.wait(timeout=200) == 0, node.said()[-4000:]
            assert "started the run again" not in node.said() and "missing" not in node.said()
    assert_same_end(undisturbed, tmp_path / "run")


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_link_that_stays_cut_is_an_error_on_both_sides_and_mended_by_itself(
    nodes: tuple[str, str], tmp_path: Path, undisturbed: Path
) -> None:
    """Each side names who is missing within --hang-timeout; once the link is back the run goes on, to the same bits."""
    limit = SETTINGS["hang_timeout"]
    with two(nodes, tmp_path, least=2) as (first, second):
        first.until(" step 4/")
        with link_down(nodes[1]) as began:
            for node in (first, second):
                node.until(f"no progress for {limit} s (--hang-timeout)", timeout=limit + 20)
            assert limit - 10 < time.monotonic() - began < limit + 15
            time.sleep(5)
        for node in (first, second):
            assert node.process.wait(timeout=300) == 0, node.said()[-6000:]
    (by_first,) = re.findall(r"error \(process 0\): no progress .*", first.said())
    (by_second,) = re.findall(r"error \(process 1\): no progress .*", second.said())
    assert re.search(r"process 1 \(\S+\) is missing: not a sign of life", by_first), by_first
    assert "process 0 is missing: its store at" in by_second and ADDRESSES[0] in by_second, by_second
    assert re.search(r"resumed at step \d+ of 16: torchrun started the run again", first.said())
    assert_same_end(undisturbed, tmp_path / "run")
