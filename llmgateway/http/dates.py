"""The `Date` of answers, made anew once a second."""

import time
from email.utils import formatdate


class Dates:
    """Gives the line of a head that tells the date."""

    def __init__(self) -> None:
        self._last = (0, b"")

    def line(self) -> bytes:
        """Give the one of answers that are made now."""
        second = int(time.time())
        if self._last[0] != second:
            self._last = second, b"Date: %b\r\n" % formatdate(second, usegmt=True).encode()
        return self._last[1]
