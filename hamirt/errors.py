"""The one exception of hamirt: a sentence that the person at the keyboard can act on, and an exit code."""

REFUSED = 1
USAGE = 2
RUN_ERROR = 125
NOT_EXECUTABLE = 126
NOT_FOUND = 127


class HamirtError(Exception):
    """Says what is wrong and what to do; `main` prints it and ends with `exit_code`.

    Where `exit_code` is None the command decides: 125 for `hamirt run`, 1 for the others.
    """

    def __init__(self, message: str, exit_code: int | None = None) -> None:
        super().__init__(message)
        self.exit_code = exit_code
