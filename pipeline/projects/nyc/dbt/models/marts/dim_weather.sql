select
    condition || '/' || temperature_band as weather_id,
    condition,
    condition_order,
    is_wet,
    temperature_band,
    temperature_order,
    min_temperature_c,
    max_temperature_c
from (
    values
        ('clear', 1, false), ('partly_cloudy', 2, false), ('overcast', 3, false), ('drizzle', 4, true),
        ('rain', 5, true), ('heavy_rain', 6, true), ('snow', 7, true), ('unknown', 8, null)
) as conditions (condition, condition_order, is_wet)
cross join (
    values
        ('freezing', 1, null, 0), ('cold', 2, 0, 10), ('mild', 3, 10, 20), ('warm', 4, 20, 28), ('hot', 5, 28, null),
        ('unknown', 6, null, null)
) as bands (temperature_band, temperature_order, min_temperature_c, max_temperature_c)
