"""`python -m samlit` is the `samlit` command."""

from samlit.cli import run

if __name__ == "__main__":
    run()
