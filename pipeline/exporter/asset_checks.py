"""Asset checks: how many passed and failed, and how each ended last."""

from pipeline.exporter.metrics import Registry
from pipeline.exporter.topic import Batch, Topic

CHECK = ("asset_key", "check", "severity")
SEVERITIES = ("warn", "error")
RESULTS = ("passed", "failed")


class AssetChecks(Topic):
    """By check. A planned one that its run never made is none: what held it back has an alert of its own."""

    name = "asset_checks"
    bodies_of = frozenset({"ASSET_CHECK_EVALUATION"})

    def __init__(self, registry: Registry) -> None:
        self.evaluations = registry.counter(
            "dagster_asset_check_evaluations_total",
            "Evaluations, by result.",
            ("asset_key", "check", "result", "severity"),
        )
        self.passed = registry.last_value(
            "dagster_asset_check_last_passed", "1 if the check passed last, else 0.", CHECK
        )
        self.last = registry.last_value(
            "dagster_asset_check_last_timestamp_seconds", "When the check was made last.", CHECK
        )

    def start_check(self, asset: str, check: str) -> None:
        """Have the check's sums before it is made; how severe it is shows only then."""
        for severity in SEVERITIES:
            for result in RESULTS:
                self.evaluations.start(asset, check, result, severity)

    def checks(self) -> set[tuple[str, str]]:
        """Asset and name of those that have series."""
        return {(asset, check) for asset, check, *_ in (*self.evaluations.series, *self.passed.series)}

    def forget_checks(self, gone: set[tuple[str, str]]) -> None:
        """Remove the series of checks that are gone."""
        for metric in (self.evaluations, self.passed, self.last):
            metric.forget_all(("asset_key", "check"), gone)

    def count(self, batch: Batch) -> None:
        for event in batch.events:
            if event.type != "ASSET_CHECK_EVALUATION":
                continue
            data = event.data
            asset = "/".join((data.get("asset_key") or {}).get("path") or ())
            check, passed = str(data.get("check_name")), bool(data.get("success"))
            severity = str((data.get("severity") or {}).get("__enum__", "")).rpartition(".")[2].lower() or "error"
            for other in SEVERITIES:  # its severity may be another than last time
                if other != severity:
                    self.passed.remove(asset, check, other)
                    self.last.remove(asset, check, other)
            self.start_check(asset, check)
            self.evaluations.add(asset, check, "passed" if passed else "failed", severity)
            self.passed.set(float(passed), asset, check, severity)
            self.last.set(event.at, asset, check, severity)
