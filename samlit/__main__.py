"""`python -m samlit` is the `samlit` command."""

from samlit.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
