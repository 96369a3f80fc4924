"`python -m scene4m …` is the `scene4m` command."
from scene4m.cli import main

if __name__ == "__main__":
    main()
