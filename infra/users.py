"""Who runs this process."""

import os
from getpass import getuser


def user_name() -> str:
    """The name that a log keeps; a container may run as a number that its machine has no name for."""
    try:
        return getuser()
    except KeyError:
        return f"uid {os.getuid()}"
