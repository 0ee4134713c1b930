"""``python -m cachefs``."""

from cachefs.cli import main

if __name__ == "__main__":
    main()
