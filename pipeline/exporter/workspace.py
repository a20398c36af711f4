"""What there is, from the webserver: code locations, jobs, schedules, sensors, assets. No table tells of those.

What is new gets its series at zero, what is gone loses them. A location that does not load keeps its own: it is broken, and
not gone.
"""

import json
import threading
from collections.abc import Callable
from typing import Any

import httpx2

from pipeline.errors import ConfigError, ServiceError
from pipeline.exporter.asset_checks import AssetChecks
from pipeline.exporter.daemons import Daemons
from pipeline.exporter.database import Database
from pipeline.exporter.materializations import Materializations
from pipeline.exporter.metrics import OTHER, Registry
from pipeline.exporter.resources import Resources
from pipeline.exporter.run_facts import UNKNOWN
from pipeline.exporter.run_queue import RunQueue
from pipeline.exporter.runs import Runs
from pipeline.exporter.sources import Sources, stream_of
from pipeline.exporter.steps import Steps
from pipeline.exporter.ticks import Ticks
from pipeline.exporter.topic import Topic
from pipeline.notify import shown_server

EVERY_SECONDS = 60.0
ASK_SECONDS = 20.0
WAIT_SECONDS = 0.5  # for which a poll waits for the answer, so that most are shown at once
MAX_AGE_HOURS = "max_age_hours"
SLOW_AFTER = "millrace/slow_after_seconds"

QUERY = """{
  workspaceOrError { ... on Workspace { locationEntries { name loadStatus updatedTimestamp locationOrLoadError {
    __typename ... on RepositoryLocation { repositories {
      jobs { name tags { key value } }
      schedules { name scheduleState { status nextTick { timestamp } } }
      sensors { name sensorState { status } }
      assetNodes { assetKey { path } groupName kinds isMaterializable
        owners { ... on UserAssetOwner { email } ... on TeamAssetOwner { team } }
        metadataEntries { label ... on FloatMetadataEntry { floatValue } ... on IntMetadataEntry { intValue } }
        assetChecksOrError { ... on AssetChecks { checks { name } } } }
    } } } } } ... on PythonError { message } }
  instance { daemonHealth { allDaemonStatuses { daemonType required } } runQueueConfig { maxConcurrentRuns tagConcurrencyLimitsYaml }
    poolConfig { poolGranularity } }
}"""

# Of each asset it costs the webserver two statements.
CHECKS = "assetChecksOrError { ... on AssetChecks { checks { name } } }"
WITHOUT_CHECKS = QUERY.replace(CHECKS, "")

Ask = Callable[[str], dict[str, Any]]


class Workspace(Topic):
    """Asked every minute, by a thread of its own. While the webserver does not answer all stays as it was."""

    name = "workspace"

    def __init__(
        self,
        registry: Registry,
        ask: Ask,
        *,
        runs: Runs,
        steps: Steps,
        resources: Resources,
        assets: Materializations,
        checks: AssetChecks,
        sources: Sources,
        ticks: Ticks,
        daemons: Daemons,
        queue: RunQueue,
        slow_after_seconds: float,
    ) -> None:
        location = ("code_location",)
        self.loaded = registry.gauge(
            "dagster_code_location_loaded", "1 if the location's definitions load, else 0.", location
        )
        self.updated = registry.gauge(
            "dagster_code_location_last_update_timestamp_seconds", "When the location was loaded last.", location
        )
        self.definitions = registry.gauge(
            "dagster_code_location_definitions", "Definitions of the location, by kind.", (*location, "kind")
        )
        self.info = registry.gauge(
            "dagster_asset_info",
            "Always 1: who owns the asset, and what it is.",
            ("asset_key", "code_location", "group", "owner", "kind"),
        )
        self.max_age = registry.last_value(
            "dagster_asset_max_age_seconds",
            "Older than this the asset is late, by its own declaration.",
            ("asset_key",),
        )
        self.running = registry.gauge(
            "dagster_instigator_running",
            "1 if the schedule or sensor is on, else 0.",
            ("type", "name", "code_location"),
        )
        self.expected = registry.last_value(
            "dagster_schedule_expected_tick_timestamp_seconds",
            "The newest moment at which the schedule was to tick.",
            ("name", "code_location"),
        )
        self.slow = registry.last_value(
            "dagster_job_slow_threshold_seconds",
            f"A run of the job that takes longer is slow: tag {SLOW_AFTER}, or the setting.",
            ("code_location", "job_name"),
        )
        self._ask, self._asked_at, self._slow_after = ask, 0.0, slow_after_seconds
        self._thread: threading.Thread | None = None
        self._answer: dict[str, Any] | Exception = {}
        self._with_checks = True
        self._failure = "The webserver has not answered yet."  # empty while its last answer is shown
        self._runs, self._steps, self._assets, self._checks = runs, steps, assets, checks
        self._resources, self._sources, self._ticks, self._daemons = resources, sources, ticks, daemons
        self._queue = queue
        self._next: dict[tuple[str, str], float] = {}  # schedule → when it ticks next
        self._checks_of: dict[tuple[str, ...], float] | None = (
            None  # when each location was loaded whose checks are known
        )

    def poll(self, database: Database, now: float) -> None:
        if self._thread is None and (self._failure or not 0 <= now - self._asked_at < EVERY_SECONDS):
            self._asked_at = now
            self._with_checks = self._checks_of != self.updated.series  # they change with the definitions alone
            query = QUERY if self._with_checks else WITHOUT_CHECKS
            self._thread = threading.Thread(target=self._get, args=[query], name="workspace", daemon=True)
            self._thread.start()
            self._thread.join(WAIT_SECONDS)
        if self._thread is not None and not self._thread.is_alive():
            self._thread = None
            self._take(now)
        if self._failure:
            raise ServiceError(self._failure)

    def _get(self, query: str) -> None:
        try:
            self._answer = self._ask(query)
        except Exception as error:  # noqa: BLE001  (of whatever kind: the next poll tells it)
            self._answer = error

    def _take(self, now: float) -> None:
        answer = self._answer
        if isinstance(answer, Exception):
            self._failure = str(answer) if isinstance(answer, ServiceError) else repr(answer)
            return
        self._failure = "The webserver's last answer could not be read, see the exporter's log."  # until it is
        entries = answer["workspaceOrError"].get("locationEntries")
        if entries is None:
            self._failure = f"Asking the webserver for its workspace: {answer['workspaceOrError'].get('message')}"
            return
        self._show(entries, answer["instance"], now, with_checks=self._with_checks)
        if self._with_checks:
            self._checks_of = dict(self.updated.series)
        self._failure = ""

    def _show(self, entries: list[dict[str, Any]], instance: dict[str, Any], now: float, *, with_checks: bool) -> None:
        daemons = instance["daemonHealth"]["allDaemonStatuses"]
        self._daemons.require({each["daemonType"] for each in daemons if each["required"]}, now)
        self._queue.configure(instance)
        self.loaded.replace({(entry["name"],): float(_repositories(entry) is not None) for entry in entries})
        self.updated.replace({(entry["name"],): entry["updatedTimestamp"] for entry in entries})
        broken = {entry["name"] for entry in entries if _repositories(entry) is None}
        kept = broken | {UNKNOWN, OTHER}  # of these nobody can tell what is gone
        found = {entry["name"]: repositories for entry in entries if (repositories := _repositories(entry)) is not None}
        self._show_jobs(found, kept)
        self._show_instigators(found, kept, now)
        self._show_assets(found, kept, is_whole=not broken, with_checks=with_checks)
        counts = {}
        for location, repositories in found.items():
            for kind, field in (
                ("jobs", "jobs"),
                ("schedules", "schedules"),
                ("sensors", "sensors"),
                ("assets", "assetNodes"),
            ):
                counts[(location, kind)] = float(sum(len(each[field]) for each in repositories))
        self.definitions.replace(counts)

    def _show_jobs(self, found: dict[str, list[Any]], kept: set[str]) -> None:
        limits = {job: limit for job, limit in self.slow.series.items() if job[0] in kept}
        for location, repositories in found.items():
            for job in (job for repository in repositories for job in repository["jobs"]):
                tags = {tag["key"]: tag["value"] for tag in job["tags"]}
                limits[(location, job["name"])] = _seconds(tags.get(SLOW_AFTER), self._slow_after)
        for job in limits:
            self._runs.start_job(*job)
            self._steps.start_job(*job)
            self._resources.start_job(*job)
        gone = {job for job in self._runs.jobs() - limits.keys() if job[0] not in kept}
        self._runs.forget_jobs(gone)
        self._steps.forget_jobs(gone)
        self._resources.forget_jobs(gone)
        self.slow.replace(limits)

    def _show_instigators(self, found: dict[str, list[Any]], kept: set[str], now: float) -> None:
        running: dict[tuple[str, str, str], float] = {}
        next_ticks: dict[tuple[str, str], float] = {}
        for location, repositories in found.items():
            for repository in repositories:
                for item in repository["schedules"]:
                    state, name = item["scheduleState"], item["name"]
                    running[("schedule", name, location)] = float(state["status"] == "RUNNING")
                    if state["status"] == "RUNNING" and state.get("nextTick"):
                        next_ticks[(name, location)] = float(state["nextTick"]["timestamp"])
                for sensor in repository["sensors"]:
                    running[("sensor", sensor["name"], location)] = float(sensor["sensorState"]["status"] == "RUNNING")
        for each in running:
            self._ticks.start_instigator(*each)
        gone = {each for each in self._ticks.instigators() - running.keys() if each[2] not in kept}
        self._ticks.forget_instigators(gone)
        for schedule, at in self._next.items():
            if schedule in next_ticks and at <= now:
                self.expected.set(at, *schedule)
        for key in set(self.expected.series) - next_ticks.keys():
            if key[1] not in kept:
                self.expected.remove(*key)
        self._next = next_ticks
        self.running.replace(running)

    def _show_assets(self, found: dict[str, list[Any]], kept: set[str], *, is_whole: bool, with_checks: bool) -> None:
        info, keys = {}, {}
        ages: dict[tuple[str, ...], float] = {}
        checks: set[tuple[str, str]] = set()
        for location, repositories in found.items():
            for node in (node for repository in repositories for node in repository["assetNodes"]):
                key = "/".join(node["assetKey"]["path"])
                checks |= {(key, each["name"]) for each in node.get("assetChecksOrError", {}).get("checks") or ()}
                if not node["isMaterializable"]:
                    continue
                keys[key] = location
                owner = next((each.get("team") or each.get("email") for each in node["owners"]), "")
                info[(key, location, node["groupName"], owner, ",".join(sorted(node["kinds"])))] = 1.0
                for entry in node["metadataEntries"]:
                    hours = entry.get("floatValue") if entry.get("floatValue") is not None else entry.get("intValue")
                    if entry["label"] == MAX_AGE_HOURS and hours is not None:
                        ages[(key,)] = float(hours) * 3600
                self._assets.start_asset(key, location)
                if stream := stream_of(key):
                    self._sources.start_stream(*stream)
        known = {(key, location) for key, location in self._assets.materializations.series}
        gone = {each for each in known - set(keys.items()) if each[1] not in kept}
        self._assets.forget_assets(gone)
        away = {key for key, _ in gone if key not in keys}
        for check in checks:
            self._checks.start_check(*check)
        if is_whole and with_checks:  # a check may be in another location than its asset
            self._checks.forget_checks(self._checks.checks() - checks - {(OTHER, OTHER)})
        else:
            self._checks.forget_checks({check for check in self._checks.checks() if check[0] in away})
        if is_whole:
            past = self._assets.only_past() - keys.keys() - {OTHER}
            self._assets.forget_past(past)
            away |= past
        else:
            ages = {asset: age for asset, age in self.max_age.series.items() if asset[0] not in keys} | ages
        self._sources.forget_streams({stream for key in away if (stream := stream_of(key))})
        self.info.replace(info)
        self.max_age.replace(ages)
        self._sources.max_age.replace({stream: age for (key,), age in ages.items() if (stream := stream_of(key))})


def ask_webserver(url: str) -> Ask:
    """A function that asks the GraphQL of the webserver at *url*, whose user and password are in no error.

    Raises:
        ConfigError: if *url* is none.
    """
    try:
        doing = f"Asking the webserver at {shown_server(url)}"
    except ValueError:
        raise ConfigError(
            "MILLRACE_WEBSERVER_URL is no address of http or https. It looks like http://webserver:3001."
        ) from None

    def ask(query: str) -> dict[str, Any]:
        try:
            answer = httpx2.post(f"{url}/graphql", json={"query": query}, timeout=ASK_SECONDS).raise_for_status()
            document: dict[str, Any] = answer.json()
        except httpx2.HTTPStatusError as error:  # its text has the whole address
            raise ServiceError(f"{doing}: it answered {error.response.status_code}") from None
        except (httpx2.HTTPError, json.JSONDecodeError) as error:
            raise ServiceError(f"{doing}: {error}") from error
        if document.get("errors"):
            raise ServiceError(f"{doing}: {document['errors'][0].get('message')}")
        found: dict[str, Any] = document["data"]
        return found

    return ask


def _repositories(entry: dict[str, Any]) -> list[dict[str, Any]] | None:
    """Those of a location; None if it does not load."""
    loaded = entry.get("locationOrLoadError") or {}
    return loaded.get("repositories") if loaded.get("__typename") == "RepositoryLocation" else None


def _seconds(text: str | None, default: float) -> float:
    try:
        return float(text) if text else default
    except ValueError:
        return default
