"""A model that takes memory in dbt's own process."""

import os
import time


def model(dbt, session):
    food = [bytearray(os.urandom(1 << 20)) for _ in range(int(os.environ.get("TRIALS_MIB", "600")))]
    time.sleep(1)
    return session.sql(f"select {len(food)} as mib")
