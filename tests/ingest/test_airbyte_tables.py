"""Columns of a JSON schema."""

import pytest

from pipeline.ingest.airbyte_tables import Field, fields_of, sql_type


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        ({"type": "integer"}, "BIGINT"),
        ({"type": ["null", "number"]}, "DOUBLE"),
        ({"type": ["integer", "number"]}, "DOUBLE"),
        ({"type": "number", "airbyte_type": "integer"}, "BIGINT"),
        ({"type": "boolean"}, "BOOLEAN"),
        ({"type": "string", "format": "date"}, "DATE"),
        ({"type": "string", "format": "date-time"}, "TIMESTAMP WITH TIME ZONE"),
        ({"type": "string", "format": "date-time", "airbyte_type": "timestamp_without_timezone"}, "TIMESTAMP"),
        ({"type": "string", "format": "uuid"}, "VARCHAR"),
        ({"type": ["null", "object"]}, "JSON"),
        ({"type": "array"}, "JSON"),
        ({"type": ["string", "integer"]}, "JSON"),
        ({"anyOf": [{"type": "string"}, {"type": "null"}]}, "VARCHAR"),
        ({"oneOf": [{"type": "string"}, {"type": "integer"}]}, "JSON"),
        ({"$ref": "#/somewhere"}, "JSON"),
        ({}, "JSON"),
        (True, "JSON"),
    ],
)
def test_a_schema_has_one_column_type(schema: object, expected: str) -> None:
    assert sql_type(schema) == expected


def test_names_that_become_the_same_column_are_numbered_alike_in_any_order() -> None:
    text = {"type": "string"}
    one = fields_of({"properties": {"User Id": text, "user-id": text, "userId": text}})
    other = fields_of({"properties": {"userId": text, "user-id": text, "User Id": text}})

    assert one == (
        Field("User Id", "user_id", "VARCHAR"),
        Field("user-id", "user_id_2", "VARCHAR"),
        Field("userId", "userid", "VARCHAR"),
    )
    assert set(one) == set(other)


def test_a_stream_without_properties_is_one_column() -> None:
    assert fields_of({"type": "object"}) == (Field("", "data", "JSON"),)
