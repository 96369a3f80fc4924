"""Half files of a curation that was killed are removed by the next one, and those of a living one are not."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from test_curation import SMALL, Factory, tree  # noqa: E402

from scene4m.curation import curate  # noqa: E402

DEAD = subprocess.Popen([sys.executable, "-c", ""])
DEAD.wait()
OF_SHARDS = (
    f"ledger/.tmp-{DEAD.pid}-shard-00001.rows.jsonl",
    f"ledger/.tmp-{DEAD.pid}-shard-00002.json",
    "frames/.tmp-shard-00001-c0003.npy",
)
OF_ALL = tuple(
    f".tmp-{DEAD.pid}-{name}" for name in ("settings.json", "manifest.parquet", "dataset.json")
)
HOLDER = """
import fcntl, sys, time
with open(sys.argv[1], "ab") as f:
    fcntl.flock(f, fcntl.LOCK_SH if "plan" in sys.argv[1] else fcntl.LOCK_EX)
    print("held", flush=True)
    time.sleep(600)
"""


def half_done(out: Path, layout: str = "folder"):
    "Three shards of which the last two are not finished, and what their writers left."
    curate(Factory(12), out, clip=SMALL, layout=layout, shard_size=4)
    for shard in (1, 2):
        (out / "ledger" / f"shard-{shard:05d}.json").unlink()
    for name in (*OF_SHARDS, *OF_ALL):
        (out / name).write_bytes(b"half")


@pytest.fixture
def holding():
    "Another process that holds a lock for as long as the test takes."
    pytest.importorskip("fcntl")
    holders = []

    def hold(path: Path):
        holders.append(
            subprocess.Popen(
                [sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE, text=True
            )
        )
        assert holders[-1].stdout.readline() == "held\n"
        return holders[-1]

    yield hold
    for process in holders:
        process.kill()
        process.wait()


@pytest.mark.parametrize("layout", ["folder", "shards"])
def test_half_files_of_the_dead_do_not_stay(tmp_path, layout):
    half_done(tmp_path / "a", layout)
    curate(Factory(12), tmp_path / "a", clip=SMALL, layout=layout, shard_size=4)
    curate(Factory(12), tmp_path / "b", clip=SMALL, layout=layout, shard_size=4)
    assert not list((tmp_path / "a").rglob(".tmp-*")) and tree(tmp_path / "a") == tree(
        tmp_path / "b"
    )


def test_half_files_of_shards_that_are_no_longer_asked_for(tmp_path):
    half_done(tmp_path)
    curate(Factory(4), tmp_path, clip=SMALL, layout="folder", shard_size=4)
    assert not list(tmp_path.rglob(".tmp-*"))


def test_half_files_of_a_living_process_stay(tmp_path, holding):
    "One process is making shard 1; another takes the rest over, waits, and cleans shard 1 when it is free."
    half_done(tmp_path)
    holding(tmp_path / "ledger" / ".plan.lock")
    maker = holding(tmp_path / "ledger" / ".shard-00001.lock")
    code = "import sys; sys.path.insert(0, sys.argv[1]); from test_curation import *; curate(Factory(12), sys.argv[2], clip=SMALL, shard_size=4)"
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(Path(__file__).parent), str(tmp_path)]
    )
    while not (tmp_path / "ledger" / "shard-00002.json").exists() and other.poll() is None:
        time.sleep(0.02)
    assert not (tmp_path / OF_SHARDS[1]).exists()
    assert (tmp_path / OF_SHARDS[0]).exists() and (tmp_path / OF_SHARDS[2]).exists()
    maker.kill()
    assert other.wait() == 0
    assert not any((tmp_path / name).exists() for name in OF_SHARDS)
    assert all((tmp_path / name).exists() for name in OF_ALL)
