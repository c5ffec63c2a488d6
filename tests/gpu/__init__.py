"""What runs on a real GPU: the table of programs, the parts of one run, and the pytest wrapper."""
