"""From raw to staging to marts: the project's dbt models as assets."""
