"""A plugin for a pytest that tests libraries of another machine: the Python that tests start is that machine's."""

import os
import sys

sys.executable = os.environ["HAMIRT_TEST_PYTHON"]
