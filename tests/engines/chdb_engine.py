# SPDX-License-Identifier: Apache-2.0
import json

import common
from chdb import session

task = common.task()
database = session.Session()
database.query("CREATE DATABASE vestigo ENGINE = Atomic")
database.query("USE vestigo")
for statement in common.statements(task["queries"], "views.clickhouse.sql", task["ledger"]):
    database.query(statement)

# Outer joins leave nulls, as everywhere else, and whole numbers are numbers.
SETTINGS = " SETTINGS join_use_nulls = 1, output_format_json_quote_64bit_integers = 0, date_time_output_format = 'unix_timestamp'"


def ask(question):
    text = str(database.query(common.query(task["queries"], question) + SETTINGS, "JSON"))
    found = json.loads(text)
    times = [column["name"] for column in found["meta"] if "DateTime64" in column["type"]]
    return [row | {name: micros(row[name]) for name in times} for row in found["data"]]


def micros(seconds):
    """From seconds as text, with nanoseconds."""
    whole, _, part = str(seconds).partition(".")
    return None if seconds is None else int(whole) * 1_000_000 + int(part[:6].ljust(6, "0"))


common.answer([ask(question) for question in task["questions"]])
