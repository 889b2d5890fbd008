"""What Grafana makes of the SQL of a panel before it sends it: variables, then macros."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

# As in Grafana: arguments end at the first bracket, so that none can be in them.
MACRO = re.compile(r"\$(__\w+)\(([^)]*)\)")
VARIABLE = re.compile(r"\$\{(\w+):(\w+)\}")
SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}


@dataclass(frozen=True, slots=True)
class Range:
    """The time that is chosen, and how wide a point of a series is."""

    since: datetime
    until: datetime
    interval: str = "1h"


def expand(text: str, shown: Range, variables: Mapping[str, Sequence[str]]) -> str:
    """The SQL that the database gets; KeyError or ValueError for what Grafana does not know."""

    def variable(match: re.Match[str]) -> str:
        name, how = match.groups()
        values = variables[name]
        if how == "sqlstring":
            return ",".join("'" + value.replace("'", "''") + "'" for value in values)
        if how == "csv":
            return ",".join(values)
        raise ValueError(f"format {how}")

    text = VARIABLE.sub(variable, text)
    text = re.sub(r"\$__interval\b", shown.interval, text)
    text = MACRO.sub(lambda match: _macro(match[1], match[2], shown), text)
    if "$" in text:
        raise ValueError(f"left over: {text[text.index('$') :][:40]}")
    return text


def _macro(name: str, arguments: str, shown: Range) -> str:
    args = [argument.strip() for argument in arguments.split(",")] if arguments.strip() else []
    since, until = (
        at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ") for at in (shown.since, shown.until)
    )
    if name == "__timeFilter":
        (column,) = args
        return f"{column} BETWEEN '{since}' AND '{until}'"
    if name in ("__timeFrom", "__timeTo"):
        assert not args
        return f"'{since if name == '__timeFrom' else until}'"
    if name in ("__timeGroup", "__timeGroupAlias"):
        column, interval = args
        match = re.fullmatch(r"(\d+)([smhd])", interval.strip("'"))
        if match is None:
            raise ValueError(f"interval {interval}")
        seconds = int(match[1]) * SECONDS[match[2]]
        alias = ' AS "time"' if name.endswith("Alias") else ""
        return f"floor(extract(epoch from {column})/{seconds})*{seconds}{alias}"
    if name == "__unixEpochFilter":
        (column,) = args
        begin, end = int(shown.since.timestamp()), int(shown.until.timestamp())
        return f"{column} >= {begin} AND {column} <= {end}"
    raise ValueError(f"macro {name}")
