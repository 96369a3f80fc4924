"""Makes the release version of every graded assignment: `make course`.

A release is the source without its solutions and hidden tests, written by nbgrader to course/release/. Nothing else is left behind:
nbgrader's database, and whatever Jupyter would keep in the home folder, go into a temporary folder."""

import os
import shutil
import sys
import tempfile
from pathlib import Path

COURSE = Path(__file__).resolve().parents[1] / "course"


def make_releases(
    course: Path = COURSE, release: Path | None = None, names=None, keep: Path | None = None
) -> list[Path]:
    "Writes `release/psN/psN.ipynb` for every set in `course/source`; returns the notebooks. Raises `RuntimeError` with nbgrader's reason."
    from nbgrader.converters import GenerateAssignment
    from nbgrader.coursedir import CourseDirectory
    from traitlets.config import PyFileConfigLoader

    here = str(
        Path(sys.executable).parent
    )  # nbgrader starts `alembic` by name, also where the environment is not activated
    if here not in os.environ.get("PATH", "").split(os.pathsep):
        os.environ["PATH"] = os.pathsep.join([here, os.environ.get("PATH", "")])
    course = Path(course).resolve()
    release = Path(release or course / "release").resolve()
    names = (
        sorted(p.name for p in (course / "source").glob("*") if p.is_dir())
        if names is None
        else list(names)
    )
    made = []
    for name in names:
        config = PyFileConfigLoader("nbgrader_config.py", path=str(course)).load_config()
        config.CourseDirectory.update(
            root=str(course),
            assignment_id=name,
            release_directory=os.path.relpath(release, course),
            db_url=f"sqlite:///{(keep or release) / 'gradebook.db'}",
        )
        release.mkdir(parents=True, exist_ok=True)
        app = GenerateAssignment(coursedir=CourseDirectory(config=config), config=config)
        app.force = app.create_assignment = True
        app.log.setLevel("ERROR")
        try:
            app.start()
        except (Exception, SystemExit) as e:
            raise RuntimeError(f"{name}: nbgrader could not make the release ({e})") from e
        made.append(release / name / f"{name}.ipynb")
    return made


def main() -> int:
    try:
        import nbgrader  # noqa: F401
    except ImportError:
        print("The assignments need nbgrader: pip install 'scene4m[course]', or `make dev`.")
        return 1
    with tempfile.TemporaryDirectory() as room:
        for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR"):
            os.environ[name] = str(Path(room) / name)
        shutil.rmtree(COURSE / "release", ignore_errors=True)
        try:
            made = make_releases(keep=Path(room))
        except RuntimeError as e:
            print(e)
            return 1
    for path in made:
        print(f"→ course: {path.relative_to(COURSE.parent)}")
    print(
        f"→ {len(made)} release versions; hand out the folders in course/release, never those in course/source"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
