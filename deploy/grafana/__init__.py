"""The dashboards as code, a file each: ``python -m deploy.grafana`` writes ``deploy/dashboards/*.json``."""
