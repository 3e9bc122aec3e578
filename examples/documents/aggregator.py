"""The aggregator agent: `documents.aggregate` behind the sdk."""

from typing import Any

import documents

from swarmd.sdk import Context


def run(items: Any, context: Context) -> Any:
    return documents.aggregate(items)
