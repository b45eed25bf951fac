"""`python -m unionfs`: the command line without an installed script."""

from unionfs.cli import main

if __name__ == "__main__":
    main()
