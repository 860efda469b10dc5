"""How long a test waits for what must come, before it says that it hangs.

A guard and never a claim: what takes a moment on a quiet machine takes a hundred on a busy one, and nobody
waits so long unless something is broken. What would end a wait in another way is set to more than this.
"""

from __future__ import annotations

from typing import Final

HANG_S: Final = 60.0
LINGERS_S: Final = 2.0
"""For what must be gone: less than the times after which the gateway gives up what lingers."""
MANY_LOOKS: Final = 50
"""A condition is looked at so often before it has failed, as the machine may have stood still."""
