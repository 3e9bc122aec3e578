"""The parser agent: `documents.parse` behind the sdk."""

from typing import Any

import documents

from swarmd.sdk import Context


def run(item: Any, context: Context) -> Any:
    return documents.parse(item)
