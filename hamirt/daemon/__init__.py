"""The supervisor of a node: sets limits, sees the truth through NVML, reaps the dead."""
