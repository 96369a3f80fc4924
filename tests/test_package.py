"""The package as its users get it: a wheel, its metadata, and what it can do in an environment of its own."""

import configparser
import json
import os
import re
import subprocess
import sys
import venv
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
pytest.importorskip("build", reason="the package `build` is not installed")
DEV_ONLY = {
    "nbdev",
    "execnb",
    "ghapi",
    "pytest",
    "ruff",
    "quarto",
    "jupyterlab",
    "notebook",
    "playwright",
    "nbgrader",
}


def sh(*args, **kw) -> str:
    done = subprocess.run([str(a) for a in args], capture_output=True, text=True, **kw)
    assert done.returncode == 0, (
        f"{' '.join(map(str, args))}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    )
    return done.stdout


def settings() -> configparser.SectionProxy:
    parser = configparser.ConfigParser(delimiters=["="], interpolation=None)
    parser.read(ROOT / "settings.ini", encoding="utf-8")
    return parser["DEFAULT"]


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    "What the package is built from, committed or not, copied so that nothing is left behind in this checkout."
    source = tmp_path_factory.mktemp("source")
    listed = sh(
        "git", "ls-files", "--cached", "--others", "--exclude-standard", cwd=ROOT
    ).splitlines()
    for line in listed:
        top = Path(line).parts[0]
        if (
            top
            in (
                "scene4m",
                "settings.ini",
                "setup.py",
                "pyproject.toml",
                "README.md",
                "LICENSE",
                "MANIFEST.in",
                "constraints.txt",
            )
            and (ROOT / line).is_file()
        ):
            (source / line).parent.mkdir(parents=True, exist_ok=True)
            (source / line).write_bytes((ROOT / line).read_bytes())
    return source


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory) -> Path:
    "What `python -m build` makes: a source archive, and a wheel from that archive."
    out = tmp_path_factory.mktemp("dist")
    have_tools = (
        subprocess.run(
            [
                sys.executable,
                "-c",
                "import setuptools, wheel; assert int(setuptools.__version__.split('.')[0]) >= 77",
            ],
            capture_output=True,
        ).returncode
        == 0
    )
    sh(
        sys.executable,
        "-m",
        "build",
        "--outdir",
        out,
        *(["--no-isolation"] if have_tools else []),
        source,
    )
    return next(out.glob("*.whl"))


@pytest.fixture(scope="module")
def metadata(wheel):
    with zipfile.ZipFile(wheel) as z:
        return message_from_bytes(z.read(next(n for n in z.namelist() if n.endswith("METADATA"))))


def required(metadata, extra: str | None = None) -> set[str]:
    "Names that the wheel asks for, with or without an extra."
    lines = [
        x
        for x in metadata.get_all("Requires-Dist")
        if (f'extra == "{extra}"' in x if extra else "extra ==" not in x)
    ]
    return {re.match(r"[\w.-]+", x)[0].lower().replace("_", "-") for x in lines}


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as z:
        tops = {n.split("/")[0] for n in z.namelist()}
        names = set(z.namelist())
    assert {t for t in tops if not t.endswith(".dist-info")} == {"scene4m"}
    assert {
        "scene4m/__init__.py",
        "scene4m/__main__.py",
        "scene4m/base/core.py",
        "scene4m/app/cli.py",
    } <= names
    assert any(n.endswith("licenses/LICENSE") or n.endswith("dist-info/LICENSE") for n in names)


def test_the_wheel_is_light(wheel):
    assert wheel.stat().st_size < 25_000_000


def test_metadata_comes_from_settings(metadata):
    cfg = settings()
    assert (metadata["Name"], metadata["Version"], metadata["Summary"]) == (
        cfg["lib_name"],
        cfg["version"],
        cfg["description"],
    )
    assert required(metadata) == {
        re.match(r"[\w.-]+", r)[0].lower().replace("_", "-") for r in cfg["requirements"].split()
    }
    assert metadata["Requires-Python"] == f">={cfg['min_python']}"
    assert "Apache-2.0" in (metadata["License-Expression"] or metadata["License"] or "")


def test_metadata_names_no_person(metadata):
    assert metadata["Author"] == "scene4m contributors"
    assert not [
        v for k, v in metadata.items() if k in ("Author-email", "Maintainer", "Maintainer-email")
    ]
    assert "@" not in metadata["Author"]


def test_the_library_runs_without_what_built_it(metadata):
    assert not required(metadata) & DEV_ONLY
    assert {"nbdev", "pytest", "ruff"} <= required(metadata, "dev")
    assert {"jupyterlab", "voila"} <= required(metadata, "lab") and "yt-dlp" in required(
        metadata, "download"
    )


def test_dev_holds_every_other_extra(metadata):
    extras = set(metadata.get_all("Provides-Extra")) - {"dev"}
    assert extras == {"lab", "train", "download", "ray", "course"}
    for extra in extras:
        assert required(metadata, extra) <= required(metadata, "dev"), extra


def environment(folder: Path, like_this_one: bool) -> Path:
    "A fresh environment; `like_this_one` lets it see the packages that are installed here, but not this checkout."
    venv.create(folder, with_pip=True)
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if like_this_one:
        site = Path(
            sh(python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])").strip()
        )
        here = [p for p in sys.path if p.endswith(("site-packages", "dist-packages"))]
        (site / "zz-installed-here.pth").write_text("\n".join(here) + "\n")
    return python


CHECK = """
import importlib, json, pathlib, pkgutil, sys
import scene4m
assert pathlib.Path(scene4m.__file__).is_relative_to(sys.prefix), scene4m.__file__
names = [m.name.removeprefix("scene4m.") for m in pkgutil.walk_packages(scene4m.__path__, "scene4m.")]
names = [n for n in names if not n.split(".")[-1].startswith("_")]
for name in names: importlib.import_module(f"scene4m.{name}")
print(json.dumps(dict(version=scene4m.__version__, modules=names, seen=[n for n in ("nbdev", "IPython") if n in sys.modules])))
"""


def imported(python: Path, cwd: Path) -> dict:
    return json.loads(
        sh(python, "-c", CHECK, cwd=cwd, env={**os.environ, "PYTHONPATH": ""}).splitlines()[-1]
    )


def test_the_wheel_installs_and_every_module_imports(wheel, tmp_path):
    python = environment(tmp_path / "env", like_this_one=True)
    sh(
        python,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--force-reinstall",
        wheel,
    )
    told = imported(python, tmp_path)
    assert told["version"] == settings()["version"]
    with zipfile.ZipFile(wheel) as z:
        files = [re.fullmatch(r"scene4m/((?:[a-z]\w*/)*)(\w+)\.py", n) for n in z.namelist()]
    packed = {(m[1] + m[2]).replace("/", ".") for m in files if m and not m[2].startswith("_")}
    packed |= {
        m[1].strip("/").replace("/", ".") for m in files if m and m[1] and m[2] == "__init__"
    }
    assert set(told["modules"]) == packed
    assert "nbdev" not in told["seen"]
    assert "describe" in sh(python, "-m", "scene4m", "--help", cwd=tmp_path)


@pytest.mark.slow
def test_the_wheel_works_in_an_empty_environment(wheel, tmp_path):
    "Everything from the index, nothing of this environment: install, let the doctor look, describe a clip with the model that came along."
    python = environment(tmp_path / "env", like_this_one=False)
    sh(
        python,
        "-m",
        "pip",
        "install",
        "--quiet",
        "-c",
        ROOT / "constraints.txt",
        wheel,
        timeout=1800,
    )
    assert not {
        p
        for p in DEV_ONLY
        if subprocess.run([str(python), "-c", f"import {p}"], capture_output=True).returncode == 0
    } - {"IPython"}
    command = next(
        p for p in (python.parent / "scene4m", python.parent / "scene4m.exe") if p.exists()
    )
    sh(command, "doctor", "--fix", cwd=tmp_path)
    looked_over = sh(command, "doctor", cwd=tmp_path)
    assert "torchaudio" in looked_over and "Traceback" not in looked_over
    imported(python, tmp_path)
    sh(command, "toy", "--n", "2", "--out", "street", cwd=tmp_path)
    clip = next((tmp_path / "street").glob("**/*.mp4"))
    said = json.loads(sh(command, "describe", clip, "--json", cwd=tmp_path).splitlines()[-1])
    assert (
        said["description"]
        and said["senses"].keys() == {"audio", "video"}
        and 0 <= said["confidence"] <= 1
    )
    clip.with_suffix(".txt").write_text("no film")
    done = subprocess.run(
        [str(command), "describe", str(clip.with_suffix(".txt"))],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr


@pytest.mark.slow
def test_the_package_installs_from_its_folder_without_nbdev(source, tmp_path):
    "`pip install .` builds with setuptools alone, in a build environment of its own."
    done = sh(
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--wheel-dir",
        tmp_path,
        source,
        timeout=600,
    )
    names = {p.name for p in tmp_path.iterdir()}
    assert names == {f"scene4m-{settings()['version']}-py3-none-any.whl"}, done


@pytest.mark.slow
def test_everything_fits_together(wheel, tmp_path):
    "The index has versions of all requirements that fit each other and constraints.txt; `dev` holds every extra, so each of them fits, too. Nothing is installed."
    told = tmp_path / "report.json"
    sh(
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--dry-run",
        "--ignore-installed",
        "--report",
        told,
        "-c",
        ROOT / "constraints.txt",
        f"{wheel}[dev]",
        timeout=1200,
    )
    names = {
        item["metadata"]["name"].lower().replace("_", "-")
        for item in json.loads(told.read_text())["install"]
    }
    assert {
        "torch",
        "torchaudio",
        "scene4m",
        "nbdev",
        "pytest",
        "ruff",
        "jupyterlab",
        "voila",
        "yt-dlp",
        "ray",
        "nbgrader",
        "peft",
    } <= names
