#!/usr/bin/env python3
"""`hamirt-oci-hook` where only the package is installed, and not its commands."""

import sys

from hamirt.oci import main

sys.exit(main())
