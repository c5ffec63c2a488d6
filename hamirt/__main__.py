"""`python -m hamirt`."""

from hamirt.cli.main import main

main()
