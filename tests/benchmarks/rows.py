"""One row of the table of `make bench`."""

Row = dict[str, object]


def row(
    name: str, value: float, unit: str, *, peer: float | None = None, limit: float | None = None,
    target: str = "", passed: bool = True,
) -> Row:  # fmt: skip
    """*limit* is of the ratio of *value* to *peer*: from above, or from below if *target* is ``>=``."""
    ratio = value / peer if peer else None
    if limit is not None and ratio is not None:
        from_below = target == ">="
        target, passed = f"{target or '<='} {limit:g} x", ratio >= limit if from_below else ratio <= limit
    return {
        "name": name,
        "value": value,
        "unit": unit,
        "peer": peer,
        "ratio": ratio,
        "target": target,
        "passed": passed,
    }
