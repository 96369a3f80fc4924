"""Curation that is killed at random moments, here and on a Ray cluster, ends with the bytes of an undisturbed run."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from test_curation import SMALL, square, tree  # noqa: E402

from scene4m.base.store import verify_store  # noqa: E402
from scene4m.curation import ClipDataset, curate  # noqa: E402

CODE = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_curation import *
curate({{source}}, {{out!r}}, clip=SMALL, layout={{layout!r}}, shard_size={{size}}, workers={{workers}})
"""


def start(source: str, out: Path, layout: str, size: int, workers: int) -> subprocess.Popen:
    code = CODE.format(source=source, out=str(out), layout=layout, size=size, workers=workers)
    return subprocess.Popen(
        [sys.executable, "-c", code], env={**os.environ, "OMP_NUM_THREADS": "1"}
    )


def kill_at(process: subprocess.Popen, out: Path, seconds: float, everything: bool) -> bool:
    "Kills the run `seconds` after it began to write; its workers too, or only itself. False if it was over by then."
    while not (out / "settings.json").exists() and process.poll() is None:
        time.sleep(0.005)
    time.sleep(seconds)
    children = (
        psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    )
    over = process.poll() is not None
    process.kill()
    process.wait()
    for c in children if everything else ():
        try:
            c.kill()
        except psutil.NoSuchProcess:
            pass
    return not over


def kills(
    tmp_path: Path,
    n: int,
    source: str,
    layout: str,
    size: int,
    workers: int,
    longest: float,
    seed: int,
) -> int:
    "How many of `n` kills hit a run at work; the last run is left alone and its files must be those of a clean one."
    rng, hits, out = random.Random(seed), 0, tmp_path / "killed"
    for k in range(n):
        process = start(source, out, layout, size, workers)
        hits += kill_at(process, out, rng.random() * longest, everything=k % 2 == 0)
        for npy in out.glob("frames/[!.]*"):
            assert npy.stat().st_size > 0  # nothing half-written under its own name
        if (out / "manifest.parquet").exists():
            import shutil

            shutil.rmtree(out)  # it got through: begin again
    assert start(source, out, layout, size, workers).wait() == 0
    assert start(source, tmp_path / "clean", layout, size, 1).wait() == 0
    assert (
        tree(out) == tree(tmp_path / "clean")
        and verify_store(out) == []
        and not list(out.rglob(".tmp-*"))
    )
    return hits


def test_four_kills(tmp_path):
    assert kills(tmp_path, 4, "Slow(60)", "folder", 5, 2, 0.6, seed=0) >= 2
    assert len(ClipDataset(tmp_path / "killed")) == 60


@pytest.mark.slow
@pytest.mark.parametrize("layout, workers", [("folder", 2), ("shards", 1)])
def test_ten_kills_each(tmp_path, layout, workers):
    "With the other test's layout: twenty kills at random moments."
    assert kills(tmp_path, 10, "Slow(100)", layout, 10, workers, 1.2, seed=workers) >= 5


@pytest.mark.slow
def test_kills_while_decoding(tmp_path):
    for i in range(24):
        square(tmp_path / "in" / f"{i:02d}.mp4", i, seconds=6)
    assert kills(tmp_path, 6, repr(str(tmp_path / "in")), "shards", 6, 2, 0.8, seed=5) >= 3


def test_orphans_do_not_stay(tmp_path):
    "The workers of a run that was killed end by themselves."
    process = start("Slow(400)", tmp_path / "out", "folder", 20, 2)
    while not list((tmp_path / "out").glob("frames/*")):
        time.sleep(0.02)
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGKILL)
    process.wait()
    _, alive = psutil.wait_procs(children, timeout=120)
    assert children and not alive


def run_and_kill_a_worker(code: str, out: Path) -> tuple:
    "What `code` prints and complains of, and whether one of its Ray workers was killed after two shards were finished."
    env = {
        **os.environ,
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
        "RAY_gcs_server_port_wait_time_s": "180",
        "OMP_NUM_THREADS": "1",
    }
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=env,
    )
    killed = 0
    while process.poll() is None and not killed:
        time.sleep(0.02)
        if len(list((out / "ledger").glob("shard-?????.json"))) < 2:
            continue
        try:
            workers = [
                c
                for c in psutil.Process(process.pid).children(recursive=True)
                if "ray::_ray_work" in " ".join(c.cmdline())
            ]
            if workers:
                workers[0].kill()
                killed += 1
        except psutil.NoSuchProcess:
            pass
    return *process.communicate(timeout=900), killed


@pytest.mark.slow
def test_ray_worker_is_killed(tmp_path):
    "Two Ray workers, one killed in the middle: the same bytes as the local engine's."
    pytest.importorskip("ray")
    for i in range(30):
        square(tmp_path / "in" / f"{i:02d}.mp4", i, seconds=4)
    code = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_curation import *
table = curate({str(tmp_path / "in")!r}, {str(tmp_path / "ray")!r}, clip=SMALL, shard_size=3, workers=2, engine="ray")
print(len(table), table.attrs["complete"])
"""
    for _ in range(3):  # Ray gives up starting after half a minute, which a busy machine may need
        out, err, killed = run_and_kill_a_worker(code, tmp_path / "ray")
        if "There is no Ray to work with" not in err:
            break
    assert out.strip().endswith("30 True"), err[-3000:]
    curate(tmp_path / "in", tmp_path / "local", clip=SMALL, shard_size=3)
    assert killed == 1 and tree(tmp_path / "ray") == tree(tmp_path / "local")
