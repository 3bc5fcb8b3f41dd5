"""`python -m creche` is the command line `creche`. It adds nothing to it."""

from creche.cli import main

if __name__ == "__main__":
    main()
