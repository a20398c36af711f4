"""Invented hourly weather: the provider's bulk file, and what its API would answer for the same hours."""

import math
from datetime import UTC, date, datetime, time, timedelta
from random import Random
from typing import Any

API_FILE = "open_meteo_api_hourly.csv"
HOUR = timedelta(hours=1)
NAN_HOURS = 168
HISTORY_HEADER = [
    "time", "temp", "precipitation (mm)", "rain (mm)", "cloudcover (%)", "cloudcover_low (%)", "cloudcover_mid (%)",
    "cloudcover_high (%)", "windspeed_10m (km/h)", "winddirection_10m (°)",
]  # fmt: skip
API_HEADER = [
    "time", "temperature_2m", "precipitation", "rain", "snowfall", "cloud_cover", "wind_speed_10m", "wind_direction_10m",
]  # fmt: skip


def weather_files(random: Random, first: date, last: date) -> dict[str, list[list[Any]]]:
    """Rows, header first, of each weather file for the months that begin on *first* and *last*.

    The bulk file ends in the middle of the last month and its last week is NaN; the API has every hour, so that it
    fills that week and goes on from there. Both begin a day early and the API ends a day late: months are New York's.
    """
    start = datetime.combine(first, time(), UTC) - timedelta(days=1)
    end = datetime.combine((last + timedelta(days=31)).replace(day=2), time(), UTC)
    history_end = datetime.combine(last.replace(day=15), time(), UTC)
    history: list[list[Any]] = [HISTORY_HEADER]
    api: list[list[Any]] = [API_HEADER]
    wetness = cloud = 0.0
    for hour in (start + HOUR * n for n in range((end - start) // HOUR)):
        season = math.cos((hour.timetuple().tm_yday - 200) / 365 * math.tau)  # warmest in July
        day = math.cos((hour.hour - 19) / 24 * math.tau)  # warmest at 19:00 UTC
        temperature = round(12 + 12 * season + 3.5 * day + random.gauss(0, 1), 1)
        change = random.random()
        if wetness and change < 0.15:
            wetness = 0.0
        elif not wetness and change < 0.02:
            wetness = random.expovariate(0.7)
        water = round(wetness * random.uniform(0.3, 1.5), 1)
        rain = water if temperature >= 1 else 0.0
        snow = round((water - rain) * 0.7, 2)  # cm for mm of water, as the provider reckons
        cloud = 100 if wetness else min(100, max(0, cloud + random.gauss(0, 20)))
        sky = [round(cloud * share) for share in (1, 0.6, 0.5, 0.8)]
        wind = [round(abs(random.gauss(12, 6)), 1), random.randrange(360)]
        stamp = f"{hour:%Y-%m-%dT%H:%M}"
        api.append([stamp, temperature, water, rain, snow, sky[0], *wind])
        if hour < history_end - HOUR * NAN_HOURS:
            history.append([stamp, temperature, f"{water:.2f}", f"{rain:.2f}", *sky, *wind])
        elif hour < history_end:
            history.append([stamp, *["NaN"] * 9])
    return {f"open_meteo_nyc_hourly_{first.year}_{last.year}.csv": history, API_FILE: api}
