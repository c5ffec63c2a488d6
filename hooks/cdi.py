#!/usr/bin/env python3
"""`hamirt cdi` where only the package is installed, and not its commands: `hooks/cdi.py generate | list`."""

import sys

from hamirt.cli.main import main

main(["cdi", *sys.argv[1:]])
