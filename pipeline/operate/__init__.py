"""Running the platform: the embedded database and services, schedules, recovery, retention, health."""
