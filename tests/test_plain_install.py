"""What plain pip brings together: bounds on every requirement, each release of PyAV, an install without constraints."""

import configparser
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version
from typer.testing import CliRunner

from scene4m import curation
from scene4m.app import cli, doctor
from scene4m.base import media
from scene4m.base.lists import FileRow

ROOT = Path(__file__).resolve().parents[1]


def sh(*args, **kw) -> str:
    done = subprocess.run([str(a) for a in args], capture_output=True, text=True, **kw)
    assert done.returncode == 0, f"{args}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def requirements() -> list:
    parser = configparser.ConfigParser(delimiters=["="], interpolation=None)
    parser.read(ROOT / "settings.ini", encoding="utf-8")
    named = parser["DEFAULT"].items()
    return [
        Requirement(r) for key, text in named if key.endswith("requirements") for r in text.split()
    ]


def test_every_requirement_ends_before_a_major_release_that_nobody_tried():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {
        re.sub(r"[_.]", "-", n).lower(): Version(v)
        for n, _, v in (x.partition("==") for x in lines)
        if v
    }
    tried = {"av": Version("19")}  # `test_every_release_of_pyav` reads with each of them
    for req in requirements():
        if req.name == "yt-dlp":  # an older one cannot fetch any more
            continue
        known = tried.get(req.name) or pinned[re.sub(r"[_.]", "-", req.name).lower()]
        ends = [Version(s.version) for s in req.specifier if s.operator in ("<", "==")]
        assert ends, f"{req}: no upper bound"
        assert max(ends) <= Version(str(known.major + 1)), f"{req}: {known} was tried"
        assert tried.get(req.name) or req.specifier.contains(known), f"{req}: {known} is pinned"


# ---------------------------------------------------------------- errors of the program are told as such


@pytest.fixture
def broken_reader(monkeypatch, tmp_path):
    "A folder of two clips and a reader that raises, as with a library that dropped an argument."
    (tmp_path / "clips").mkdir()
    for name in ("a.mp4", "b.mp4"):
        (tmp_path / "clips" / name).write_bytes(name.encode() * 100)

    def read(path, **options):
        raise TypeError("open() got an unexpected keyword argument 'metadata_errors'")

    monkeypatch.setattr(media, "read_clip", read)
    monkeypatch.setattr(curation, "read_clip", read)
    return tmp_path


def test_curate_tells_an_error_of_the_program_and_ends_with_1(broken_reader):
    args = ["curate", broken_reader / "clips", "--out", broken_reader / "out", "--workers", 1]
    done = CliRunner().invoke(cli.app, [str(a) for a in args], prog_name="scene4m")
    said = done.output + done.stderr
    assert done.exit_code == 1 and "0 of 2 clips kept" in said
    assert "TypeError: open() got an unexpected keyword" in said and "crashed" not in said


def test_an_error_without_a_process_of_its_own_is_a_row_too(broken_reader):
    row = FileRow("a", str(broken_reader / "clips" / "a.mp4"), "a.mp4")
    told = curation.read_row(row, curation.CurationSettings())
    assert told["reason"] == "failed" and "TypeError" in told["message"]


def test_an_answer_that_cannot_be_sent_is_told(monkeypatch, tmp_path):
    monkeypatch.setattr(media, "read_clip", lambda path, **options: lambda: None)
    with media.IsolatedReader() as reader:
        with pytest.raises(media.ClipRefused, match="(?i)pickle") as e:
            reader.read(tmp_path / "x.mp4")
    assert e.value.reason == "failed"


@pytest.mark.skipif(
    sys.platform != "linux", reason="only a forked process knows what was changed here"
)
def test_a_worker_that_cannot_start_says_why(monkeypatch, tmp_path):
    import torch

    def no(n):
        raise RuntimeError("no threads today")

    monkeypatch.setattr(torch, "set_num_threads", no)
    for i in range(2):
        (tmp_path / f"{i}.mp4").write_bytes(bytes([i] * 50))
    with pytest.raises(RuntimeError, match="no threads today"):
        curation.curate(tmp_path, tmp_path / "out", workers=2, shard_size=1)


# ---------------------------------------------------------------- the doctor works instead of reading numbers


def test_the_doctor_reads_encodes_and_trains(monkeypatch, tmp_path):
    found = {f["name"]: f for f in doctor.check_work()}
    assert {n: f["state"] for n, f in found.items()} == dict(
        reading="ok", encoding="ok", training="ok"
    )
    # a library that changed: its version number is still a good one
    (tmp_path / "sitecustomize.py").write_text(
        "import av\n"
        "def opened(*args, **how): raise TypeError('unexpected keyword argument')\n"
        "av.open = opened\n"
    )
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    )
    found = doctor.check_work()
    assert [f["name"] for f in found] == ["reading"] and found[0]["state"] == "missing"
    assert "TypeError: unexpected keyword argument" in found[0]["found"]


# ---------------------------------------------------------------- each release of PyAV

READ = """
import json, sys
from fractions import Fraction
from pathlib import Path
try: import torch
except ImportError:
    from unittest.mock import MagicMock
    sys.modules["torch"] = MagicMock()      # what is tried here needs none of it
import av
import numpy as np
from scene4m.base.media import FrameSpec, IsolatedReader, probe, read_clip, write_clip

def number(frame): return int((frame[..., 1].mean() - 40) / 4 + 0.5)

folder = Path(sys.argv[1])
frames = np.stack([np.full((64, 96, 3), 40 + 4 * k, np.uint8) for k in range(40)])
wave = 0.3 * np.sin(np.arange(64_000) * 0.05)
write_clip(folder / "a.mp4", frames, wave, 10)
for name, codec in (("a.mpg", "mpeg2video"), ("a.ts", "libx264")):
    with av.open(str(folder / name), "w") as out:
        v = out.add_stream(codec, rate=25)
        v.width, v.height, v.pix_fmt = 96, 64, "yuv420p"
        for picture in frames.repeat(3, 0):
            out.mux(v.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        out.mux(v.encode(None))
spec = [FrameSpec(4, 1.0, 32)]
told = dict(release=int(av.__version__.split(".")[0]))
for name in ("a.mp4", "a.mpg", "a.ts"):
    clip = read_clip(folder / name, specs=spec, seconds=4.0)
    later = read_clip(folder / name, specs=spec, start=2.0, seconds=2.0)
    info = probe(folder / name)
    told[name] = [[number(f) for f in clip.frames], number(later.frames[0]), info.width, clip.silent]
with IsolatedReader() as reader: told["apart"] = reader.read(folder / "a.mp4").has_video
print(json.dumps(told))
"""


def pythons() -> dict:
    "{(3, 12): path} of the Pythons on this machine."
    names = [shutil.which(f"python3.{minor}") for minor in range(11, 20)]
    names += [str(p) for p in Path.home().glob(".pyenv/versions/3.*/bin/python")]
    found = {}
    for name in filter(None, names):
        done = subprocess.run(
            [name, "-c", "import sys, venv; print(*sys.version_info[:2])"],
            capture_output=True,
            text=True,
        )
        if done.returncode == 0:
            found.setdefault(tuple(map(int, done.stdout.split())), name)
    return {v: n for v, n in found.items() if v >= (3, 11)}


def environment(python: str, folder: Path) -> Path:
    sh(python, "-m", "venv", folder)
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


@pytest.mark.slow
@pytest.mark.parametrize("release", range(14, 20))
def test_every_release_of_pyav(release, tmp_path):
    "Reads and writes with the newest of each; 19 wants Python 3.12, where no torch is installed for it."
    python, path = sys.executable, [str(tmp_path / "av"), str(ROOT)]
    if release >= 19 and sys.version_info < (3, 12):
        newest = max(pythons(), default=(3, 11))
        if newest < (3, 12):
            pytest.skip("PyAV 19 needs Python 3.12 or later, and there is none here")
        python = environment(pythons()[newest], tmp_path / "env")
        sh(python, "-m", "pip", "install", "--quiet", "numpy", timeout=600)
    sh(
        python,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--only-binary",
        ":all:",
        "--no-deps",
        "--target",
        tmp_path / "av",
        f"av=={release}.*",
        timeout=600,
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(path)}
    told = json.loads(sh(python, "-c", READ, tmp_path, env=env, cwd=tmp_path).splitlines()[-1])
    assert told["release"] == release and told["apart"]
    assert told["a.mp4"] == [[0, 10, 20, 30], 20, 96, False]
    for name in ("a.mpg", "a.ts"):
        shown, later, width, silent = told[name]
        assert (
            np_close(shown, [0, 8, 16, 25]) and abs(later - 16) <= 1 and width == 96 and silent
        ), (name, told)


def np_close(a, b) -> bool:
    return all(abs(x - y) <= 1 for x, y in zip(a, b, strict=True))


# ---------------------------------------------------------------- an install without constraints


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    pytest.importorskip("build", reason="the package `build` is not installed")
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    listed = sh(
        "git", "ls-files", "--cached", "--others", "--exclude-standard", cwd=ROOT
    ).splitlines()
    for line in listed:
        if line.split("/")[0] in (
            "scene4m",
            "settings.ini",
            "setup.py",
            "pyproject.toml",
            "README.md",
            "LICENSE",
            "MANIFEST.in",
        ):
            (source / line).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / line, source / line)
    sh(
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--wheel-dir",
        out,
        source,
        timeout=600,
    )
    return next(out.glob("*.whl"))


@pytest.mark.slow
@pytest.mark.parametrize("which", ["oldest", "newest"])
def test_plain_pip_describes_a_clip(which, wheel, tmp_path):
    "No constraints: whatever pip finds today, on Python 3.11 and on the newest Python of this machine."
    known = pythons()
    version = (min if which == "oldest" else max)(known, default=None)
    if version is None:
        pytest.skip("there is no Python with venv beside this one")
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PIP_CONSTRAINT")}
    python = environment(known[version], tmp_path / "env")
    pip = [python, "-m", "pip", "install", "--quiet"]
    report = tmp_path / "report.json"
    sh(*pip, "--dry-run", "--report", report, wheel, env=env, timeout=1200)
    chosen = {
        i["metadata"]["name"].lower(): i["metadata"]["version"]
        for i in json.loads(report.read_text())["install"]
    }
    heavy = [n for n in chosen if n.startswith(("nvidia-", "cuda-", "triton"))]
    if heavy and not os.environ.get("SCENE4M_LARGE_INSTALLS"):
        pytest.skip(
            f"Python {version}: pip chooses torch {chosen['torch']} with {len(heavy)} packages for CUDA, several gigabytes; "
            "SCENE4M_LARGE_INSTALLS=1 tries it"
        )
    sh(*pip, wheel, env=env, timeout=1800)
    command = next(
        p for p in (python.parent / "scene4m", python.parent / "scene4m.exe") if p.exists()
    )
    sh(command, "doctor", "--fix", cwd=tmp_path, env=env)
    assert "reading" in sh(command, "doctor", cwd=tmp_path, env=env)
    sh(command, "toy", "--n", "1", "--out", "street", cwd=tmp_path, env=env)
    sh(command, "curate", "street", "--out", "data", cwd=tmp_path, env=env)
    clip = next((tmp_path / "street").glob("*.mp4"))
    said = json.loads(
        sh(command, "describe", clip, "--json", cwd=tmp_path, env=env).splitlines()[-1]
    )
    assert said["description"] and said["senses"] == dict(audio="used", video="used")
