"""What our dashboards are made of: panels with one look.

PromQL is written with the name of a selection where its matchers go, as in ``dagster_runs_in_progress{JOB, status="queued"}``:
see `SELECTIONS`. Queries are by legend; a legend with ``{{label}}`` makes a series of every value.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from grafana_foundation_sdk.builders import bargauge, common, heatmap, stat, statetimeline, table, timeseries
from grafana_foundation_sdk.builders import dashboard as grafana
from grafana_foundation_sdk.builders.prometheus import Dataquery
from grafana_foundation_sdk.cog import variants
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models import common as options
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models import units
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

DATASOURCE = options.DataSourceRef(type_val="prometheus", uid="${datasource}")

# One installation: of two together, what lives in the one would hide what is dead in the other. Where the figures have
# neither label the variables are empty, and so are these.
HERE = 'namespace="$namespace", release="$release"'
RULED = 'namespace=~"$namespace|", release=~"$release|"'
LOCATION = f'{HERE}, code_location=~"$code_location"'
SELECTIONS = {
    "HERE": HERE,
    "LOCATION": LOCATION,
    "JOB": f'{LOCATION}, job_name=~"$job_name"',
    "ASSET": f'{HERE}, asset_key=~"$layer(/.*)?", asset_key=~"$asset_key"',
    "SOURCE": f'{HERE}, source=~"$source"',
    # What rules make has both where the chart installed them, and neither where the files are loaded as they are.
    "RECORDED": RULED,
    "ALERT": f'{RULED}, alertname=~"Millrace.+"',
}

GOOD, WARN, BAD, NEUTRAL, INFO = "green", "orange", "red", "#8e8e8e", "blue"
# What has a name has one colour on every page.
COLOURS = {
    GOOD: ("success", "passed", "pass", "completed", "completed_success"),
    BAD: ("failure", "failed", "fail", "completed_failed", "failing"),
    NEUTRAL: ("canceled", "canceling", "skipped"),
    WARN: ("queued", "requested", "warn"),
    INFO: ("started",),
    "light-blue": ("not_started", "starting"),
}
EVENT_STEP = "5m"  # events are few: a bar of a few seconds says nothing

Queries = str | Mapping[str, str]
Steps = Sequence[tuple[float, str]]  # from which value on which colour
LEAST = -math.inf
AnyPanel = bargauge.Panel | heatmap.Panel | stat.Panel | statetimeline.Panel | table.Panel | timeseries.Panel
P = TypeVar("P", bargauge.Panel, heatmap.Panel, stat.Panel, statetimeline.Panel, table.Panel, timeseries.Panel)


@dataclass(frozen=True)
class About:
    """What every panel has. *alerts* are those that fire on what it shows: it links to their runbooks."""

    title: str
    text: str
    unit: str
    alerts: Sequence[str] = ()
    width: int | None = None  # of 24
    height: int | None = None


@dataclass(frozen=True)
class Column:
    """A number of a table; *steps* colour it."""

    name: str
    promql: str
    unit: str = units.Short
    steps: Steps = ()
    mappings: Mapping[str, tuple[str, str]] | None = None  # value → text, colour


@dataclass(frozen=True)
class Label:
    """A label as a column of a table; *link* is an address with ``${__value.raw}`` for its value."""

    label: str
    name: str
    link: str = ""


def to(page: str, **variables: str) -> str:
    """The address of another of our dashboards, with the same data source, place and time."""
    kept = {"datasource": "${datasource}", "namespace": "${namespace}", "release": "${release}", **variables}
    return f"/d/millrace-{page}?{'&'.join(f'var-{name}={value}' for name, value in kept.items())}&${{__url_time_range}}"


def promql(text: str) -> str:
    """*text* on one line, with the matchers of its selections."""
    return " ".join(re.sub(r"\{([A-Z]+)\b", lambda found: "{" + SELECTIONS[found[1]], text).split())


def number(
    about: About,
    queries: Queries,
    *,
    steps: Steps = (),
    none: str = "",
    trend: bool = False,
    link: str = "",
    decimals: int | None = None,
) -> stat.Panel:
    """Numbers of this moment, coloured by *steps*; *none* is what stands there if there is no series."""
    panel = _about(stat.Panel(), about, width=4, height=4)
    panel.targets(_targets(queries, instant=not trend))
    panel.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]).values(False))
    panel.graph_mode(options.BigValueGraphMode.AREA if trend else options.BigValueGraphMode.NONE)
    panel.color_mode(options.BigValueColorMode.BACKGROUND_SOLID if steps else options.BigValueColorMode.VALUE)
    panel.text_mode(options.BigValueTextMode.AUTO).thresholds(_steps(steps, base=GOOD if steps else "text"))
    nothing = models.DashboardSpecialValueMapOptions(
        models.SpecialValueMatch.NA_N, models.ValueMappingResult(text="–")
    )  # a share of nothing
    panel.mappings([models.SpecialValueMap(nothing)])
    if none:
        panel.no_value(none)
    if decimals is not None:
        panel.decimals(decimals)
    if link:
        panel.data_links([grafana.DashboardLink("Details").url(link)])
    return panel


def lines(
    about: About,
    queries: Queries,
    *,
    limits: Mapping[str, str] | None = None,
    stack: bool = False,
    bars: bool = False,
    step: str = "",
    top: float | None = None,
    link: str = "",
    marks: Steps = (),
) -> timeseries.Panel:
    """A graph; *bars* are for events. *limits* are dashed lines from the gauges that the rules compare with, *marks* fixed."""
    limits = limits or {}
    panel = _about(timeseries.Panel(), about)
    panel.targets(_targets({**_by_legend(queries), **limits})).min(0)
    panel.legend(
        common.VizLegendOptions()
        .display_mode(options.LegendDisplayMode.LIST)
        .placement(options.LegendPlacement.BOTTOM)
        .show_legend(True)
        .calcs([])
    )
    panel.tooltip(common.VizTooltipOptions().mode(options.TooltipDisplayMode.MULTI).sort(options.SortOrder.DESCENDING))
    panel.color_scheme(grafana.FieldColor().mode(models.FieldColorModeId.PALETTE_CLASSIC_BY_NAME))
    panel.show_points(options.VisibilityMode.NEVER).line_width(1)
    if stack or bars:
        panel.fill_opacity(80 if bars else 40)
        panel.stacking(common.StackingConfig().mode(options.StackingMode.NORMAL).group("A"))
    if bars:
        panel.draw_style(options.GraphDrawStyle.BARS)
    if bars or step:
        panel.interval(step or EVENT_STEP)
    if top is not None:
        panel.axis_soft_max(top)
    if marks:
        panel.thresholds(_steps(marks, base="transparent"))
        panel.thresholds_style(common.GraphThresholdsStyleConfig().mode(options.GraphThresholdsStyleMode.DASHED))
    if link:
        panel.data_links([grafana.DashboardLink("Details").url(link)])
    if {"{{status}}", "{{result}}", "{{state}}"} & set(_by_legend(queries)):
        for colour, series in COLOURS.items():
            panel.override_by_regexp(
                f"^({'|'.join(series)})$", [_set("color", {"mode": "fixed", "fixedColor": colour})]
            )
    for name in limits:
        panel.override_by_name(
            name,
            [
                _set("color", {"mode": "fixed", "fixedColor": BAD}),
                _set("custom.lineStyle", {"fill": "dash", "dash": [10, 10]}),
                _set("custom.drawStyle", "line"),
                _set("custom.fillOpacity", 0),
                _set("custom.stacking", {"mode": "none", "group": "limits"}),
            ],
        )
    return panel


def spread(about: About, buckets: str, *, step: str = "15m") -> heatmap.Panel:
    """A heatmap of *buckets*, a query ``by (le)``."""
    panel = _about(heatmap.Panel(), about)
    panel.targets(_targets({"{{le}}": buckets}, shape=PromQueryFormat.HEATMAP))
    panel.calculate(False).interval(step).cell_gap(1).show_legend()
    panel.y_axis(heatmap.YAxisConfig().unit(about.unit))
    panel.color(heatmap.HeatmapColorOptions().mode(HeatmapColorMode.SCHEME).scheme("Blues").exponent(0.5).steps(32))
    panel.tooltip(heatmap.HeatmapTooltip().mode(options.TooltipDisplayMode.SINGLE))
    panel.filter_values(heatmap.FilterValueRange().le(1e-9))
    return panel


def ranking(about: About, queries: Queries, *, steps: Steps = (), top: float | None = None) -> bargauge.Panel:
    """A bar for each series, the largest first where the query sorts."""
    panel = _about(bargauge.Panel(), about).targets(_targets(queries, instant=True)).min(0)
    panel.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]).values(False))
    panel.orientation(options.VizOrientation.HORIZONTAL).display_mode(options.BarGaugeDisplayMode.BASIC)
    panel.show_unfilled(True).value_mode(options.BarGaugeValueMode.TEXT)
    panel.name_placement(options.BarGaugeNamePlacement.LEFT).thresholds(_steps(steps, base=GOOD if steps else INFO))
    if top is not None:
        panel.max(top)
    return panel


def states(about: About, queries: Queries, *, words: tuple[str, str]) -> statetimeline.Panel:
    """A band for each series, which is 1 (the first of *words*, green) or 0 (the second, red)."""
    panel = _about(statetimeline.Panel(), about).targets(_targets(queries))
    panel.mappings([_mapping({"1": (words[0], GOOD), "0": (words[1], BAD)})])
    panel.color_scheme(grafana.FieldColor().mode(models.FieldColorModeId.THRESHOLDS)).thresholds(
        _steps((), base=NEUTRAL)
    )
    panel.show_value(options.VisibilityMode.NEVER).merge_values(True).row_height(0.8)
    return panel


def rows(
    about: About,
    labels: Sequence[Label],
    columns: Sequence[Column],
    *,
    sort: str = "",
    none: str = "None",
) -> table.Panel:
    """A table: a row for each combination of *labels*, by which every query of *columns* is aggregated."""
    panel = _about(table.Panel(), about).no_value(none).filterable(True)
    panel.targets(
        _targets({column.name: column.promql for column in columns}, instant=True, shape=PromQueryFormat.TABLE)
    )
    names = {each.label: each.name for each in labels}
    names |= {f"Value #{_ref(at)}": column.name for at, column in enumerate(columns)}
    names["Value"] = columns[0].name  # so called where no other query has a result
    order = [*(each.label for each in labels), "Value", *(f"Value #{_ref(at)}" for at in range(len(columns)))]
    panel.transformations(
        [
            models.DataTransformerConfig(id_val="merge", options={}),
            models.DataTransformerConfig(
                id_val="organize",
                options={
                    "excludeByName": {"Time": True},
                    "indexByName": {name: at for at, name in enumerate(order)},
                    "renameByName": names,
                },
            ),
        ]
    )
    for each in labels:
        if each.link:
            link = {"title": "Details", "url": each.link}
            panel.override_by_name(each.name, [_set("links", [link])])
    for column in columns:
        panel.override_by_name(column.name, _column(column))
    if sort:
        panel.sort_by([common.TableSortByFieldState().display_name(sort).desc(True)])
    return panel


def _about(panel: P, about: About, *, width: int = 12, height: int = 8) -> P:
    panel.title(about.title).description(" ".join(about.text.split())).unit(about.unit).datasource(DATASOURCE)
    panel.span(about.width or width).height(about.height or height)
    if about.alerts:
        panel.links(
            [
                grafana.DashboardLink(f"Runbook: {alert}").url(f"${{runbooks}}/{alert}.md").target_blank(True)
                for alert in about.alerts
            ]
        )
    return panel


def _by_legend(queries: Queries) -> Mapping[str, str]:
    return {"": queries} if isinstance(queries, str) else queries


def _ref(at: int) -> str:
    return chr(ord("A") + at)


def _targets(
    queries: Queries, *, instant: bool = False, shape: PromQueryFormat = PromQueryFormat.TIME_SERIES
) -> list[Builder[variants.Dataquery]]:
    found: list[Builder[variants.Dataquery]] = []
    for at, (legend, text) in enumerate(_by_legend(queries).items()):
        query = Dataquery().ref_id(_ref(at)).datasource(DATASOURCE).expr(promql(text)).format(shape)
        if legend and shape != PromQueryFormat.TABLE:
            query.legend_format(legend)
        found.append(query.instant() if instant else query.range())
    return found


def _steps(steps: Steps, *, base: str) -> grafana.ThresholdsConfig:
    """*base* is the colour below the first step."""
    if not steps or steps[0][0] != LEAST:
        steps = [(LEAST, base), *steps]
    config = grafana.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE)
    return config.steps([models.Threshold(None if value == LEAST else float(value), colour) for value, colour in steps])


def _mapping(words: Mapping[str, tuple[str, str]]) -> models.ValueMap:
    return models.ValueMap(
        {
            value: models.ValueMappingResult(text=text, color=colour, index=at)
            for at, (value, (text, colour)) in enumerate(words.items())
        }
    )


def _column(column: Column) -> list[models.DynamicConfigValue]:
    found = [_set("unit", column.unit), _set("custom.filterable", False)]
    if column.steps:
        found.append(_set("thresholds", _steps(column.steps, base="text").build()))
    if column.mappings:
        found.append(_set("mappings", [_mapping(column.mappings)]))
    if column.steps or column.mappings:
        found.append(_set("custom.cellOptions", options.TableColorTextCellOptions()))
    return found


def _set(name: str, value: Any) -> models.DynamicConfigValue:
    return models.DynamicConfigValue(id_val=name, value=value)
