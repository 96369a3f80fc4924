"""Makes the release version of every graded assignment: `make course`.

A release is the source without its solutions and hidden tests, written by nbgrader to course/release/."""
import subprocess
import sys
from pathlib import Path

COURSE = Path(__file__).resolve().parents[1] / "course"


def main() -> int:
    sets = sorted(p.name for p in (COURSE / "source").glob("*") if p.is_dir())
    if not sets:
        print("There is no assignment in course/source yet.")
        return 1
    for name in sets:
        print(f"→ course: release of {name}", flush=True)
        done = subprocess.run([sys.executable, "-m", "nbgrader", "generate_assignment", name, "--create", "--force"], cwd=COURSE,
                              capture_output=True, text=True)
        if done.returncode:
            print(done.stderr[-2000:])
            return 1
    print(f"→ the release versions are in {COURSE.name}/release")
    return 0


if __name__ == "__main__":
    sys.exit(main())
