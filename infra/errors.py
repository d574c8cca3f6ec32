"""What can go wrong outside: something does not answer, or cannot be started."""


class InfraError(Exception):
    """Base of what this room raises; the message says what, where and the remedy."""


class SettingsError(InfraError):
    """A variable of DECIDUOUS_* holds what it cannot hold; the message names it, and no secret."""


class UnreachableError(InfraError, ConnectionError):
    """A server does not answer. Trying again may help."""

    def __init__(self, what: str, address: str, remedy: str) -> None:
        super().__init__(f"{what} at {address} does not answer: {remedy}")


class RefusedError(InfraError):
    """A server answered, with an error; `error_code` is the server's name for it."""

    def __init__(self, who: str, error_code: str, message: str) -> None:
        super().__init__(f"{who} refused: {error_code}: {message}")
        self.error_code = error_code


class HeldError(InfraError):
    """Another process holds a lock. Trying again helps once it is done."""

    def __init__(self, name: str, holder: str) -> None:
        self.holder = holder
        super().__init__(f"{name} is being worked on by {holder}; wait for it, or end it, then run the command again")


class BucketError(InfraError):
    """A bucket is missing or keeps no versions: a deletion or a mistake could not be told apart, nor undone."""

    def __init__(self, bucket: str, command: str) -> None:
        super().__init__(
            f"bucket {bucket!r} is missing or keeps no versions; `deciduous migrate` makes it so, or by hand: {command}"
        )


class UnwritableError(InfraError):
    """A file of this machine cannot be written: its disk is full or refuses. Trying again helps once there is space."""

    def __init__(self, what: str, path: str, cause: str) -> None:
        super().__init__(
            f"{what} in {path} cannot be written: {cause}; free some space there (the home's folders cache and blobs "
            "hold copies alone, and may be deleted while nothing runs) or make it writable, then run again"
        )


NOT_YOURS = "run as the user whose it is, give it to this one (chown), or name another home (DECIDUOUS_HOME)"
"""What to do about a file of the home that belongs to another user."""


class DamagedError(InfraError):
    """A database file of this machine is not what SQLite wrote. Trying again does not help."""

    def __init__(self, path: str, cause: str) -> None:
        super().__init__(
            f"the database {path} is damaged: {cause}; move it away with the -wal and -shm beside it, then "
            "`deciduous restore` the last backup"
        )


class FolderError(InfraError):
    """A folder cannot be made, mostly one of the home."""

    def __init__(self, path: str, cause: str) -> None:
        super().__init__(f"folder {path} cannot be made: {cause}; name another (the home's: --home or DECIDUOUS_HOME)")


class SchemaError(InfraError):
    """The catalog's tables do not fit this code."""


class StartError(InfraError):
    """A server of the embedded stack could not be started."""


class KeyFileError(InfraError):
    """A key file is missing, unreadable or of the wrong kind."""


class GrantsError(InfraError):
    """The file of grants cannot be read, or an entry is not of its form."""

    def __init__(self, path: str, cause: str) -> None:
        super().__init__(f"entitlements {path}: {cause}")
