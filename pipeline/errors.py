"""Every exception this package raises on purpose.

MillraceError
├── ConfigError             a file, setting or argument must be changed
├── LakeError
│   ├── LakeUnavailable     the catalogue or its data cannot be reached: trying again may work
│   ├── LakeConflict        other writers kept winning: trying again may work
│   └── LakeRejected        the lake refuses this: format, permission, disk full
├── QueryRejected           a statement that a reader may not run
├── SourceError
│   ├── SourceUnavailable   trying again may work (time-out, 429, 5xx, being loaded by another run)
│   └── SourceRejected      trying again cannot work (401, 404, unreadable file, schema gone)
├── NotifyError
│   ├── NotifyUnavailable   a channel did not answer: trying again may work
│   └── NotifyRejected      a channel refuses the message, and will until someone changes something
├── BackupError             a backup cannot be made, read or restored as things are
└── ServiceError            a process of the embedded platform did not start, stop or answer

The class says whether a retry can help (`is_transient`); the message says what was being done, what was
found and what to change.
"""


class MillraceError(Exception):
    """Base class: ``except MillraceError`` catches what was raised on purpose and nothing else."""

    is_transient = False


class ConfigError(MillraceError):
    """A file, setting or argument is missing or wrong. The message names it and says what would be right."""


class LakeError(MillraceError):
    """The lake could not do what was asked. What was committed before stays."""


class LakeUnavailable(LakeError):
    """The catalogue or the data cannot be reached just now."""

    is_transient = True


class LakeConflict(LakeError):
    """Every attempt of a transaction lost against another writer of the same table."""

    is_transient = True


class LakeRejected(LakeError):
    """The lake refuses, and will until someone changes something."""


class QueryRejected(MillraceError):
    """A statement that the locked connection does not run."""


class SourceError(MillraceError):
    """A source could not be read. Nothing of the failed load was committed."""


class SourceUnavailable(SourceError):
    """A later attempt may succeed."""

    is_transient = True


class SourceRejected(SourceError):
    """No later attempt can succeed until someone changes something."""


class NotifyError(MillraceError):
    """A message did not get through on a channel. Other channels are not concerned."""


class NotifyUnavailable(NotifyError):
    """A later attempt may get through."""

    is_transient = True


class NotifyRejected(NotifyError):
    """No later attempt can get through until someone changes something."""


class BackupError(MillraceError):
    """A backup is damaged or not there, or something must end first. What was there before is as it was."""


class ServiceError(MillraceError):
    """A process of the embedded platform did not start, stop or answer in time."""
