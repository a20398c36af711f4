"""The page around the panels: variables, links to the other dashboards and to runbooks, and the file that is written."""

import json
from collections.abc import Mapping, Sequence

from grafana_foundation_sdk.builders import dashboard as grafana
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import dashboard as models

from deploy.grafana.panels import DATASOURCE, AnyPanel, promql

TAG = "millrace"
# Where deploy/runbooks is published. The chart puts its value monitoring.runbookBaseUrl in its place.
RUNBOOKS = "https://runbooks.example.com"


def page(
    name: str,
    title: str,
    text: str,
    rows_of_panels: Mapping[str, Sequence[AnyPanel]],
    *,
    variables: Sequence[grafana.QueryVariable] = (),
    time: str = "now-24h",
) -> models.Dashboard:
    """A dashboard, of rows with their title."""
    built = (
        grafana.Dashboard(f"Millrace / {title}")
        .uid(f"{TAG}-{name}")
        .description(text)
        .tags([TAG])
        .readonly()
        .time(time, "now")
        .refresh("1m")
        .timezone("utc")
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .link(_link_to_the_others())
        .annotation(_deployments())
        .with_variable(grafana.DatasourceVariable("datasource").label("Data source").type("prometheus"))
        .with_variable(_runbooks())
        .with_variable(one("namespace", "Namespace", "label_values(dagster_exporter_build_info, namespace)"))
        .with_variable(
            one("release", "Release", 'label_values(dagster_exporter_build_info{namespace="$namespace"}, release)')
        )
    )
    for variable in variables:
        built.with_variable(variable)
    for row_title, panels in rows_of_panels.items():
        built.with_row(grafana.Row(row_title))
        for panel in panels:
            built.with_panel(panel)
    dashboard = built.build()
    for at, panel_of_page in enumerate(dashboard.panels or (), start=1):
        panel_of_page.id_val = at
    return dashboard


def one(name: str, label: str, query: str) -> grafana.QueryVariable:
    """A variable with one of the values that *query* finds. Where it finds none, as without a chart, it is empty."""
    return (
        grafana.QueryVariable(name)
        .label(label)
        .datasource(DATASOURCE)
        .query({"query": promql(query), "refId": name})
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(models.VariableSort.ALPHABETICAL_ASC)
    )


def choice(name: str, label: str, query: str, *, regex: str = "", multi: bool = False) -> grafana.QueryVariable:
    """A variable with the values that *query* finds; All is any value, or none."""
    variable = (
        one(name, label, query)
        .include_all(True)
        .all_value(".*")
        .multi(multi)
        .current(
            models.VariableOption(
                selected=True, text=["All"] if multi else "All", value=["$__all"] if multi else "$__all"
            )
        )
    )
    return variable.regex(regex) if regex else variable


def location_and_job() -> list[grafana.QueryVariable]:
    """The variables of what is by job."""
    runs = "dagster_runs_completed_total"
    return [
        choice("code_location", "Code location", f"label_values({runs}{{HERE}}, code_location)", multi=True),
        choice("job_name", "Job", f"label_values({runs}{{LOCATION}}, job_name)", multi=True),
    ]


def printed(dashboard: models.Dashboard) -> str:
    """The file."""
    document = json.loads(json.dumps(dashboard, cls=JSONEncoder))
    for shown in (*document["links"], *document["annotations"]["list"]):
        # Always written, and where it is written Grafana 12.3 puts the list of dashboards nowhere: menus are not nested.
        del shown["placement"]
    return json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def _link_to_the_others() -> grafana.DashboardLink:
    link = grafana.DashboardLink("Dashboards").type(models.DashboardLinkType.DASHBOARDS).tags([TAG])
    return link.as_dropdown(True).include_vars(True).keep_time(True)


def _deployments() -> grafana.AnnotationQuery:
    """A mark where definitions were loaded anew: what changed then may be why."""
    mark = grafana.AnnotationQuery().name("Definitions loaded").datasource(DATASOURCE).enable(True).icon_color("purple")
    mark.expr(promql("dagster_code_location_last_update_timestamp_seconds{HERE} * 1000")).use_value_for_time(True)
    return mark.title_format("Loaded").text_format("{{code_location}}").tag_keys("code_location").step("1m")


def _runbooks() -> grafana.ConstantVariable:
    return grafana.ConstantVariable("runbooks").label("Runbooks").value(RUNBOOKS)
