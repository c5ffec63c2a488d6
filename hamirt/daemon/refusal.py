"""How the daemon says no: a sentence for a person, and HTTP's status for the program that asked."""

from hamirt.errors import HamirtError

BAD_REQUEST, FORBIDDEN, NOT_FOUND, CONFLICT, TOO_LONG, UNAVAILABLE = 400, 403, 404, 409, 413, 503


class RefusalError(HamirtError):
    """A request that is not carried out; nothing of it was."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
