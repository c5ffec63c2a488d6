"""`hamirt oci-hook`: the hook of hamirt/oci.py, which `hamirt-oci-hook` starts in half the time."""

import click

from hamirt import oci


@click.command("oci-hook", context_settings={"ignore_unknown_options": True, "help_option_names": []}, hidden=True)
@click.argument("words", nargs=-1, type=click.UNPROCESSED)
def command(words: tuple[str, ...]) -> int:
    """Be what an OCI runtime calls: create, remove, precreate or runc, as hamirt-oci-hook --help says."""
    return oci.main(words)
