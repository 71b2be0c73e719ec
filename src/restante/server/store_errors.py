"""Count the errors of the mail storage for the metrics."""

from __future__ import annotations

from collections.abc import MutableSequence

from ..errors import (
    DeletionLimitExceeded,
    MessageGone,
    QuotaExceeded,
    RestanteError,
    TemporaryFailure,
)
from ..series import cells_by_label
from ..syncing import SyncFailed

_CELLS = cells_by_label("store_errors_total")
_NO_STORE_ERRORS = (DeletionLimitExceeded, MessageGone, QuotaExceeded)


def count(counts: MutableSequence[float], error: RestanteError, kind: str) -> None:
    """Count an error, unless the storage has not caused it.

    ``kind`` is the action that failed, ``read`` or ``write``.
    """
    if isinstance(error, TemporaryFailure) and not isinstance(error, _NO_STORE_ERRORS):
        counts[_CELLS["sync" if isinstance(error.__cause__, SyncFailed) else kind]] += 1
