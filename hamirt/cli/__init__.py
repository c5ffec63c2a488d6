"""The commands, one file each; click is used nowhere else."""
