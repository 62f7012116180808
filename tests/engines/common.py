# SPDX-License-Identifier: Apache-2.0
"""What the engines' scripts share: the task on standard input, the answers on standard output, both JSON.

task:    {"ledger": FOLDER, "queries": FOLDER, "questions": [{"query": NAME, "parameters": {NAME: VALUE}}]}
answers: [[{COLUMN: VALUE}]], one list for each question; times in microseconds since 1970
"""

import datetime
import decimal
import json
import pathlib
import re
import sys


def task():
    return json.load(sys.stdin)


def statements(folder, name, ledger):
    """The statements of a file of views."""
    text = pathlib.Path(folder, name).read_text().replace(":ledger", ledger)
    text = "\n".join(line for line in text.splitlines() if not line.startswith("--"))
    return [statement for statement in text.split(";") if statement.strip()]


def query(folder, question):
    """A query with its parameters in place."""
    text = pathlib.Path(folder, question["query"] + ".sql").read_text()
    text = "\n".join(line.partition("--")[0] for line in text.splitlines())
    return re.sub(r":([a-z]+)", lambda found: literal(question["parameters"][found[1]]), text)


def literal(value):
    if isinstance(value, list):
        return ", ".join(literal(item) for item in value) or "NULL"
    return str(value) if isinstance(value, int) else "'" + value.replace("'", "''") + "'"


def plain(value):
    """A value as JSON has it."""
    if isinstance(value, datetime.datetime):
        if value.tzinfo is None:
            value = value.replace(tzinfo=datetime.timezone.utc)
        epoch = datetime.datetime(1970, 1, 1, tzinfo=datetime.timezone.utc)
        return (value - epoch) // datetime.timedelta(microseconds=1)
    return int(value) if isinstance(value, decimal.Decimal) else value


def answer(answers):
    rows = [[{name: plain(value) for name, value in row.items()} for row in rows] for rows in answers]
    json.dump(rows, sys.stdout)
