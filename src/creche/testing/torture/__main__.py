"""`python -m creche.testing.torture`."""

from creche.testing.torture._cli import main

main()
