# SPDX-License-Identifier: Apache-2.0
import common
import duckdb

task = common.task()
database = duckdb.connect()
database.execute("SET memory_limit = '512MB'; SET threads = 2")
for statement in common.statements(task["queries"], "views.duckdb.sql", task["ledger"]):
    database.execute(statement)


def ask(question):
    found = database.execute(common.query(task["queries"], question))
    names = [column[0] for column in found.description]
    return [dict(zip(names, row)) for row in found.fetchall()]


common.answer([ask(question) for question in task["questions"]])
