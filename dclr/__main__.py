"""`python -m dclr` is `dclr`."""

from dclr.cli import main

if __name__ == "__main__":
    main()
